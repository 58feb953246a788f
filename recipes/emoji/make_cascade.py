"""The whole emoji cascade from its packages, with one command.

    python recipes/emoji/make_cascade.py DATA_DIR OUT_DIR --machine gpu|cpu [--steps N --batch N]

Fetches what is missing, draws the drawings, trains the recipes of the machine one after another (each
goes on from its last checkpoint) and puts stages and text encoder into OUT_DIR as a cascade that loaders
take. --steps and --batch try the path: every recipe then trains so few steps of so few pictures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compose import Drawings
from fetch import fetch
from train import maker

from imagen_nodes.imagen_core.training.loop import train
from imagen_nodes.imagen_core.training.recipe import Recipe, load_recipe

HERE = Path(__file__).parent
PARTS = {
    "cpu": ("base32", "base64", "base64_end", "sr256", "sr1024"),
    "gpu": ("base32", "base64", "sr256", "sr1024"),
}
LARGE = {"cpu": 800, "gpu": 3000}  # drawings at 1024


def draw(data: Path, large: int) -> Path:
    """The folder of drawings; made where it is not there yet."""
    sprites = data / "sprites"
    if not (sprites / "sprites.json").is_file():
        command = [sys.executable, HERE / "sprites.py", data, sprites, "--large", str(large)]
        subprocess.run(command, check=True)
    return sprites


def shortened(recipe: Recipe, runs: Path, part: str, steps: int, batch: int) -> Recipe:
    """A recipe whose run lies in `runs` and, where steps is not 0, is that short."""
    start = {}
    for key in ("start_from", "grow_from"):
        if before := getattr(recipe.stage, key):  # …/runs/cpu-base32/stage.safetensors
            start[key] = str(
                runs / Path(before).parent.name.partition("-")[2] / "stage.safetensors"
            )
    run = replace(recipe.run, out=str(runs / part))
    if steps:
        run = replace(run, steps=steps, minutes=0.0, batch=batch, compile=False)
    return replace(recipe, stage=replace(recipe.stage, **start), run=run)


def assemble(runs: Path, parts: Sequence[str], text_encoder: Path, out: Path, name: str) -> Path:
    """Stages and text encoder in one folder, with the cascade.json that names them.

    parts   in the order of their training: of a stage that has several the last one counts
    """
    out.mkdir(parents=True, exist_ok=True)
    stages = {"base" if part.startswith("base") else part: part for part in parts}
    for stage, part in stages.items():
        shutil.copyfile(runs / part / "stage.safetensors", out / f"{stage}.safetensors")
    shutil.copytree(text_encoder, out / "text_encoder", dirs_exist_ok=True)
    files = {stage: f"{stage}.safetensors" for stage in stages}
    described = {"name": name, "text_encoder": "text_encoder", **files}
    part = out / "cascade.json.part"
    part.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    part.replace(out / "cascade.json")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder for packages, drawings and runs")
    parser.add_argument("out", type=Path, help="folder for the finished cascade")
    parser.add_argument("--machine", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--steps", type=int, default=0, help="try the path: steps of each recipe")
    parser.add_argument("--batch", type=int, default=2, help="with --steps: pictures a step")
    args = parser.parse_args()
    fetch(args.data)
    drawings = Drawings(draw(args.data, LARGE[args.machine]))
    runs = args.data / "runs" / args.machine
    for part in PARTS[args.machine]:
        recipe = load_recipe(HERE / args.machine / f"{part}.toml")
        recipe = shortened(recipe, runs, part, args.steps, args.batch)
        print(part, train(recipe, maker(recipe, drawings)), flush=True)
    encoder = Path(recipe.data.text_encoder)
    print(assemble(runs, PARTS[args.machine], encoder, args.out, args.out.name))


if __name__ == "__main__":
    main()
