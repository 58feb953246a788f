"""What the nodes show: the stages over each other, the threshold step by step, the filmstrip."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.nodes import host
from imagen_nodes.nodes.trace import Watch, shown_steps

SHOW = NODE_CLASS_MAPPINGS["ImagenCascadeView"]().show


@pytest.fixture
def temp(tmp_path):
    token = host.temporary.set(tmp_path / "temp")
    yield tmp_path / "temp"
    host.temporary.reset(token)


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """A ComfyUI that has a temporary folder, and nothing else."""
    paths = SimpleNamespace(get_temp_directory=lambda: str(tmp_path / "comfy"))
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    return tmp_path / "comfy"


def test_a_grey_picture_is_shown_and_one_of_no_numbers_explained(temp):
    (stage,) = SHOW(image_64=torch.full((1, 8, 8, 1), 0.5))["ui"]["imagen_view"]
    assert Image.open(temp / stage["images"][0]["filename"]).getpixel((0, 0)) == (127, 127, 127)
    with pytest.raises(ValueError, match=r"Cascade View: image_256: has values that are not"):
        SHOW(image_256=torch.full((1, 8, 8, 3), float("nan")))


def test_each_stage_is_shown_with_its_size_and_every_picture_of_its_batch(temp):
    small, large = torch.rand(2, 8, 8, 3), torch.rand(2, 32, 16, 4)
    ui = SHOW(image_64=small, image_1024=large)["ui"]
    stages = [(s["stage"], s["width"], s["height"], len(s["images"])) for s in ui["imagen_view"]]
    assert stages == [("8", 8, 8, 2), ("32", 16, 32, 2)]
    assert ui["images"] == ui["imagen_view"][0]["images"] + ui["imagen_view"][1]["images"]
    assert len({file["filename"] for file in ui["images"]}) == 4
    opened = Image.open(temp / ui["images"][2]["filename"])
    assert opened.size == (16, 32)
    assert abs(int(np.asarray(opened)[5, 3, 1]) - 255 * large[0, 5, 3, 1]) <= 1
    assert sorted(path.name for path in temp.iterdir()) == sorted(
        file["filename"] for file in ui["images"]
    ), "nothing unfinished is left"


def test_a_bypassed_stage_s_picture_is_shown_once_and_by_its_own_size(temp):
    """A bypassed SR 1024 hands the 256 on: nothing is called 1024 that is not."""
    small, middle = torch.rand(1, 8, 8, 3), torch.rand(1, 32, 32, 3)
    ui = SHOW(image_64=small, image_256=middle, image_1024=middle)["ui"]
    assert [stage["stage"] for stage in ui["imagen_view"]] == ["8", "32"]


def test_the_same_picture_keeps_its_name(temp):
    picture = torch.rand(1, 8, 8, 3)
    assert SHOW(image_64=picture) == SHOW(image_64=picture.clone())


def test_a_view_of_nothing_says_what_to_connect():
    with pytest.raises(ValueError, match="at least one of image_64, image_256 and image_1024"):
        SHOW()


def test_in_comfyui_its_temporary_folder_is_used(comfy):
    file = SHOW(image_256=torch.zeros(1, 8, 8, 3))["ui"]["images"][0]
    assert file["type"] == "temp"
    assert (comfy / file["filename"]).is_file()


def test_nobody_is_told_anything_in_a_shell(temp):
    watch = Watch()
    assert set(watch.part(0)) == {"on_step"}
    assert isinstance(watch.result(torch.zeros(1, 8, 8, 3)), tuple)
    assert not temp.exists()


def steps(watch, first, batch, bound, monkeypatch):
    monkeypatch.setattr(host, "progress", lambda: lambda step, num_steps, x0: None)
    part = watch.part(first)
    for step in range(3):
        x0 = torch.full((batch, 3, 16, 32), step / 2)
        part["trace"].record(step, 2 * x0, torch.full((batch,), bound))
        part["on_step"](step + 1, 3, x0)


def test_parts_are_joined_and_a_retry_begins_anew(comfy, monkeypatch):
    watch = Watch()
    steps(watch, 0, 4, 9.0, monkeypatch)  # out of memory in the second half
    for first, bound in ((0, 1.0), (2, 1.5)):
        steps(watch, first, 2, bound, monkeypatch)
    returned = watch.result(torch.zeros(4, 16, 32, 3))
    (shown,) = returned["ui"]["imagen_trace"]
    assert shown["threshold"] == [[1.0, 1.0, 1.5, 1.5]] * 3
    assert shown["clipped"] == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    strip = Image.open(comfy / shown["strip"]["filename"])
    assert shown["frames"] == 3
    assert (shown["width"], shown["height"]) == (32, 16)
    assert 0 <= shown["seconds"] < 60
    assert strip.size == (3 * 64, 32)
    assert np.asarray(strip)[5, [5, 70, 190], 0].tolist() == [127, 191, 255]


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_null_for_the_interface(comfy, monkeypatch, bound):
    watch = Watch()
    steps(watch, 0, 2, bound, monkeypatch)
    watch.traces[0].record(1, torch.full((2, 3, 16, 32), float("nan")), torch.ones(2))
    returned = watch.result(torch.zeros(2, 16, 32, 3))
    (shown,) = returned["ui"]["imagen_trace"]
    text = json.dumps(shown, allow_nan=False)
    assert json.loads(text)["threshold"] == [[None, None], [1, 1], [None, None]]


@pytest.mark.parametrize("num_steps", [1, 2, 12, 13, 32, 1000])
def test_the_filmstrip_ends_with_the_last_step(num_steps):
    shown = shown_steps(num_steps)
    assert max(shown) == num_steps
    assert len(shown) == min(8, num_steps)
    assert min(shown) >= 1
