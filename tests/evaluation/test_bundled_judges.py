"""The judges, prompts and figures that ship fit each other."""

import json

import pytest

from imagen_nodes.cli.evaluate import read_report
from imagen_nodes.imagen_core.evaluation.judge import bundled, bundled_judges, load_expert
from imagen_nodes.imagen_core.evaluation.prompts import read_prompts
from imagen_nodes.imagen_core.evaluation.scenes import COLOURS, GROUNDS


@pytest.fixture(scope="module")
def prompts():
    return read_prompts(bundled("prompts.jsonl"))


@pytest.mark.parametrize("path", bundled_judges(), ids=lambda path: path.stem)
def test_a_judge_knows_the_prompts_styles_and_captions(path, prompts):
    assert path.stat().st_size < 3_000_000
    expert = load_expert(path)
    captions = set(expert.captions)
    assert {p.style for p in prompts if p.style} <= set(expert.judge.config.styles)
    assert all(p.sought in captions for p in prompts if p.sought)
    assert expert.features.isfinite().all() and len(expert.features) >= 500


def test_prompts_say_what_can_be_measured(prompts):
    assert all(p.colour in COLOURS for p in prompts if p.colour)
    assert all(p.ground in GROUNDS for p in prompts if p.ground)
    assert {p.count for p in prompts if p.count} == {1, 2, 3}
    assert all((p.left is None) == (p.right is None) for p in prompts)


def test_the_measures_are_right_on_real_pictures(prompts):
    sets = read_report(bundled("real.json"))["sets"]
    assert list(sets) == list(dict.fromkeys(p.set for p in prompts))
    judges = [path.stem for path in bundled_judges()]
    for name, table in sets.items():
        assert all(
            table[key] >= 0.9 for key in ("colour", "ground", "count", "sides") if key in table
        )
        for judge in judges:
            assert table.get(f"{judge}: caption among five", 1) >= 0.7, (name, judge)
    assert "rows" not in json.loads(bundled("real.json").read_text("utf-8"))
