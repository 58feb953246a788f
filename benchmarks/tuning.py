"""Fine-tuning: our steps against diffusers', and stage II's task against the one of other scripts.

    python benchmarks/tuning.py speed [--repeats N]
    python benchmarks/tuning.py task IMAGES_DIR [--steps N]

`speed` interleaves steps of a LoRA of IF's first stage, narrow, on equal weights and batches, in one process:
ours, and what diffusers' train_dreambooth_lora.py does in a step. Seconds are CPU time, since other work
may share the core. `task` tunes the bundled SR 256 twice, from the same start on the same batches: by its own
task, and by the one that shows it the noisy image twice; both are measured by the loss of its own task on
images that are held out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import BUNDLED, STAGE_I, stepper, twins

from imagen_nodes import imagen_core as core
from imagen_nodes.imagen_core.diffusion.lowres import Lowres
from imagen_nodes.imagen_core.diffusion.schedules import alpha_sigma
from imagen_nodes.imagen_core.training.data import Batch, Stream, add_noise
from imagen_nodes.imagen_core.training.folder import Folder, FolderMaker, read_folder
from imagen_nodes.imagen_core.training.loss import diffusion_loss
from imagen_nodes.imagen_core.training.recipe import DataSection, TuneSection
from imagen_nodes.imagen_core.training.tuning import prepare

NARROW: dict[str, Any] = STAGE_I | dict(
    block_out_channels=(64, 128, 192, 256), layers_per_block=2, cross_attention_dim=256
)
THEIR_TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
RANK, ROWS = 4, 4


def speed(repeats: int) -> None:
    """Print pictures a second of each, and how they compare."""
    import diffusers
    from peft import LoraConfig

    peer, unet = twins(NARROW, torch.device("cpu"))
    stage = core.Stage(core.StageConfig("base", 64, 1, unet.config, prediction="eps"), unet)
    tuned = prepare(stage, TuneSection(what="lora", rank=RANK, targets="attention"))
    peer.requires_grad_(False)
    peer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=THEIR_TARGETS))
    x0, noise = torch.rand(ROWS, 3, 64, 64) * 2 - 1, torch.randn(ROWS, 3, 64, 64)
    t, states = torch.rand(ROWS), torch.randn(ROWS, 77, 4096)
    text = core.TextEmbedding(states, torch.ones(ROWS, 77, dtype=torch.bool))
    noisy = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    timesteps = (t * 1000).long()

    def our_loss() -> torch.Tensor:
        return diffusion_loss(tuned, x0, text, t, noise, variance="keep").mean()

    def their_loss() -> torch.Tensor:
        x_t: Any = noisy.add_noise(x0, noise, timesteps)  # pyright: ignore[reportArgumentType]
        found = peer(x_t, timesteps, states, return_dict=False)[0]
        return F.mse_loss(found.chunk(2, dim=1)[0].float(), noise)

    steps = {"ours": stepper(our_loss, tuned.unet), "diffusers": stepper(their_loss, peer)}
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for precision in (torch.float32, torch.bfloat16):
            for name, step in steps.items():
                begun = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                    step()
                taken = time.process_time() - begun
                seconds.setdefault(f"{name}, {str(precision)[6:]}", []).append(taken)
    medians = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    size = sum(p.numel() for p in unet.parameters()) / 1e6
    print(f"{size:.0f} M parameters, LoRA of rank {RANK} on attention, {ROWS} x 64 x 64")
    for name, median in medians.items():
        ratio = medians["diffusers, float32"] / median
        print(f"| {name} | {ROWS / median:.2f} pictures a second | {ratio:.2f} |")


def noisy_twice(batch: Batch, stage: core.Stage) -> Batch:
    """A batch as other scripts have it: the noisy image in place of the small one, at its own level."""
    alpha_t, sigma_t = alpha_sigma(stage.schedule.logsnr(batch.t)[:, None, None, None])
    return batch._replace(lowres=Lowres(alpha_t * batch.x0 + sigma_t * batch.noise, 1000 * batch.t))


def task(folder: Path, steps: int) -> None:
    """Print the held-out loss before, and after each of the two tasks."""
    encoder = core.load_text_encoder(BUNDLED / "text_encoder")
    plain = core.load_stage(BUNDLED / "sr256.safetensors", dtype=torch.float32)
    section = DataSection(text_encoder="", crop=64)
    kept, held = read_folder(folder, 64).split(0.2)
    size, config = plain.config.resolution, plain.config

    def batches(part: Folder, random: bool, count: int, seed: int) -> list[Batch]:
        stream = Stream(FolderMaker(part.pictures, size, 64, random=random), encoder,
                        torch.device("cpu"), 0)  # fmt: skip
        drawn = stream.batches(section, config.scale, 8, seed, 0)
        return [
            add_noise(next(drawn), section, plain.schedule, config.scale, seed, i)
            for i in range(count)
        ]

    measured, trained = batches(held, False, 12, 1), batches(kept, True, steps, 0)

    @torch.no_grad()
    def held_out(stage: core.Stage) -> float:
        losses = [diffusion_loss(stage, *batch).mean().item() for batch in measured]
        return statistics.mean(losses)

    print(f"{len(kept.pictures)} images, {len(held.pictures)} held out, {steps} steps of 8")
    print(f"| as it was | {held_out(plain):.5f} |")
    for name, change in {
        "its own task": lambda batch: batch,
        "noisy twice": lambda batch: noisy_twice(batch, plain),
    }.items():
        torch.manual_seed(0)
        tuned = prepare(plain, TuneSection(what="lora"))
        weights = [p for p in tuned.unet.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-3)
        for batch in trained:
            diffusion_loss(tuned, *change(batch)).mean().backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        print(f"| {name} | {held_out(tuned):.5f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sub = parser.add_subparsers(dest="what", required=True)
    sub.add_parser("speed").add_argument("--repeats", type=int, default=5)
    tasks = sub.add_parser("task")
    tasks.add_argument("images", type=Path, help="folder of images with captions")
    tasks.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "speed":
        speed(args.repeats)
    else:
        task(args.images, args.steps)


if __name__ == "__main__":
    main()
