"""Whole runs on a few pictures: the loss falls, logs appear, and a killed run goes on exactly."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imagen_nodes.imagen_core import load_stage
from imagen_nodes.imagen_core.training import checkpoint
from imagen_nodes.imagen_core.training.loop import train
from imagen_nodes.imagen_core.training.recipe import parse_recipe

RUN = """
import json, sys, torch
from pathlib import Path
from imagen_nodes.imagen_core.training.loop import train
from imagen_nodes.imagen_core.training.recipe import parse_recipe
torch.set_num_threads(1)
train(parse_recipe(json.loads(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.fixture
def folder(tmp_path, t5_folder):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    names = ("a red apple", "a dog", "a blue heart", "a hill")
    entries = [{"captions": [[name, 0.7], [name[2:], 0.3]], "weight": 1.0} for name in names]
    (tmp_path / "manifest.json").write_text(json.dumps({"pictures": entries}))
    (tmp_path / "t5").symlink_to(t5_folder)
    return tmp_path


def recipe(out, kind="base", optimizer="adamw", **run):
    stage = {"preset": f"tiny-{kind}", "kind": kind, "resolution": 16}
    stage["scale"] = 4 if kind == "sr" else 1
    return {
        "stage": stage,
        "data": {"images": "images.npy", "manifest": "manifest.json", "text_encoder": "t5"},
        "optim": {"warmup_steps": 3, "lr": 2e-3, "ema_decay": 0.9, "optimizer": optimizer},
        "run": {"out": out, "batch": 8, "log_every": 5, **run},
    }


@pytest.mark.parametrize(
    ("kind", "optimizer", "share"), [("base", "adamw", 0.7), ("sr", "muon", 0.9)]
)
def test_a_run_lowers_the_loss_and_leaves_a_stage_and_logs(folder, kind, optimizer, share):
    path = train(parse_recipe(recipe("run", kind, optimizer, steps=60), folder))
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < share * lines[0]["loss"]
    assert lines[-1]["step"] == 60
    assert {"lr", "grad_norm", "images_per_second"} <= lines[0].keys()
    assert list((folder / "run/events").glob("events.out.tfevents.*"))
    stage = load_stage(path)
    assert stage.dtype == torch.float16
    assert stage.config.kind == kind


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(folder):
    weights = []
    for name, parts in (("whole", 1), ("parts", 2)):
        train(parse_recipe(recipe(name, steps=1, accumulation=parts), folder))
        weights.append(load_file(folder / name / "checkpoint/weights.safetensors"))
    for key, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][key], atol=1e-4), key


def test_a_stage_can_start_from_another(folder):
    first = train(parse_recipe(recipe("first", steps=2), folder))
    data = recipe("second", steps=2)
    data["stage"]["start_from"] = str(first)
    second = train(parse_recipe(data, folder))
    before, after = load_stage(first).unet.state_dict(), load_stage(second).unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    data["stage"]["preset"] = "emoji-small-base64"
    data["run"]["out"] = "third"
    with pytest.raises(ValueError, match=r"stage\.start_from: expected a network of preset"):
        train(parse_recipe(data, folder))


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_killed_run_resumed_is_the_uninterrupted_run(folder, optimizer):
    def start(out):
        data = recipe(out, optimizer=optimizer, steps=40, save_every=10)
        arguments = [sys.executable, "-c", RUN, json.dumps(data), str(folder)]
        return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole = start("whole")
    killed = start("killed")
    deadline = time.monotonic() + 120
    while not (folder / "killed/checkpoint/progress.json").exists():
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = start("killed")
    assert resumed.wait(120) == 0, resumed.stderr.read()
    assert whole.wait(120) == 0, whole.stderr.read()
    for process in (whole, resumed):
        process.stderr.close()
    for name in ("checkpoint/weights", "checkpoint/ema", "checkpoint/optimizer", "stage"):
        expected = load_file(folder / f"whole/{name}.safetensors")
        found = load_file(folder / f"killed/{name}.safetensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def test_an_interrupted_checkpoint_leaves_the_one_before(folder, monkeypatch):
    data = recipe("run", steps=4, save_every=2)
    real, calls = checkpoint.save_file, []

    def fails_at_the_second(tensors, path):
        calls.append(path)
        if len(calls) > 4:
            raise KeyboardInterrupt
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", fails_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(parse_recipe(data, folder))
    progress = json.loads((folder / "run/checkpoint/progress.json").read_text())
    assert progress["step"] == 2
    monkeypatch.setattr(checkpoint, "save_file", real)
    train(parse_recipe(data, folder))
    assert json.loads((folder / "run/checkpoint/progress.json").read_text())["step"] == 4
