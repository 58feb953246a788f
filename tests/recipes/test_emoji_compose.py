"""Scenes say what they show, and never what is held out."""

import json
from collections import Counter

import compose
import numpy as np
import pytest
from colours import COLOURS, dominant_colour, from_oklab, name_of, recolour, to_oklab

NAMES = {"apple": "food", "fox": "animals", "box": "objects", "rocket": "travel"}
KINDS = {
    "apple": "food-fruit",
    "fox": "animal-mammal",
    "box": "household",
    "rocket": "transport-air",
}


def disc(rgb, side=256):
    """A disc of a colour, a white dot right of its centre."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    sprite = np.zeros((side, side, 4), np.uint8)
    sprite[x**2 + y**2 < 0.2] = (*rgb, 255)
    sprite[(x - 0.3) ** 2 + y**2 < 0.005] = 255
    return sprite


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sprites")
    rows, sprites = [], []
    for style in ("flat", "noto"):
        for name, group in NAMES.items():
            sprite = disc((200, 30, 30))
            captions = [[name, 0.4], [f"{name}, {style} style", 0.6]]
            rows.append(
                {"row": len(rows), "style": style, "name": name, "group": group, "kind": KINDS[name],
                 "captions": captions, "split": "train", "colour": dominant_colour(sprite)}
            )  # fmt: skip
            sprites.append(sprite)
    for side in (256, 128, 64):
        step = 256 // side
        np.save(folder / f"sprites_{side}.npy", np.stack(sprites)[:, ::step, ::step])
    (folder / "sprites.json").write_text(json.dumps(rows))
    return compose.Drawings(folder)


@pytest.fixture(scope="module")
def scenes(drawings):
    return compose.Scenes(drawings)


def many(scenes, kind, count=400):
    rng = np.random.default_rng(3)
    return [scenes.make[kind](rng) for _ in range(count)]


def test_oklab_inverts_and_knows_its_white():
    rgb = np.random.default_rng(0).random((100, 3)).astype(np.float32)
    assert np.allclose(from_oklab(to_oklab(rgb)), rgb, atol=2e-3)
    assert np.allclose(to_oklab(np.ones((1, 3), np.float32)), [[1, 0, 0]], atol=2e-3)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_recoloured_drawing_has_the_colour_of_the_word_and_keeps_its_white(colour):
    sprite = disc((200, 30, 30))
    changed = recolour(sprite, dominant_colour(sprite), colour)
    found = dominant_colour(changed)
    assert found is not None
    assert name_of(found["lightness"], found["chroma"], found["hue"]) == colour
    white = (sprite[..., :3] == 255).all(-1) & (sprite[..., 3] == 255)
    assert (changed[white][:, :3] > 250).all()
    assert np.array_equal(changed[..., 3], sprite[..., 3])


def test_a_drawing_of_many_colours_has_no_dominant_one():
    halves = disc((200, 30, 30))
    halves[:, :128, :3] = (30, 60, 200)
    assert dominant_colour(halves) is None


def test_held_out_pairs_are_a_tenth_and_never_drawn(scenes):
    names = [f"thing {i}" for i in range(500)]
    held = [compose.held_out("colour", name, colour) for name in names for colour in COLOURS]
    assert np.mean(held) == pytest.approx(0.1, abs=0.02)
    for kind in ("colour", "ground", "colour and ground"):
        for scene in many(scenes, kind):
            for what in ("colour", "ground"):
                if what in scene.facts:
                    assert not compose.held_out(what, scene.facts["thing"], scene.facts[what])


def test_what_a_caption_says_is_in_the_picture(scenes, drawings):
    for scene in many(scenes, "count", 60):
        picture = drawings.render(scene, 64)
        assert scene.caption.startswith(compose.NUMBERS[scene.facts["count"]])
        assert islands(picture) == scene.facts["count"]
    for scene in many(scenes, "place", 60):
        y, x = np.nonzero((drawings.render(scene, 64) < 240).any(-1))
        where = scene.facts["place"]
        assert where in scene.caption
        assert ("left" not in where) or x.mean() < 26
        assert ("right" not in where) or x.mean() > 38
        assert ("top" not in where) or y.mean() < 26
    for scene in many(scenes, "ground", 60):
        corner = drawings.render(scene, 64)[0, 0] / np.float32(255)
        lightness, a, b = to_oklab(corner[None])[0]
        word = scene.facts["ground"]
        assert f"on a {word} background" in scene.caption
        if word in COLOURS:
            assert name_of(lightness, np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360) == word


def test_pairs_stand_as_the_caption_says(scenes):
    relations = Counter()
    for scene in many(scenes, "pair"):
        first, second = scene.pieces
        relation = scene.facts["relation"]
        relations[relation] += 1
        assert f" {relation} " in scene.caption
        (x, y), (u, v) = first.centre, second.centre
        if relation != "and":
            assert {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[relation]
    assert set(relations) == set(compose.RELATIONS)


def test_a_scene_is_the_same_picture_at_every_side(scenes, drawings):
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = scenes.draw(rng)
        large = drawings.render(scene, 256).reshape(64, 4, 64, 4, 3).mean((1, 3))
        assert np.abs(large - drawings.render(scene, 64)).mean() < 6


def islands(picture):
    """Connected dark areas."""
    left = {tuple(p) for p in np.argwhere((picture < 240).any(-1))}
    count = 0
    while left:
        count += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
    return count


def test_a_window_is_that_part_of_the_whole(scenes, drawings):
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = scenes.draw(rng)
        whole = drawings.render(scene, 256).astype(int)
        left, top = (int(v) for v in rng.integers(0, 192, 2))
        part = drawings.render(scene, 256, (left, top, 64, 64)).astype(int)
        assert np.abs(part - whole[top : top + 64, left : left + 64]).mean() < 0.5


def test_the_held_out_pairs_are_those_that_are_listed():
    listed = compose.CONCEPTS.with_name("held_out_pairs.tsv").read_text("utf-8").splitlines()
    assert [tuple(line.split("\t")) for line in listed] == compose.held_out_pairs()
    share = len(listed) / (len(compose.concepts()) * (2 * len(COLOURS) + len(compose.GREYS)))
    assert 0.09 < share < 0.11


def test_most_draws_are_of_the_listed_concepts():
    names = compose.concepts()
    assert "fox" in names and "no such thing" not in names
    row = {"name": "fox", "group": "animals"}
    other = {"name": "no such thing", "group": "animals"}
    assert compose._weight(row) == compose.CONCEPT_WEIGHT * compose._weight(other)
