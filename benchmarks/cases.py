"""What is compared: each case makes our network and its peers on equal weights, or of equal size.

A case is a function of a device that returns a `Case`. Ours is always named "ours ...".
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from imagen_nodes import imagen_core as core
from imagen_nodes.imagen_core.formats.deepfloyd_names import entries
from imagen_nodes.imagen_core.formats.diffusers_config import from_diffusers
from imagen_nodes.imagen_core.kernels.precision import cpu_computes_bfloat16, gpu_half
from imagen_nodes.imagen_core.stage import build_unet
from imagen_nodes.imagen_core.training.ema import EMA
from imagen_nodes.imagen_core.training.loss import diffusion_loss
from imagen_nodes.imagen_core.training.optim import make_optimizer

PACKAGE = Path(core.__file__ or "").parent
BUNDLED = PACKAGE / "pretrained" / "emoji"
COLOURS, THINGS = ("red", "blue", "green", "small"), ("apple", "house", "cat face", "rocket")
DOWN, UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
CROSS_DOWN, CROSS_UP = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
IF_COMMON: dict[str, Any] = dict(
    out_channels=6, attention_head_dim=64, cross_attention_norm="group_norm", encoder_hid_dim=4096,
    encoder_hid_dim_type="text_proj", addition_embed_type="text", addition_embed_type_num_heads=64,
    act_fn="gelu", resnet_time_scale_shift="scale_shift",
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
)  # fmt: skip
STAGE_I: dict[str, Any] = IF_COMMON | dict(  # IF-I-M
    in_channels=3, sample_size=64, block_out_channels=(192, 384, 576, 768), layers_per_block=3,
    cross_attention_dim=768, down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, CROSS_UP, UP),
)  # fmt: skip
STAGE_II: dict[str, Any] = IF_COMMON | dict(  # IF stage II's graph, narrow
    in_channels=6, sample_size=256, block_out_channels=(64, 128, 192, 256, 384),
    layers_per_block=(2, 2, 3, 5, 5), cross_attention_dim=384, class_embed_type="timestep",
    down_block_types=(DOWN, DOWN, DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, UP, UP, UP), time_embedding_dim=384,
    time_embedding_act_fn="gelu", only_cross_attention=True, resnet_skip_time_act=True,
    resnet_out_scale_factor=1 / 0.7071, mid_block_scale_factor=1 / 0.7071,
)  # fmt: skip

SMALL: dict[str, Any] = STAGE_I | dict(  # stage I's graph, as somebody trains it from scratch
    block_out_channels=(64, 128, 192), layers_per_block=2, cross_attention_dim=192,
    encoder_hid_dim=512, addition_embed_type_num_heads=8, out_channels=3,
    down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, CROSS_UP, UP),
)  # fmt: skip
RUNS_MEASURED = ("base 8 64 0 float32", "sr256 1 512 0 float32", "sr1024 2 1024 0 bfloat16")


@dataclass
class Case:
    """Things to time against each other.

    about      one line: shapes, sizes
    runs       name -> what is timed
    against    the run that the others are compared with
    facts      what else is known, such as the largest difference of two outputs
    measured   runs that measure themselves: name -> function that returns a figure
    unit       of the figures
    clock      what times are of; "" = as it is told for the device
    """

    about: str
    runs: dict[str, Callable[[], Any]]
    against: str
    facts: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Callable[[], float]] = field(default_factory=dict)
    unit: str = "s"
    clock: str = ""


def half_of(device: torch.device) -> torch.dtype | None:
    """The half precision that a device is fast with; None = none."""
    if device.type == "cpu":
        return torch.bfloat16 if cpu_computes_bfloat16() else None
    return gpu_half(device)


def channels_last(network: Any) -> Any:
    """A network whose convolutions read channels last."""
    return network.to(memory_format=torch.channels_last)


def twins(shape: dict[str, Any], device: torch.device) -> tuple[Any, Any]:
    """diffusers' network of a shape, random weights, and ours with the same ones."""
    import diffusers

    torch.manual_seed(0)
    peer: Any = diffusers.UNet2DConditionModel(**shape).eval()
    config: Any = from_diffusers(dict(peer.config))
    ours, theirs = build_unet(config), peer.state_dict()
    table = entries(config, "diffusers", set(ours.state_dict()))
    ours.load_state_dict(
        {e.ours: e.read([theirs[t] for t in e.theirs], config.head_dim) for e in table}
    )
    return peer.to(device), ours.to(device)


def deepfloyd(shape: dict[str, Any], side: int, device: torch.device, name: str) -> Case:
    """One guided evaluation of one of DeepFloyd IF's networks, random weights, against diffusers."""
    peer, ours = twins(shape, device)
    config = ours.config
    x = torch.randn(2, shape["in_channels"], side, side, device=device)
    t, states = torch.full((2,), 500.0, device=device), torch.randn(2, 77, 4096, device=device)
    text = core.TextEmbedding(states, torch.ones(2, 77, dtype=torch.bool, device=device))
    labels: dict[str, Any] = dict(class_labels=t) if config.lowres else {}

    def our(network: Any) -> Callable[[], Any]:
        dtype = network.conv_in.weight.dtype
        context, given = network.prepare(text), (x[:, 3:].to(dtype), t) if config.lowres else ()
        return lambda: network(x[:, :3].to(dtype), t, context, *given)

    def their(network: Any) -> Callable[[], Any]:
        seen, of = x.to(network.dtype), states.to(network.dtype)
        return lambda: network(seen, t, of, **labels).sample

    runs = {"ours, float32": our(ours), "diffusers, float32": their(peer)}
    runs["diffusers, float32, channels last"] = their(channels_last(copy.deepcopy(peer)))
    if any(map(shutil.which, ("g++", "clang++"))):  # on a GPU Triton needs one too
        runs["diffusers, float32, compiled"] = their(torch.compile(copy.deepcopy(peer)))
    half = half_of(device)
    if half is not None:
        kind = str(half).removeprefix("torch.")
        runs[f"ours, {kind}"] = our(copy.deepcopy(ours).to(half))
        runs[f"diffusers, {kind}"] = their(copy.deepcopy(peer).to(half))
    expected = runs["diffusers, float32"]()
    apart = (runs["ours, float32"]() - expected).abs().max() / expected.std()
    size = sum(p.numel() for p in peer.parameters()) / 1e6
    return Case(
        f"{name}, {size:.0f} M parameters, 2 x {side} x {side}", runs, "diffusers, float32",
        {"largest_difference_over_std": apart.item()},
    )  # fmt: skip


def stage_i(device: torch.device) -> Case:
    """DeepFloyd IF's first stage, IF-I-M."""
    return deepfloyd(STAGE_I, 64, device, "IF-I-M")


def stage_ii(device: torch.device) -> Case:
    """DeepFloyd IF's second stage, narrow."""
    return deepfloyd(STAGE_II, 128, device, "IF stage II's graph")


def stepper(
    loss_of: Callable[[], torch.Tensor],
    network: Any,
    optimizer: torch.optim.Optimizer | None = None,
    average: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """A step of training on those parameters that ask for gradients; by torch's AdamW where none is given."""
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        loss_of().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average()

    return step


def training(device: torch.device) -> Case:
    """A step of training a small network of stage I's graph: AdamW and an average of the weights."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    peer, ours = twins(SMALL, device)
    rows, side = 4, 64
    x0, noise = torch.rand(rows, 3, side, side) * 2 - 1, torch.randn(rows, 3, side, side)
    t, states = torch.rand(rows), torch.randn(rows, 77, 512)
    x0, noise, t, states = (each.to(device) for each in (x0, noise, t, states))
    text = core.TextEmbedding(states, torch.ones(rows, 77, dtype=torch.bool, device=device))
    stage = core.Stage(core.StageConfig("base", side, 1, ours.config, prediction="eps"), ours)
    noisy: Any = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    timesteps, half = (t * 1000).long(), half_of(device)

    def our_loss() -> torch.Tensor:
        return diffusion_loss(stage, x0, text, t, noise).mean()

    def their_loss() -> torch.Tensor:
        found = peer(noisy.add_noise(x0, noise, timesteps), timesteps, states).sample
        return F.mse_loss(found.float(), noise)

    average, theirs = EMA(ours, 0.999), EMAModel(peer.parameters(), decay=0.999)
    steps = {
        "ours": stepper(our_loss, ours, make_optimizer(ours, "adamw", 1e-4, 0.01),
                        lambda: average.update(ours)),
        "diffusers": stepper(their_loss, peer, average=lambda: theirs.step(peer.parameters())),
    }  # fmt: skip

    def run(step: Callable[[], None], dtype: torch.dtype | None) -> Callable[[], None]:
        def once() -> None:
            kind = torch.autocast(device.type, dtype, enabled=dtype is not None)
            with torch.enable_grad(), kind:
                step()

        return once

    runs = {f"{name}, float32": run(step, None) for name, step in steps.items()}
    if half is torch.bfloat16:
        runs |= {f"{name}, bfloat16 autocast": run(step, half) for name, step in steps.items()}
    size = sum(p.numel() for p in ours.parameters()) / 1e6
    about = f"one step of training, {size:.0f} M parameters, {rows} x {side} x {side}"
    return Case(about, runs, "diffusers, float32")


def memory(device: torch.device) -> Case:
    """The most that runs of bundled stages take beside their weights: predicted, and as the system says."""
    found: dict[str, int] = {}
    where = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    for run in RUNS_MEASURED:
        command = [sys.executable, str(Path(__file__).parent / "memory.py"), *run.split()]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=where)
        stage, rows, side, _, dtype = run.split()
        for kind, size in json.loads(done.stdout).items():
            found[f"{stage}, {dtype}, {rows} x {side} x {side}, {kind}"] = size
    measured = {name: lambda size=size: size / 1e6 for name, size in found.items()}
    return Case(
        "memory of a run beside the weights", {}, "", {}, measured, "MB", "highest resident size"
    )


def imagen_pytorch_unet() -> Any:
    """The class Unet of imagen-pytorch, without what only its training needs.

    Its package imports torchvision, kornia and a trainer, none of which the network uses.
    """
    import importlib.util

    found = importlib.util.find_spec("imagen_pytorch")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("imagen_pytorch", name="imagen_pytorch")
    absent = ("torchvision", "torchvision.transforms", "kornia", "kornia.augmentation")
    absent = [name for name in absent if name not in sys.modules]
    sys.modules |= {name: types.ModuleType(name) for name in absent}
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # pyright: ignore
    sys.modules["kornia"].augmentation = sys.modules["kornia.augmentation"]  # pyright: ignore
    package = types.ModuleType("imagen_pytorch")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["imagen_pytorch"] = package
    texts: Any = types.ModuleType("imagen_pytorch.t5")  # asks a server for T5's width on import
    texts.DEFAULT_T5_NAME, texts.t5_encode_text, texts.get_encoded_dim = "", None, lambda name: 1024
    sys.modules["imagen_pytorch.t5"] = texts
    from imagen_pytorch.imagen_pytorch import Unet  # pyright: ignore[reportMissingImports]

    for name in absent:
        del sys.modules[name]
    return Unet


def efficient(device: torch.device) -> Case:
    """The paper's 64 to 256 network at half its width, against imagen-pytorch's of the same widths."""
    config = core.EfficientConfig(
        stem_channels=64, channels=(64, 128, 256, 512), num_res_blocks=(2, 4, 8, 8),
        attention=(False, False, False, True), text_dim=1024, context_dim=512, time_dim=512,
    )  # fmt: skip
    ours: Any = build_unet(config).to(device)
    count = sum(p.numel() for p in ours.parameters())

    unet = imagen_pytorch_unet()

    def made(dim: int) -> Any:
        return unet(
            dim=dim, dim_mults=(1, 2, 4, 8), num_resnet_blocks=(2, 4, 8, 8), text_embed_dim=1024,
            layer_attns=(False, False, False, True), layer_cross_attns=(False, False, False, True),
            attn_heads=8, memory_efficient=True, lowres_cond=True,
        ).eval()  # fmt: skip

    def distance(dim: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in made(dim).parameters()) - count)

    peer = made(min(range(40, 97, 4), key=distance)).to(device)
    x, lowres = torch.randn(2, 1, 3, 128, 128, device=device)
    t, states = torch.full((1,), 0.5, device=device), torch.randn(1, 77, 1024, device=device)
    mask = torch.ones(1, 77, dtype=torch.bool, device=device)
    context = ours.prepare(core.TextEmbedding(states, mask))
    given = dict(text_embeds=states, text_mask=mask, lowres_cond_img=lowres, lowres_noise_times=t)
    runs = {
        "ours, float32": lambda: ours(x, 1000 * t, context, lowres, 1000 * t),
        "imagen-pytorch, float32": lambda: peer(x, t, **given),
    }
    theirs = sum(p.numel() for p in peer.parameters())
    return Case(
        f"Efficient U-Net, {count / 1e6:.0f} M parameters against {theirs / 1e6:.0f} M, 128 x 128",
        runs, "imagen-pytorch, float32",
    )  # fmt: skip


def t5(device: torch.device) -> Case:
    """T5 v1.1 base's shape, random weights, 77 tokens, against transformers."""
    from transformers import T5Config, T5EncoderModel

    folder = BUNDLED / "text_encoder"
    known = T5Config.from_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=known.vocab_size, d_model=768, d_kv=64, d_ff=2048, num_layers=12, num_heads=12,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    peer = T5EncoderModel(config).eval().to(device)  # pyright: ignore[reportArgumentType]
    with tempfile.TemporaryDirectory() as saved:
        peer.save_pretrained(saved)
        ours = core.load_text_encoder(saved, device=device, tokenizers=[folder])
    tokens = torch.randint(3, 300, (2, 77), device=device)
    mask = torch.ones_like(tokens)
    runs = {
        "ours, float32": lambda: ours.model(tokens, mask.bool()),
        "transformers, float32": lambda: peer(tokens, mask).last_hidden_state,
    }
    apart = (runs["ours, float32"]() - runs["transformers, float32"]()).abs().max().item()
    return Case("T5 v1.1 base, 2 x 77 tokens", runs, "transformers, float32", {"apart": apart})


def cascade(device: torch.device) -> Case:
    """The bundled cascade from text to 1024 x 1024."""
    runs: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, half_of(device)):
        if dtype is not None:
            made, kind = (
                core.load_cascade("emoji", device, dtype),
                str(dtype).removeprefix("torch."),
            )
            for quality in ("full", "fast"):
                runs[f"ours, {kind}, {quality}"] = lambda made=made, quality=quality: made.generate(
                    "a red apple, noto style", quality=quality
                )
    full, fast = runs["ours, float32, full"](), runs["ours, float32, fast"]()
    apart = (full - fast).square().mean().sqrt().item()
    return Case(
        "bundled cascade, text to 1024 x 1024", runs, "ours, float32, full", {"fast_rms": apart}
    )


def batches(device: torch.device) -> Case:
    """Sixteen prompts by the bundled base, in one batch and one by one."""
    prompts = [f"a {colour} {thing}" for colour in COLOURS for thing in THINGS]
    runs: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, half_of(device)):
        if dtype is not None:
            made: Any = core.load_cascade("emoji", device, dtype)
            kind = str(dtype).removeprefix("torch.")
            settings: dict[str, Any] = dict(upto=64, steps=4)

            def one_by_one(made: Any = made, settings: Any = settings) -> Any:
                return torch.cat(
                    [made.generate(prompts[i], seed=i, **settings) for i in range(len(prompts))]
                )

            runs[f"ours, {kind}, one by one"] = one_by_one
            runs[f"ours, {kind}, in one batch"] = lambda made=made, settings=settings: (
                made.generate(prompts, **settings)
            )
    alone, together = list(runs.values())[:2]
    apart = (alone() - together()).abs().max().item()
    return Case(
        "sixteen prompts by the bundled base, 4 steps, 64 x 64", runs, "ours, float32, one by one",
        {"largest_difference": apart},
    )  # fmt: skip


def start(device: torch.device) -> Case:
    """From the shell to the first step: CPU seconds of `imagen generate --upto 64 --steps 1`."""

    def measured() -> float:
        command = [sys.executable, "-m", "imagen_nodes", "generate", "a red apple", "--upto", "64"]
        kept = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # compiled once, as where people use it
        with tempfile.TemporaryDirectory() as folder:
            before = children()
            subprocess.run(
                [*command, "--steps", "1", "-o", f"{folder}/a.png"],
                check=True,
                capture_output=True,
                env=kept,
            )
            return children() - before

    return Case(
        "start: imagen generate, one step at 64 x 64",
        {},
        "",
        {},
        {"ours": measured},
        clock="CPU time of its process",
    )


def children() -> float:
    """CPU seconds of all processes that were waited for."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CASES: dict[str, Callable[[torch.device], Case]] = {
    "stage_i": stage_i,
    "stage_ii": stage_ii,
    "efficient": efficient,
    "t5": t5,
    "cascade": cascade,
    "batches": batches,
    "training": training,
    "memory": memory,
    "start": start,
}
