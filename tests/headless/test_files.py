"""Pictures on disk: what core nodes save and load, by ComfyUI's rules; nothing half-written."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes.headless.comfy_nodes import CORE_NODES, edit, load, png, save
from imagen_nodes.headless.comfy_nodes.folders import Folders, folders
from imagen_nodes.headless.engine.execute import NodeError, execute
from imagen_nodes.headless.formats.workflow import parse_api, read_workflow
from imagen_nodes.headless.graph import Link, Node


@pytest.fixture
def places(tmp_path):
    places = Folders(tmp_path / "in", tmp_path / "out", tmp_path / "temp")
    places.input.mkdir()
    token = folders.set(places)
    yield places
    folders.reset(token)


def run(class_type, **inputs):
    cls = CORE_NODES[class_type]
    return getattr(cls(), cls.FUNCTION)(**inputs)


def test_saved_pixels_are_truncated_and_numbered(places):
    picture = torch.tensor([0.0, 0.5, 0.9999, 1.0]).reshape(1, 2, 2, 1).expand(2, -1, -1, 3)
    ui = run("SaveImage", images=picture, filename_prefix="a/b")
    run("SaveImage", images=picture[:1], filename_prefix="a/b")
    assert [entry["filename"] for entry in ui["ui"]["images"]] == ["b_00001_.png", "b_00002_.png"]
    assert ui["ui"]["images"][0]["subfolder"] == "a"
    assert sorted(os.listdir(places.output / "a")) == [
        "b_00001_.png",
        "b_00002_.png",
        "b_00003_.png",
    ]
    pixels = np.asarray(Image.open(places.output / "a/b_00001_.png"))
    assert pixels[..., 0].flatten().tolist() == [0, 127, 254, 255]


def test_names_are_filled_in_and_numbered_as_comfyui_does(places, monkeypatch):
    monkeypatch.setattr(save.time, "localtime", lambda: (2026, 3, 4, 5, 6, 7, 0, 0, 0))
    prefix = "%width%x%height%/%year%%month%%day%-%hour%%minute%%second%_%batch_num%"
    ui = run("SaveImage", images=torch.zeros(2, 3, 5, 3), filename_prefix=prefix)
    names = [(entry["subfolder"], entry["filename"]) for entry in ui["ui"]["images"]]
    assert names == [
        ("5x3", "20260304-050607_0_00001_.png"),
        ("5x3", "20260304-050607_1_00002_.png"),
    ]
    for name in ("p_00007_.jpg", "p_00011.png", "pp_00020_.png", "p_x_00030_.png"):
        (places.output / name).write_bytes(b"")
    ui = run("SaveImage", images=torch.zeros(1, 3, 5, 3), filename_prefix="p")
    assert ui["ui"]["images"][0]["filename"] == "p_00008_.png"


def test_a_saved_picture_carries_the_graph_that_made_it(places):
    Image.new("RGB", (4, 4), "red").save(places.input / "x.png")
    graph = {
        "1": Node("1", "LoadImage", "Load", {"image": "x.png"}),
        "2": Node("2", "SaveImage", "Save", {"images": Link("1", 0), "filename_prefix": "p"}),
    }
    execute(graph, CORE_NODES)
    assert parse_api(read_workflow(places.output / "p_00001_.png")[0]) == graph


@pytest.mark.parametrize("prefix", ["../escape", "/tmp/escape", "a/../../escape"])
def test_names_do_not_leave_the_output_folder(places, prefix):
    with pytest.raises(ValueError, match="expected a name inside"):
        run("SaveImage", images=torch.zeros(1, 2, 2, 3), filename_prefix=prefix)


@pytest.mark.parametrize("prefix", ["", ".", "sub/.."])
def test_a_file_without_a_name_stays_in_the_folder_too(places, prefix):
    """Under the name that ComfyUI gives it."""
    ui = run("SaveImage", images=torch.zeros(1, 2, 2, 3), filename_prefix=prefix)
    assert ui["ui"]["images"][0] == {
        "filename": "._00001_.png",
        "subfolder": "",
        "type": "output",
    }
    assert [p.name for p in places.output.parent.rglob("*.png")] == ["._00001_.png"]
    assert (places.output / "._00001_.png").is_file()


def test_every_frame_of_the_first_ones_size_is_loaded(places):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(places.input / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    pixels, mask = run("LoadImage", image="a.webp")
    assert torch.equal(pixels[:, 0, 0], torch.eye(3))
    assert mask.shape[0] == 3
    deep = Image.fromarray(np.array([[0, 51 * 255]], np.int32), "I")
    deep.save(places.input / "deep.tiff")
    pixels, _ = run("LoadImage", image="deep.tiff")
    assert torch.allclose(pixels[0, 0, :, 0], torch.tensor([0.0, 0.2]))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "link.png", "../secret.png [output]"]
)
def test_names_do_not_leave_the_input_folder(places, name):
    secret = places.input.parent / "secret.png"
    Image.new("RGB", (2, 2)).save(secret)
    (places.input / "link.png").symlink_to(secret)
    answer = load.LoadImage.VALIDATE_INPUTS(name)
    assert "expected a name inside" in answer
    with pytest.raises(ValueError, match="expected a name inside"):
        run("LoadImage", image=name)


def test_transparency_becomes_a_mask(places):
    picture = np.zeros((2, 3, 4), np.uint8)
    picture[..., 0], picture[..., 3] = 255, 51
    Image.fromarray(picture, "RGBA").save(places.input / "a.png")
    pixels, mask = run("LoadImage", image="a.png")
    assert pixels.shape == (1, 2, 3, 3)
    assert torch.equal(pixels[..., 0], torch.ones(1, 2, 3))
    assert torch.allclose(mask, torch.full((1, 2, 3), 0.8))
    Image.new("RGB", (5, 5), "white").save(places.input / "b.png")
    pixels, mask = run("LoadImage", image="b.png")
    assert torch.equal(mask, torch.zeros(1, 64, 64))
    assert pixels.min() == 1
    (red,) = run("LoadImageMask", image="a.png", channel="red")
    (alpha,) = run("LoadImageMask", image="a.png", channel="alpha")
    assert red.min() == 1
    assert torch.allclose(alpha, torch.full((1, 2, 3), 0.8))


@pytest.mark.parametrize("method", edit.METHODS)
def test_scaling_keeps_a_flat_picture_and_gives_the_size(method):
    flat = torch.full((1, 8, 6, 3), 0.2)
    (scaled,) = run(
        "ImageScale", image=flat, upscale_method=method, width=9, height=4, crop="disabled"
    )
    assert scaled.shape == (1, 4, 9, 3)
    assert torch.allclose(scaled, torch.full_like(scaled, 0.2), atol=1e-2)


def test_a_side_of_zero_follows_the_other():
    image = torch.rand(1, 8, 6, 3)

    def scale(width, height):
        settings = {"upscale_method": "area", "crop": "disabled"}
        return run("ImageScale", image=image, width=width, height=height, **settings)[0].shape[1:3]

    assert scale(12, 0) == (16, 12)
    assert scale(0, 4) == (4, 3)
    assert scale(0, 0) == (8, 6)
    assert run("ImageScaleBy", image=image, upscale_method="area", scale_by=0.5)[0].shape[1:3] == (
        4,
        3,
    )


def test_cutting_the_centre_keeps_the_aspect_ratio():
    image = torch.zeros(1, 4, 8, 3)
    image[:, :, 2:6] = 1
    (cut,) = run("ImageScale", image=image, upscale_method="area", width=4, height=4, crop="center")
    assert torch.equal(cut, torch.ones(1, 4, 4, 3))


def test_cropping_and_batching():
    image = torch.arange(48.0).reshape(1, 4, 4, 3)
    (cut,) = run("ImageCrop", image=image, width=2, height=9, x=1, y=2)
    assert torch.equal(cut, image[:, 2:, 1:3])
    (both,) = run("ImageBatch", image1=image, image2=torch.rand(2, 8, 8, 3))
    assert both.shape == (3, 4, 4, 3)
    assert torch.equal(both[:1], image)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(places, monkeypatch, fault):
    def fail(self, file, **settings):
        Path(file).write_bytes(b"half a picture")
        raise fault

    monkeypatch.setattr(Image.Image, "save", fail)
    graph = {
        "1": Node("1", "LoadImage", "Load", {"image": "x.png"}),
        "2": Node("2", "SaveImage", "Save", {"images": Link("1", 0), "filename_prefix": "p"}),
    }
    Path(places.input / "x.png").write_bytes(PNG)
    expected = NodeError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        execute(graph, CORE_NODES)
    assert os.listdir(places.output) == []


def test_truncation_not_rounding():
    assert png.to_bytes(torch.tensor([0.9999, -1.0, 2.0])).tolist() == [254, 0, 255]


PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)
