"""The pictures of the documents: how tools/node_pictures.py makes a screenshot small."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]


def window():
    """Two palettes beside each other, with thin lines of many colours and a button."""
    picture = Image.linear_gradient("L").resize((640, 400)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 320, 400), "#202020")
    for i in range(40):
        draw.line((0, 10 * i, 320, 10 * i), (40 + i, 60 + 2 * i, 70 + 3 * i))
    draw.ellipse((400, 100, 600, 300), "#e02010")
    draw.rectangle((500, 10, 600, 40), "#1090f0")
    draw.text((520, 15), "Run", "white")
    draw.line((0, 0, 640, 400), "#f2d16b")
    return picture


def test_a_small_picture_has_the_colours_of_the_screenshot(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from node_pictures import small

    picture = window()
    data = small(picture, 100_000)
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(shown - np.asarray(picture)).max() <= 8
    assert len(small(picture, len(data) - 1)) < len(data)
