"""Picture files of every kind that people have, whole and damaged, none beyond memory."""

import io
import os
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from imagen_nodes.files import replacing
from imagen_nodes.headless.comfy_nodes import (
    ImageBatch,
    ImageScale,
    ImageScaleBy,
    LoadImage,
    LoadImageMask,
    SaveImage,
    edit,
    pictures,
)
from imagen_nodes.headless.comfy_nodes.folders import Folders, folders
from imagen_nodes.headless.png_chunks import SIGNATURE, picture_alone


@pytest.fixture(autouse=True)
def place(tmp_path):
    token = folders.set(Folders(tmp_path, tmp_path / "out", tmp_path / "temp"))
    yield tmp_path
    folders.reset(token)


def load(name):
    return LoadImage().load(name)


def chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def noise(height=200, width=200):
    return np.random.default_rng(0).integers(1, 255, (height, width, 3), dtype=np.uint8)


# --- depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["g.png", "little.tiff", "big.tiff"])
def test_grey_of_16_bits_keeps_its_levels(place, name):
    ramp = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
    if name == "big.tiff":
        picture = Image.frombytes("I;16B", (64, 64), ramp.astype(">u2").tobytes())
    else:
        picture = Image.fromarray(ramp)
    picture.save(place / name)
    pixels, mask = load(name)
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    assert torch.allclose(pixels[0, ..., 1], expected, atol=1e-4)
    assert torch.equal(mask, torch.zeros(1, 64, 64))
    (red,) = LoadImageMask().load(name, "red")
    assert torch.allclose(red[0], expected, atol=1e-4)
    assert LoadImageMask().load(name, "alpha")[0].max() == 0


@pytest.mark.parametrize("highest", [1.0, 255.0])
def test_grey_of_floats_keeps_its_levels(place, highest):
    ramp = np.linspace(0, highest, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(ramp).save(place / "f.tiff")
    expected = torch.from_numpy(ramp / highest)
    assert torch.allclose(load("f.tiff")[0][0, ..., 0], expected)
    assert torch.allclose(LoadImageMask().load("f.tiff", "blue")[0][0], expected)


# --- alpha ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("RGB", "RGBA"), ("RGBA", "RGB")])
def test_a_page_without_alpha_among_others_has_an_empty_mask(place, order):
    first, second = (Image.new(mode, (32, 24), (0, 255, 0, 51)[: len(mode)]) for mode in order)
    first.save(place / "p.tiff", save_all=True, append_images=[second])
    pixels, mask = load("p.tiff")
    assert pixels.shape == (2, 24, 32, 3)
    expected = [0.8 if mode == "RGBA" else 0.0 for mode in order]
    assert torch.allclose(mask, torch.tensor(expected)[:, None, None].expand(2, 24, 32))


def test_a_transparent_frame_among_opaque_ones_is_masked(place):
    pictures_of_it = [np.full((8, 8, 4), 255, np.uint8) for _ in range(3)]
    pictures_of_it[1][:, :4] = 0
    pictures_of_it[2][..., 0] = 7
    frames = [Image.fromarray(each, "RGBA") for each in pictures_of_it]
    frames[0].save(place / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    pages = [frames[0].convert("RGB"), frames[1], frames[2].convert("RGB")]
    pages[0].save(place / "a.tiff", save_all=True, append_images=pages[1:])
    for name in ("a.webp", "a.tiff"):
        pixels, mask = load(name)
        assert pixels.shape[0] == 3
        assert mask[:, 0].tolist() == [[0] * 8, [1] * 4 + [0] * 4, [0] * 8]


def test_a_colour_that_is_transparent_counts_in_the_mask_node(place):
    picture = Image.new("RGB", (4, 4), "red")
    picture.paste((0, 0, 255), (0, 0, 2, 4))
    picture.save(place / "t.png", transparency=(255, 0, 0))
    assert LoadImageMask().load("t.png", "alpha")[0][0, 0].tolist() == [0, 0, 1, 1]


# --- damaged -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"), [("c.jpg", -300), ("c.png", -3000), ("c.bmp", 90_000), ("c.gif", -4000)]
)
def test_a_picture_that_is_cut_off_is_read_as_far_as_it_goes(place, name, kept):
    whole = Image.fromarray(noise())
    whole.save(place / name)
    expected = load(name)[0]
    data = (place / name).read_bytes()
    (place / name).write_bytes(data[:kept])
    pixels, _ = load(name)
    assert pixels.shape == (1, 200, 200, 3)
    same = (pixels == expected)[0].all(-1).all(-1)
    rows = range(100, 200) if name == "c.bmp" else range(100)  # BMP begins at the bottom
    assert all(same[row] for row in rows)
    assert not same.all()
    assert LoadImageMask().load(name, "red")[0].shape == (1, 200, 200)


def test_an_animation_that_is_cut_off_keeps_its_first_frames(place):
    frames = [Image.fromarray(noise(40, 40) // (1 + i)) for i in range(4)]
    frames[0].save(place / "a.gif", save_all=True, append_images=frames[1:])
    expected = load("a.gif")[0]
    data = (place / "a.gif").read_bytes()
    (place / "a.gif").write_bytes(data[: int(len(data) * 0.6)])
    pixels, _ = load("a.gif")
    assert 2 <= len(pixels) < 4
    assert torch.equal(pixels[0], expected[0])


@pytest.mark.parametrize("kept", [0, 10, 40])
def test_a_picture_of_which_nothing_is_left_is_named(place, kept):
    Image.fromarray(noise()).save(place / "c.png")
    (place / "c.png").write_bytes((place / "c.png").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"c\.png: .*whole image"):
        load("c.png")


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_png_carries_beside_its_pixels_does_not_matter(place, kind, damaged):
    heavy = zlib.compress(b"x" * 20_000_000, 1)
    body = {
        b"tEXt": b"note\0" + b"x" * 3_000_000,
        b"zTXt": b"note\0\0" + heavy,
        b"iTXt": b"note\0\1\0\0\0" + heavy,
        b"iCCP": b"p\0\0" + heavy,
    }[kind]
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    extra = chunk(kind, body)
    if damaged:
        extra = extra[:-4] + b"\0\0\0\0"  # its checksum
    (place / "p.png").write_bytes(data[:33] + extra + data[33:])
    started = time.monotonic()
    assert torch.equal(load("p.png")[0][0], torch.from_numpy(noise(8, 8)).float() / 255)
    assert time.monotonic() - started < 1


def test_how_a_png_is_turned_is_kept(place):
    wide = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(place / "t.png", exif=exif)
    assert load("t.png")[0].shape == (1, 8, 4, 3)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    wide.save(place / "x.png", pnginfo=info)
    assert load("x.png")[0].shape == (1, 8, 4, 3)


def test_a_png_without_extras_is_left_as_it_is():
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).convert("P").save(buffer, "PNG", transparency=3)
    assert picture_alone(buffer.getvalue()) == buffer.getvalue()
    assert picture_alone(SIGNATURE + b"cut") == SIGNATURE + b"cut"


# --- hostile -------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{ } loop\nshowpage\n"


@pytest.mark.parametrize("name", ["loop.png", "loop.jpg", "loop.eps"])
def test_only_formats_that_are_meant_are_opened(place, monkeypatch, name):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("it ran"))
    (place / name).write_bytes(EPS)
    for call in (lambda: load(name), lambda: LoadImageMask().load(name, "red")):
        with pytest.raises(ValueError, match="expected a whole image in one of the formats PNG"):
            call()


@pytest.mark.parametrize("ending", ["pcx", "ppm", "tga", "ico", "psd", "pdf"])
def test_other_formats_are_refused_whatever_their_name(place, ending):
    if ending == "psd":
        (place / "x.png").write_bytes(b"8BPS\0\1" + b"\0" * 60)
    else:
        Image.new("RGB", (8, 8)).save(place / f"x.{ending}")
        (place / f"x.{ending}").rename(place / "x.png")
    with pytest.raises(ValueError, match="one of the formats"):
        load("x.png")


@pytest.mark.parametrize(("size", "frames"), [((300, 200), 300), ((8200, 8200), 1)])
@pytest.mark.parametrize("ending", ["gif", "tiff"])
def test_pixels_times_frames_are_bounded_before_one_is_decoded(
    place, monkeypatch, ending, size, frames
):
    if frames > 1:
        monkeypatch.setattr(pictures, "MOST_PIXELS", 10**7)
    one = Image.new("L", size)
    settings = {"compression": "tiff_lzw"} if ending == "tiff" else {"optimize": False}
    others = [Image.new("L", size, 1 + i % 2) for i in range(frames - 1)]
    one.save(place / f"b.{ending}", save_all=True, append_images=others, **settings)
    monkeypatch.setattr(pictures, "read_frame", lambda *a: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=rf"got {frames} of {size[0]} x {size[1]}; make it"):
        load(f"b.{ending}")


def test_a_png_that_only_says_that_it_is_huge_is_refused(place):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    (place / "h.png").write_bytes(data + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"h\.png: too large"):
        load("h.png")


def test_an_animation_is_decoded_frame_by_frame(place, monkeypatch):
    frames = [Image.new("RGB", (16, 16), (i, 0, 0)) for i in range(20)]
    frames[0].save(place / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    alive, most = 0, 0
    original = pictures.read_frame

    class Counted(torch.Tensor):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def counted(*arguments):
        nonlocal alive, most
        levels, alpha, whole = original(*arguments)
        alive += 1
        most = max(most, alive)
        return levels.as_subclass(Counted), alpha, whole

    monkeypatch.setattr(pictures, "read_frame", counted)
    pixels, _ = load("a.webp")
    assert pixels.shape == (20, 16, 16, 3)
    assert most <= 3


# --- thin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", edit.METHODS)
@pytest.mark.parametrize("size", [(40, 1), (1, 40), (1, 1), (2, 90)])
def test_a_thin_picture_keeps_at_least_a_row_and_a_column(method, size):
    thin = torch.full((1, *size, 3), 0.5)
    for width, height in ((64, 64), (64, 2), (1, 64)):
        (scaled,) = ImageScale().upscale(thin, method, width, height, "center")
        assert scaled.shape == (1, height, width, 3)
        assert torch.allclose(scaled, torch.full_like(scaled, 0.5), atol=1e-2)
    (small,) = ImageScaleBy().upscale(thin, method, 0.01)
    assert small.shape == (1, 1, 1, 3)
    (both,) = ImageBatch().batch(torch.rand(1, 7, 9, 3), thin)
    assert both.shape == (2, 7, 9, 3)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "x" * 236,
        "\U0001f34e" * 60,
        "x" * 300,
        "\u00e9" * 200,
        "d" * 300 + "/" + "x" * 300,
        "\ud800",
    ],
)
def test_long_names_are_shortened_to_what_fits(place, prefix):
    assert SaveImage.VALIDATE_INPUTS(prefix) is True
    for _ in range(2):
        saved = SaveImage().save(torch.zeros(2, 2, 2, 3), prefix)["ui"]["images"]
        for entry in saved:
            path = place / "out" / entry["subfolder"] / entry["filename"]
            assert path.is_file()
            assert len(os.fsencode(path.name)) <= 255
    found = [path for path in (place / "out").rglob("*") if path.is_file()]
    assert len(found) == 4
    if prefix in ("x" * 236, "\U0001f34e" * 60):
        assert all(path.name.startswith(prefix) for path in found)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [("a\0b", "without NUL"), ("d/" * 3000 + "x", "at most 4000 bytes"), ("../x", "inside")],
)
def test_names_that_no_file_can_have_are_refused_before_anything_runs(prefix, message):
    assert message in SaveImage.VALIDATE_INPUTS(prefix)


@pytest.mark.parametrize("name", ["x" * 255, "\U0001f34e" * 63])
def test_a_name_that_fits_is_written_although_its_temporary_would_not_fit(place, name):
    with replacing(place / name) as temporary:
        temporary.write_bytes(b"1")
        assert temporary.parent == place
    assert os.listdir(place) == [name]
