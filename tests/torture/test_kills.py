"""kill -9 at any moment: no half file, nothing lost, nothing twice, the same bytes at the end."""

import functools
import hashlib
import json
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from imagen_nodes.imagen_core import PRESETS, Stage, StageConfig, save_stage

BUNDLED = Path(__file__).parents[2] / "imagen_core" / "pretrained" / "emoji"
GRAPH = {
    "1": {"class_type": "Slow", "inputs": {"seed": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
}


def killed_until_done(start, chance, command, longest, whole, kills, made=lambda: False):
    """Start a command again and again, kill it at a random time, until it ends by itself; kills that hit.

    made   whether what the command makes is there, after which it does not run again
    """
    hits = 0
    while True:
        child = start(*command)
        if hits < kills:
            time.sleep(chance.uniform(0, longest))
            child.kill()
        code = child.wait()
        whole()
        if code == 0:
            return hits
        assert code == -signal.SIGKILL, child.said()
        hits += 1
        if made():
            return hits


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    lines = [{"id": f"k{n}", "Slow.seed": 1000 + n, "label": n % 3} for n in range(90)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def command(out, *more):
        paths = [
            "batch",
            tmp_path / "p.jsonl",
            "--workflow",
            tmp_path / "w.json",
            "-o",
            tmp_path / out,
        ]
        return [*paths, *more]

    return command


def members(out):
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                assert member.name not in found, "twice"
                found[member.name] = archive.extractfile(member).read()
    return found


def contents(out):
    """Pictures by name: those of archives, and those that are loose."""
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.png")}
    return {**found, **{n: data for n, data in members(out).items() if n.endswith(".png")}}


def check_whole(out):
    for path in out.rglob("*.png") if out.is_dir() else ():
        if not any(part.endswith(".writing") for part in path.relative_to(out).parts):
            with Image.open(path) as picture:
                picture.load()
    members(out)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    ["files", pytest.param("imagefolder", marks=SLOW), pytest.param("webdataset", marks=SLOW)],
)
def test_killed_batches(start, chance, rows, tmp_path, much, unfinished, kind):
    more = ["--format", kind, "--shard-size", "20"]
    assert start(*rows("whole", *more)).wait() == 0
    expected = contents(tmp_path / "whole")
    assert len(expected) == 90
    hits = campaign = 0
    while hits < much:
        out = tmp_path / f"out{campaign}"
        command = rows(out.name, *more)
        left = much - hits
        hits += killed_until_done(
            start, chance, command, 2.5, functools.partial(check_whole, out), left
        )
        assert contents(out) == expected
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        done = [line for line in lines if line.get("state") == "done"]
        assert len({line["key"] for line in done}) == 90
        assert len(done) == 90, "a key was recorded twice"
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()}
        assert (
            kind == "webdataset"
            or {n: s for d in done for n, s in zip(d["files"], d["sha256"], strict=True)} == sums
        )
        assert unfinished(out) == []
        assert kind != "imagefolder" or len((out / "metadata.jsonl").read_text().splitlines()) == 90
        shutil.rmtree(out)
        campaign += 1


def test_killed_conversions(start, chance, tmp_path, much, unfinished):
    source = BUNDLED / "sr256.safetensors"
    assert (
        start("convert", source, tmp_path / "whole.safetensors", "--layout", "imagen").wait() == 0
    )
    expected = (tmp_path / "whole.safetensors").read_bytes()
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "stage.safetensors"

    def whole():
        assert not target.exists() or target.read_bytes() == expected

    for _ in range(much):
        command = ["convert", source, target, "--layout", "imagen"]
        killed_until_done(start, chance, command, 0.4, whole, 1, target.exists)
        assert target.read_bytes() == expected
        assert unfinished(folder) == []
        target.unlink()


@pytest.mark.slow
def test_killed_generations(start, chance, tmp_path, much, unfinished):
    more = ["--upto", "64", "--steps", "2", "--dtype", "float32"]
    assert start("generate", "a rocket", "-o", tmp_path / "whole.png", *more).wait() == 0
    expected = (tmp_path / "whole.png").read_bytes()
    folder = tmp_path / "out"
    folder.mkdir()

    def whole():
        files = [path for path in folder.iterdir() if not path.name.endswith(".writing")]
        assert all(path.read_bytes() == expected for path in files)

    for _ in range(much):
        command = ["generate", "a rocket", "-o", folder / "x.png", *more]
        killed_until_done(start, chance, command, 3.0, whole, 1)
        assert [path.name for path in folder.iterdir()] == ["x.png"]
        (folder / "x.png").unlink()


TABLES = {
    "stage": """
[stage]
preset = "tiny-base"
kind = "base"
resolution = 16
scale = 1
[data]
images = "images.npy"
manifest = "manifest.json"
text_encoder = "t5"
""",
    "lora": """
[stage]
start_from = "base.safetensors"
[data]
folder = "pictures"
text_encoder = "t5"
workers = 0
[tune]
what = "lora"
rank = 4
""",
}


@pytest.fixture
def recipe(tmp_path, t5_folder):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    names = ("a red apple", "a dog", "a blue heart", "a hill")
    entries = [{"captions": [[name, 1.0]], "weight": 1.0} for name in names]
    (tmp_path / "manifest.json").write_text(json.dumps({"pictures": entries}))
    (tmp_path / "t5").symlink_to(t5_folder)
    (tmp_path / "pictures").mkdir()
    for name, pixels in zip(names, np.load(tmp_path / "images.npy"), strict=True):
        Image.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
    save_stage(
        Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"])), tmp_path / "base.safetensors"
    )

    def recipe(out, kind):
        text = f"""{TABLES[kind]}
[optim]
warmup_steps = 3
lr = 2e-3
ema_decay = 0.9
[run]
out = "{out}"
batch = 8
steps = 40
save_every = 5
log_every = 5
"""
        (tmp_path / f"{out}.toml").write_text(text)
        return tmp_path / f"{out}.toml"

    return recipe


def stages(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(TABLES))
def test_killed_trainings(start, chance, recipe, tmp_path, much, kind):
    assert start("train", recipe("whole", kind)).wait() == 0
    expected = stages(tmp_path / "whole")
    assert expected
    hits = campaign = 0
    while hits < much:
        out = tmp_path / f"run{campaign}"

        def whole(out=out):
            """A stage is written with each checkpoint; it may be an earlier one, but no half."""
            for path in out.glob("*.safetensors"):
                assert load_file(path).keys() == load_file(tmp_path / "whole" / path.name).keys()

        hits += killed_until_done(
            start, chance, ["train", recipe(out.name, kind)], 4.0, whole, much - hits
        )
        assert stages(out) == expected
        shutil.rmtree(out)
        campaign += 1
