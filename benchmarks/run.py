"""Speed against peers, on the same weights in the same process: medians and their ratio.

    python benchmarks/run.py [--repeats 15]

Writes benchmarks/results/<device>.json. One case now: an evaluation of DeepFloyd IF's stage I graph
(narrow, random weights) with guidance, our network with prepared text against diffusers'.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from imagen_nodes.imagen_core import ADMConfig, ADMUNet, TextEmbedding
from imagen_nodes.imagen_core.formats.deepfloyd_names import entries

RESULTS = Path(__file__).parent / "results"
CHANNELS = (64, 128, 192, 256)
TEXT_DIM, TOKENS = 256, 77


def networks(device: torch.device) -> tuple[ADMUNet, Any]:
    """Our network and diffusers', with the same random weights."""
    from diffusers import UNet2DConditionModel

    attention = "SimpleCrossAttn{}Block2D"
    torch.manual_seed(0)
    peer = UNet2DConditionModel(
        sample_size=64,
        out_channels=6,
        block_out_channels=CHANNELS,
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D", *[attention.format("Down")] * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*[attention.format("Up")] * 3, "ResnetUpsampleBlock2D"),
        attention_head_dim=64,
        cross_attention_dim=CHANNELS[-1],
        cross_attention_norm="group_norm",
        encoder_hid_dim=TEXT_DIM,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    config = ADMConfig(
        channels=CHANNELS,
        num_res_blocks=(3, 3, 3, 3),
        attention=(False, True, True, True),
        text_dim=TEXT_DIM,
        context_dim=CHANNELS[-1],
        time_dim=4 * CHANNELS[0],
        pool_heads=4,
        out_channels=6,
        text_proj=CHANNELS[-1] == TEXT_DIM,
    )
    ours = ADMUNet(config)
    theirs = peer.state_dict()
    table = entries(config, "diffusers", set(ours.state_dict()))
    ours.load_state_dict({e.ours: e.read([theirs[t] for t in e.theirs], 64) for e in table})
    peer.eval().to(device)  # pyright: ignore[reportArgumentType]
    return ours.eval().to(device, memory_format=torch.channels_last), peer


def median_seconds(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall-clock time of a call, after three that do not count."""
    times = []
    for _i in range(repeats + 3):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


@torch.inference_mode()
def compare(repeats: int, device: torch.device) -> dict[str, Any]:
    """One guided evaluation of the U-Net, ours against diffusers'."""
    ours, peer = networks(device)
    x = torch.randn(2, 3, 64, 64, device=device)
    t = torch.tensor([500.0, 500.0], device=device)
    states = torch.randn(2, TOKENS, TEXT_DIM, device=device)
    text = TextEmbedding(states, torch.ones(2, TOKENS, dtype=torch.bool, device=device))
    context = ours.prepare(text)
    difference = (ours(x, t, context) - peer(x, t, states).sample).abs().max().item()
    seconds = {
        "imagen_nodes": median_seconds(lambda: ours(x, t, context), repeats, device),
        "diffusers": median_seconds(lambda: peer(x, t, states), repeats, device),
    }
    return {
        "case": "IF stage I graph, channels 64-256, guided evaluation at 64x64, float32",
        "largest_difference": difference,
        "median_seconds": seconds,
        "diffusers_over_ours": seconds["diffusers"] / seconds["imagen_nodes"],
    }


def main() -> None:
    import diffusers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    ).stdout.strip()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu"
    result = {
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "commit": commit,
        "results": [compare(options.repeats, device)],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{device.type}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
