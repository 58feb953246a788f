import dataclasses
import json

import numpy as np
import pytest
from captions import build_manifest
from render import SIZES, box_average, check_holdout, choose_large, draw_raster, render
from sources import RASTER_SET, Drawings, Names

pytest.importorskip("resvg_py")
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")


def square(colour: str, side: int = 16) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
        f'<rect width="{side}" height="{side}" fill="{colour}"/></svg>'
    )


def webp(colour: str | tuple[int, ...], size=(256, 256)) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGBA", size, colour).save(file, "webp", lossless=True)
    return file.getvalue()


@pytest.fixture
def sets():
    vector = {colour: square(colour) for colour in COLOURS}
    # Other text, same pixels: a leak that only the rendering shows.
    vector["leak"] = square("#ff0000") + "\n"
    return {
        "noto": Drawings(vector, {}),
        RASTER_SET: Drawings({"1f534": webp("maroon"), "1f535": webp("navy")}, {}),
    }


def test_render_keeps_the_holdout_out_and_sizes_consistent(sets, tmp_path):
    holdout = {"noto": ["red"], RASTER_SET: ["1f535"]}
    pictures = build_manifest(sets, Names([]), holdout)
    manifest = render(pictures, sets, holdout, tmp_path, large_count=5, workers=1)
    rows = manifest["pictures"]
    assert {row["key"] for row in rows} == {*COLOURS[1:], "1f534"}
    assert [row["key"] for row in manifest["skipped"]] == ["leak"]
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written == json.loads(json.dumps(manifest))
    small, medium = (np.load(tmp_path / f"images_{s}.npy", mmap_mode="r") for s in SIZES)
    large = np.load(tmp_path / "images_1024.npy", mmap_mode="r")
    assert small.shape == (6, 64, 64, 3)
    assert medium.shape == (6, 256, 256, 3)
    assert not list(tmp_path.glob("*.part"))
    used = [row["large"] for row in rows if row["large"] is not None]
    assert sorted(used) == list(range(len(large))) and used
    for i, row in enumerate(rows):
        assert row["vector"] == (row["set"] == "noto")
        assert row["vector"] or row["large"] is None
        np.testing.assert_array_equal(box_average(medium[i], 64), small[i])
        if row["large"] is not None:
            np.testing.assert_array_equal(box_average(large[row["large"]], 256), medium[i])
    blue = next(i for i, row in enumerate(rows) if row["key"] == "blue")
    assert small[blue, 4, 4].tolist() == [0, 0, 255]
    assert small[blue, 60, 60].tolist() == [255, 255, 255]


def test_a_held_out_row_is_noticed(sets):
    row = {"set": "noto", "key": "red"}
    holdout = {"noto": [], RASTER_SET: []}
    check_holdout({"pictures": [row]}, sets, holdout)
    with pytest.raises(RuntimeError, match="noto/red"):
        check_holdout({"pictures": [row]}, sets, {**holdout, "noto": ["red"]})


def test_box_average_is_the_rounded_mean():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    exact = image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(box_average(image, 16), np.floor(exact + 0.5))
    assert box_average(np.full((64, 64, 3), 255, np.uint8), 4).min() == 255
    with pytest.raises(ValueError, match="24"):
        box_average(image, 24)


def test_raster_pictures_are_laid_on_white_and_squared():
    image = draw_raster(webp((0, 0, 0, 0), (256, 264)), 256)
    assert image.shape == (256, 256, 3)
    assert image.min() == 255


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (5, 2), (100, 7)])
def test_the_large_subset_never_takes_raster_pictures(sets, count, expected):
    pictures = build_manifest(sets, Names([]), {"noto": [], RASTER_SET: []})
    chosen = choose_large(pictures, count)
    assert len(chosen) == expected
    assert all(pictures[i].set == "noto" for i in chosen)
    assert chosen == choose_large(pictures, count)


def test_the_large_subset_prefers_heavy_pictures(sets):
    pictures = build_manifest(sets, Names([]), {"noto": [], RASTER_SET: []})
    heavy = next(i for i, p in enumerate(pictures) if p.key == "teal")
    pictures[heavy] = dataclasses.replace(pictures[heavy], weight=1e6)
    draws = [choose_large(pictures, 2, seed) for seed in range(50)]
    assert sum(heavy in chosen for chosen in draws) == 50
