"""`imagen batch` with the bundled cascade: rows share evaluations, and the images stay the same."""

import contextvars
import functools
import gc
import json

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes.cli.main import main
from imagen_nodes.cli.node_classes import default_registry, use_folders
from imagen_nodes.headless.comfy_nodes.folders import Folders
from imagen_nodes.headless.engine.execute import Session
from imagen_nodes.headless.engine.validate import validate
from imagen_nodes.headless.formats.workflow import parse_api
from imagen_nodes.imagen_core.text import encoder
from imagen_nodes.nodes.sampling import ImagenBaseSample

GRAPH = {
    "1": {"class_type": "ImagenLoadCascade", "inputs": {"cascade": "emoji", "dtype": "float32"}},
    "2": {
        "class_type": "ImagenT5Encode",
        "inputs": {"text_encoder": ["1", 0], "prompt": "a red apple", "negative_prompt": ""},
    },
    "3": {
        "class_type": "ImagenBaseSample",
        "inputs": {
            **{"stage": ["1", 1], "text": ["2", 0], "width": 64, "height": 64, "batch_size": 1},
            **{"seed": 0, "steps": 2, "sampler": "auto", "strength": 1.0},
        },
    },
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "p"}},
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The pictures of a batch by key, and how many of them each call of the sampling node made."""
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    names = [
        "a rocket",
        "a cat face",
        "a house",
        "{a pizza|a fish}",
        "a cat face",
        "{a pizza|a fish}",
    ]
    lines = [{"id": f"k{n}", "prompt": name} for n, name in enumerate(names)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    calls, sample = [], ImagenBaseSample.sample

    @functools.wraps(sample)
    def watched(self, **inputs):
        calls.append(inputs["batch_size"])
        return sample(self, **inputs)

    monkeypatch.setattr(ImagenBaseSample, "sample", watched)

    def made(at_once):
        calls.clear()
        out = tmp_path / f"out{at_once}"
        arguments = [
            "--workflow",
            str(tmp_path / "w.json"),
            "-o",
            str(out),
            "--at-once",
            str(at_once),
        ]
        assert main(["batch", str(tmp_path / "p.jsonl"), *arguments]) == 0
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        assert all("ImagenBaseSample" in line["nodes"] for line in lines)
        pixels = {
            line["key"]: np.asarray(Image.open(out / line["files"][0]), np.int16) for line in lines
        }
        return pixels, list(calls)

    return made


def test_rows_share_evaluations_and_images_stay_the_same(made):
    together, calls = made(3)
    assert calls == [3, 3]  # whatever of a group was encoded before
    alone, calls = made(1)
    assert calls == [1] * 6
    assert together.keys() == alone.keys()
    for key, pixels in alone.items():
        assert np.abs(together[key] - pixels).max() <= 1
        assert pixels.std() > 20


def alive():
    """How many objects there are, and bytes of tensors."""
    gc.collect()
    objects = gc.get_objects()
    return len(objects), sum(each.nbytes for each in objects if type(each) is torch.Tensor)


def test_what_a_session_keeps_does_not_grow_with_its_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "CACHE_BYTES", 64 << 10)  # two prompts
    session, kept = Session(default_registry()), []

    def work():
        use_folders(Folders(tmp_path, tmp_path, tmp_path / "temp"))
        for n in range(6):
            inputs = {"2": {"prompt": f"apple {n}"}, "3": {"seed": n, "steps": 1}}
            changed = {
                key: {**node, "inputs": {**node["inputs"], **inputs.get(key, {})}}
                for key, node in GRAPH.items()
            }
            graph = parse_api(changed)
            session.run(graph, validate(graph, session.registry))
            kept.append(alive())

    contextvars.copy_context().run(work)
    assert len(list(tmp_path.glob("*.png"))) == 6
    (first, tensors), (last, tensors_at_end) = kept[2], kept[-1]
    assert last - first < 10, kept
    assert tensors_at_end == tensors, kept
