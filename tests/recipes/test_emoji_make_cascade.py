"""The command that makes the whole cascade, on a few steps and a few drawings."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import make_cascade
import numpy as np
import pytest
from colours import dominant_colour

from imagen_nodes.imagen_core import PRESETS, load_cascade
from imagen_nodes.imagen_core.training.recipe import load_recipe


@pytest.fixture
def data(tmp_path):
    """What fetch.py and sprites.py would have left."""
    folder = tmp_path / "data" / "sprites"
    folder.mkdir(parents=True)
    y, x = np.mgrid[:1024, :1024] / 1024 - 0.5
    sprite = np.zeros((1024, 1024, 4), np.uint8)
    sprite[x**2 + y**2 < 0.2] = (200, 30, 30, 255)
    rows = [
        {"row": i, "large": i, "style": "flat", "name": name, "group": "food", "kind": "food-fruit",
         "captions": [[name, 1.0]], "split": "train", "colour": dominant_colour(sprite)}
        for i, name in enumerate(("apple", "cherry"))
    ]  # fmt: skip
    for side in (1024, 256, 128, 64):
        small = sprite[:: 1024 // side, :: 1024 // side]
        np.save(folder / f"sprites_{side}.npy", np.stack([small, small]))
    (folder / "sprites.json").write_text(json.dumps(rows))
    return folder.parent


@pytest.fixture
def small_networks(monkeypatch):
    """The recipes, each with a network that a step takes no time with."""

    def load(path):
        recipe = load_recipe(path)
        kind = f"tiny-{recipe.stage.kind}"
        shape = replace(PRESETS[kind], text_dim=256)
        large = recipe.stage.grow_from or recipe.stage.start_from
        name = f"{kind}-256" + ("-grown" if large else "")
        if large:
            levels = {"channels": 16, "num_res_blocks": 0, "attention": False}
            shape = replace(shape, **{k: (v, *getattr(shape, k)) for k, v in levels.items()})
        monkeypatch.setitem(PRESETS, name, shape)
        residual = {"prediction": "v"} if recipe.stage.kind == "sr" else {}
        return replace(recipe, stage=replace(recipe.stage, preset=name, **residual))

    monkeypatch.setattr(make_cascade, "load_recipe", load)


def test_one_command_makes_a_cascade_that_loads_and_samples(
    data, tmp_path, monkeypatch, small_networks
):
    monkeypatch.setattr(make_cascade, "fetch", lambda folder: [])
    out = tmp_path / "mine"
    command = ["make_cascade.py", str(data), str(out), "--machine", "cpu", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", command)
    make_cascade.main()
    log = data / "runs/cpu/base64/log.jsonl"
    assert json.loads(log.read_text().splitlines()[-1])["step"] == 1
    cascade = load_cascade(out)
    images = cascade.generate("an apple", upto=256, steps=1)
    assert images.shape == (1, 256, 256, 3)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_the_recipes_follow_each_other(machine):
    made = set()
    for part in make_cascade.PARTS[machine]:
        recipe = load_recipe(make_cascade.HERE / machine / f"{part}.toml")
        assert recipe.stage.preset in PRESETS
        assert recipe.run.minutes > 0
        assert {recipe.stage.start_from, recipe.stage.grow_from} - {""} <= made, part
        made.add(str(Path(recipe.run.out) / "stage.safetensors"))


def test_a_gpu_makes_the_cascade_in_25_minutes():
    parts = [make_cascade.HERE / "gpu" / f"{part}.toml" for part in make_cascade.PARTS["gpu"]]
    assert sum(load_recipe(part).run.minutes for part in parts) <= 24
