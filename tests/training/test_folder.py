"""A folder of pictures as training data: captions, formats, windows, masks, what is skipped."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes.imagen_core import load_text_encoder
from imagen_nodes.imagen_core.training.data import Prompts, Stream, add_noise
from imagen_nodes.imagen_core.training.folder import (
    FolderMaker,
    Mixed,
    Picture,
    bucket_of,
    cut,
    open_rgb,
    read_folder,
)
from imagen_nodes.imagen_core.training.recipe import DataSection, RecipeError

CPU = torch.device("cpu")


def draw(path, colour="red", size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def captions(folder):
    return {p.path.rsplit("/", 1)[-1]: p.captions for p in folder.pictures}


def test_captions_come_from_files_metadata_folders_and_names(tmp_path):
    draw(tmp_path / "a.png", "red")
    (tmp_path / "a.txt").write_text("a red square\na square\n")
    draw(tmp_path / "b.jpg", "green")
    (tmp_path / "b.caption").write_text("a green one")
    draw(tmp_path / "10_blue thing/c.png", "blue")
    draw(tmp_path / "blue-heart_012.webp", "cyan")
    draw(tmp_path / "sub/d.png", "yellow")
    draw(tmp_path / "sub/e.png", "black")
    (tmp_path / "sub/metadata.jsonl").write_text(
        json.dumps({"file_name": "d.png", "text": ["yellow", "gold"]})
    )
    draw(tmp_path / "csv/f.png", "white")
    (tmp_path / "csv/metadata.csv").write_text('file_name,caption\nf.png,"white, all of it"\n')
    folder = read_folder(tmp_path)
    assert captions(folder) == {
        "a.png": ("a red square", "a square"),
        "b.jpg": ("a green one",),
        "c.png": ("blue thing",),
        "blue-heart_012.webp": ("blue heart",),
        "d.png": ("yellow", "gold"),
        "e.png": ("e",),
        "f.png": ("white, all of it",),
    }
    assert {p.weight for p in folder.pictures if "10_" in p.path} == {10.0}
    with_trigger = read_folder(tmp_path, trigger="sks style")
    assert captions(with_trigger)["b.jpg"] == ("sks style, a green one",)


def test_archives_of_webdataset_are_read_picture_by_picture(tmp_path):
    writer = pytest.importorskip("webdataset").ShardWriter
    (tmp_path / "shards").mkdir()
    images = {name: Image.new("RGB", (40, 32), name) for name in ("red", "green", "blue", "gray")}
    with writer(f"{tmp_path}/shards/%03d.tar", maxcount=2, verbose=0) as shards:
        shards.write({"__key__": "red_one", "png": images["red"], "txt": "red\nof one colour"})
        shards.write({"__key__": "b/green", "png": images["green"], "json": {"caption": "leaf"}})
        shards.write({"__key__": "blue-heart_02", "png": images["blue"]})
        shards.write({"__key__": "broken", "png": b"no picture", "txt": "x"})
    draw(tmp_path / "gray.png", "gray")
    folder = read_folder(tmp_path, trigger="new")
    texts = ("new, gray", "new, leaf", "new, red", "new, blue heart")
    assert {p.captions[0] for p in folder.pictures} == set(texts)
    assert [path.rpartition("::")[2] for path, _ in folder.skipped] == ["broken.png"]
    colours = {p.captions[0]: open_rgb(p.path).getpixel((1, 1)) for p in folder.pictures}
    assert colours["new, leaf"] == (0, 128, 0) and colours["new, blue heart"] == (0, 0, 255)
    (tmp_path / "x.tar").write_bytes(b"not an archive" * 99)
    with pytest.raises(RecipeError, match=r"x\.tar: expected an uncompressed tar file"):
        read_folder(tmp_path)


def test_damaged_tiny_and_double_files_are_listed_once(tmp_path):
    draw(tmp_path / "a.png", "red")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "c.jpg")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:900])
    (tmp_path / "d.png").write_text("no picture")
    draw(tmp_path / "e.png", "blue", (40, 7))
    folder = read_folder(tmp_path, least=8)
    assert [p.path[-5:] for p in folder.pictures] == ["a.png"]
    reasons = {path[-5:]: reason for path, reason in folder.skipped}
    assert reasons["b.png"] == "the same file as a.png"
    assert reasons["c.jpg"].startswith("cannot be read")
    assert reasons["d.png"].startswith("cannot be read")
    assert reasons["e.png"] == "too small: 40 x 7, at least 8 is needed"
    assert len(folder.skipped) == 4
    with pytest.raises(RecipeError, match=r"data\.folder: .*found none; all 5 were skipped"):
        read_folder(tmp_path, least=99)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"text": "x"}', "line 2: file_name: expected a file's name, got None"),
        ('{"file_name": "a.png"}', "line 2: text: expected a caption or a list, got None"),
        ('{"file_name": "z.png", "text": "x"}', r"line 2: file_name: z.png: no such file"),
    ],
)
def test_a_mistake_in_metadata_names_file_line_and_key(tmp_path, line, message):
    draw(tmp_path / "a.png")
    good = json.dumps({"file_name": "a.png", "text": "x"})
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(RecipeError, match=rf"metadata\.jsonl: {message}"):
        read_folder(tmp_path)


def test_every_format_becomes_upright_rgb(tmp_path):
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2] = (255, 0, 0, 255)
    Image.fromarray(clear).save(tmp_path / "alpha.png")
    found = np.asarray(open_rgb(str(tmp_path / "alpha.png"), "blue"))
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[3, 3].tolist() == [0, 0, 255]
    levels = np.array([[0, 32768], [65535, 16384]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert np.asarray(open_rgb(str(tmp_path / "deep.png")))[..., 0].tolist() == [
        [0, 127],
        [255, 63],
    ]
    draw(tmp_path / "ink.jpg", (0, 255, 255, 0), mode="CMYK")
    red, green, _ = np.asarray(open_rgb(str(tmp_path / "ink.jpg")))[0, 0]
    assert red > 200 > 60 > green
    sideways = Image.new("RGB", (8, 4), "red")
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "turned.jpg", exif=exif)
    assert open_rgb(str(tmp_path / "turned.jpg")).size == (4, 8)
    (picture,) = [p for p in read_folder(tmp_path).pictures if "turned" in p.path]
    assert picture.size == (4, 8)


def halves(tmp_path, size=(64, 32)):
    """Left black, right white."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 :] = 255
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return read_folder(tmp_path).pictures


def test_windows_fill_the_size_and_lie_where_they_are_told(tmp_path):
    pictures = halves(tmp_path)
    middle, _ = FolderMaker(pictures, 16, random=False)(np.random.default_rng(0))
    assert middle.shape == (16, 16, 3)
    assert middle[:, :6].max() < 20
    assert middle[:, 10:].min() > 235
    means = {FolderMaker(pictures, 16)(np.random.default_rng(i))[0].mean() > 128 for i in range(9)}
    assert means == {True, False}
    window, _ = FolderMaker(pictures, 32, crop=8)(np.random.default_rng(1))
    assert window.shape == (8, 8, 3)
    assert (
        len(np.unique(window)) == 1
    )  # a quarter of the height, of one colour: not the whole picture


def test_buckets_keep_the_aspect_ratio_and_a_batch_has_one(tmp_path):
    assert bucket_of((100, 100), 64) == (64, 64)
    wide, tall = bucket_of((200, 100), 64), bucket_of((100, 200), 64)
    assert wide[0] / wide[1] == pytest.approx(2, abs=0.3)
    assert tall == wide[::-1]
    draw(tmp_path / "a.png", "red", (80, 40))
    draw(tmp_path / "b.png", "blue", (40, 40))
    maker = FolderMaker(read_folder(tmp_path).pictures, 32, buckets=True)
    shapes = set()
    for seed in range(12):
        batch = maker.batch(np.random.default_rng(seed), 3)
        assert len({pixels.shape for pixels, _ in batch}) == 1
        shapes.add(batch[0][0].shape[:2])
    assert shapes == {(32, 32), bucket_of((80, 40), 32)[::-1]}


def test_mixed_images_keep_their_aspect_ratios_too(tmp_path):
    makers = []
    for name, size in (("own", (80, 40)), ("other", (40, 80))):
        (tmp_path / name).mkdir()
        draw(tmp_path / name / f"{name}.png", "red", size)
        makers.append(FolderMaker(read_folder(tmp_path / name).pictures, 32, buckets=True))
    mixed, seen = Mixed(*makers, 0.5), []
    for seed in range(40):
        batch = mixed.batch(np.random.default_rng(seed), 3)
        seen += {(caption, pixels.shape[:2]) for pixels, caption in batch}
    wide = bucket_of((80, 40), 32)
    assert set(seen) == {("own", wide[::-1]), ("other", wide)}
    assert len(seen) == 40  # each batch is of one size
    assert 10 < sum(caption == "other" for caption, _ in seen) < 30


def test_a_mask_is_the_fourth_channel_and_no_picture(tmp_path, t5_folder):
    pictures = halves(tmp_path)
    Image.fromarray(np.asarray(open_rgb(pictures[0].path))).save(tmp_path / "halves_mask.png")
    draw(tmp_path / "plain.png", "red", (64, 32))
    found = read_folder(tmp_path).pictures
    assert len(found) == 2
    maker = FolderMaker(found, 16, random=False)
    seen = {caption: pixels for pixels, caption in map(maker, map(np.random.default_rng, range(9)))}
    assert np.array_equal(seen["halves"][..., 3], seen["halves"][..., 0])
    assert (seen["plain"][..., 3] == 255).all()
    stream = Stream(maker, load_text_encoder(t5_folder), CPU, 0)
    section = DataSection("t5")
    drawn = next(stream.batches(section, 1, 4, 0, 0))
    from imagen_nodes.imagen_core import Schedule

    batch = add_noise(drawn, section, Schedule(), 1, 0, 0)
    assert batch.x0.shape == (4, 3, 16, 16)
    assert batch.weight is not None
    assert batch.weight.shape == (4, 1, 16, 16)
    assert batch.weight.max() == 1


def test_a_mask_is_found_by_its_name_whatever_that_holds(tmp_path):
    for name in ("cat [1]", "_mask", "sub/_mask"):
        draw(tmp_path / f"{name}.png", name and "red", (len(name) + 16, 20))
    draw(tmp_path / "cat [1]_mask.png", "white", (23, 20))
    (tmp_path / "cat [1]_mask.txt").write_text("a caption of a mask")
    draw(tmp_path / "sub.png", "blue")
    masks = {p.path.removeprefix(f"{tmp_path}/"): p.mask for p in read_folder(tmp_path).pictures}
    assert masks.pop("cat [1].png") == str(tmp_path / "cat [1]_mask.png")
    assert masks == {"_mask.png": "", "sub/_mask.png": "", "sub.png": ""}


def test_colons_in_names_are_no_places_in_archives(tmp_path):
    draw(tmp_path / "a::b/c::d.png", "red")
    with tarfile.open(tmp_path / "a::b" / "e::f.tar", "w") as archive:
        archive.add(draw(tmp_path / "blue.png", "blue"), "x/12:30 noon.png")
    (tmp_path / "blue.png").unlink()
    found = read_folder(tmp_path)
    assert not found.skipped
    colours = {p.captions: open_rgb(p.path).getpixel((1, 1)) for p in found.pictures}
    assert colours == {("c::d",): (255, 0, 0), ("12:30 noon",): (0, 0, 255)}


def test_what_is_held_out_depends_on_names_alone():
    pictures = tuple(Picture(f"/x/{i}.png", ("a",), 1.0, "", (8, 8)) for i in range(400))
    folder = read_folder.__globals__["Folder"](pictures, ())
    used, held = folder.split(0.25)
    assert 70 < len(held.pictures) < 130
    again, _ = read_folder.__globals__["Folder"](pictures[::-1], ()).split(0.25)
    assert set(again.pictures) == set(used.pictures)
    assert not set(used.pictures) & set(held.pictures)


def test_a_part_of_the_pictures_is_the_second_folders(tmp_path):
    one = FolderMaker(read_folder(draw(tmp_path / "one/a.png").parent).pictures, 8)
    two = FolderMaker(read_folder(draw(tmp_path / "two/b.png", "blue").parent).pictures, 8)
    names = [Mixed(one, two, 0.25)(np.random.default_rng(i))[1] for i in range(400)]
    assert 70 < names.count("b") < 130


def test_prompts_on_disk_serve_the_next_run_with_the_same_encoder(tmp_path, t5_folder, monkeypatch):
    encoder = load_text_encoder(t5_folder)
    first = Prompts(encoder, kept=tmp_path).encode(["a red apple", "a dog"])
    asked = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: asked.extend(texts) or encode(texts))
    again = Prompts(encoder, kept=tmp_path)
    asked.clear()
    assert torch.equal(again.encode(["a dog", "a red apple"]).embeds, first.embeds.flip(0))
    assert asked == []
    again.encode(["a hill"])
    assert asked == ["a hill"]
    other = load_text_encoder(t5_folder)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.5)
    assert Prompts(other, kept=tmp_path).states == {}


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    blobs.resize((640, 480), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    assert open_rgb(str(tmp_path / "a.jpg"), least=128).size == (320, 240)
    whole = open_rgb(str(tmp_path / "a.jpg"))
    (picture,) = read_folder(tmp_path).pictures
    made, _ = FolderMaker((picture,), 64, random=False)(rng)
    expected = np.asarray(cut(whole, (64, 64), (0.5, 0.5), 0))
    assert np.abs(made.astype(int) - expected).mean() < 1.5
