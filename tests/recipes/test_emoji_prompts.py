"""The prompts that measure the cascade say what their real pictures show; the judge sees nothing held out."""

import itertools
import json

import compose
import judge
import numpy as np
import pytest
import torch
from colours import dominant_colour
from prompts import Cases

from imagen_nodes.imagen_core.evaluation.evaluate import seen
from imagen_nodes.imagen_core.evaluation.judge import JudgeConfig
from imagen_nodes.imagen_core.evaluation.scenes import of_things

THINGS = {
    "red apple": ("food", "food-fruit"),
    "fox": ("animals", "animal-mammal"),
    "pizza": ("food", "food-prepared"),
    "house": ("travel", "place-building"),
    "castle": ("travel", "place-building"),
}
COLOURS = ((200, 30, 30), (60, 90, 220), (230, 200, 40), (30, 150, 60), (240, 140, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Drawings of five things in three styles: a square each, of another colour and size."""
    folder = tmp_path_factory.mktemp("sprites")
    rows, sprites = [], []
    for style in ("flat", "noto", "openmoji"):
        for (name, (group, kind)), rgb in zip(THINGS.items(), COLOURS, strict=True):
            sprite = np.zeros((256, 256, 4), np.uint8)
            edge = 30 + 10 * len(sprites) % 40
            sprite[edge : 256 - edge, 40:216] = (*rgb, 255)
            held = (style, name) == ("noto", "fox")
            split = "other" if style == "openmoji" else "heldout" if held else "train"
            rows.append(
                {"row": len(rows), "style": style, "name": name, "group": group, "kind": kind,
                 "captions": [[name, 0.5], [f"{name}, {style} style", 0.5]], "split": split,
                 "colour": dominant_colour(sprite)}
            )  # fmt: skip
            sprites.append(sprite)
    for side in (256, 128, 64):
        step = 256 // side
        np.save(folder / f"sprites_{side}.npy", np.stack(sprites)[:, ::step, ::step])
    (folder / "sprites.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def cases(folder):
    return Cases(compose.Drawings(folder), 9)


def test_real_pictures_show_what_their_prompts_say(cases):
    measured = 0
    for case in cases.all():
        found = seen(case.prompt, cases.picture(case.scene))
        wrong = {key: value for key, value in found.items() if key.endswith("_right") and not value}
        assert not wrong, (case.prompt, found)
        measured += len(found) // 2
    assert measured == 9 * 3 + 4 + 5, (
        "four held-out colours and five held-out grounds of these things"
    )


def test_held_out_pairs_are_those_of_their_own_sets(cases):
    for case in [*cases.coloured("a", True), *cases.grounds("b", True)]:
        what = "colour" if case.prompt.colour else "ground"
        word = getattr(case.prompt, what)
        assert compose.held_out(what, case.prompt.thing, word) and word in case.prompt.prompt
    held = [case.prompt.prompt for case in cases.all() if case.prompt.set == "held-out drawings"]
    assert held == ["fox, noto style"]


def test_pairs_stand_on_their_sides(cases):
    for case in cases.pairs():
        names = [cases.drawings.rows[piece.row]["name"] for piece in case.scene.pieces]
        assert names == [case.prompt.left, case.prompt.right]
        first = case.prompt.prompt.find(names[0]) < case.prompt.prompt.find(names[1])
        assert first == ("left of" in case.prompt.prompt)
        mask = of_things(cases.picture(case.scene))
        assert mask[:, :32].any() and mask[:, 32:].any()


def test_the_judge_is_shown_nothing_that_is_held_out(folder, monkeypatch):
    monkeypatch.setattr(judge, "BATCH", 12)
    monkeypatch.setattr(judge, "SCENES", 4)
    monkeypatch.setattr(judge, "OTHERS", 10)
    drawings, scenes = judge.Drawings(folder), compose.Scenes(compose.Drawings(folder))
    batches = judge.Batches(drawings, scenes, drawings.where("train", "other"), 0)
    for _ in range(20):
        images, captions, fits, style = batches.draw()
        assert images.shape == (12, 3, 64, 64) and images.abs().max() <= 1
        assert len(captions) == 22 and len(style) == 12
        assert "fox, noto style" not in captions
        assert fits[torch.arange(12), torch.arange(12)].all()
    assert [drawings.rows[i]["name"] for i in drawings.unseen()] == ["fox"]


def test_the_judge_learns_to_tell_the_drawings(folder, monkeypatch):
    monkeypatch.setattr(judge, "BATCH", 12)
    monkeypatch.setattr(judge, "SCENES", 2)
    monkeypatch.setattr(judge, "OTHERS", 8)
    drawings, scenes = judge.Drawings(folder), compose.Scenes(compose.Drawings(folder))
    config = JudgeConfig(judge.STYLES, (16, 32, 48), 4, 300, 32, 24)
    clock = itertools.count()  # a second a step, on however slow a processor
    monkeypatch.setattr(judge.time, "process_time", lambda: next(clock))
    learned = judge.train(drawings, scenes, config, 1.0, 0)
    captions = [judge.canonical(row) for row in drawings.rows if row["split"] != "other"]
    found = judge.found(learned, drawings, drawings.where("train"), captions)
    assert found["top1"] > 0.4, "a tenth by chance"
