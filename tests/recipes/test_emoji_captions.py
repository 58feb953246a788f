import json
import math
from pathlib import Path

import captions
import pytest
from captions import build_manifest, caption_variants, concept_of, name_from_key, spoken_name
from sources import Drawings, Names, normalize_hexcode, read_icons

NAMES = Names(
    emoji=[
        {"label": "red apple", "hexcode": "1F34E", "group": 4, "tags": ["fruit"]},
        {"label": "green apple", "hexcode": "1F34F", "group": 4, "tags": []},
        {
            "label": "waving hand",
            "hexcode": "1F44B",
            "group": 1,
            "tags": ["bye"],
            "skins": [
                {"label": f"waving hand: {tone} skin tone", "hexcode": f"1F44B-{code}"}
                for tone, code in (("light", "1F3FB"), ("medium", "1F3FD"), ("dark", "1F3FF"))
            ],
        },
        {"label": "automobile", "hexcode": "1F697", "group": 5, "tags": ["vehicle"]},
    ],
    shortcodes=[{"1F697": ["car", "red_car"]}],
)
HANDS = ["waving-hand", "waving-hand-light", "waving-hand-medium", "waving-hand-dark"]
NOTO = Drawings(
    items={"red-apple": "<a/>", "green-apple": "<b/>", "apple-copy": "<a/>", "automobile": "<c/>"}
    | {key: f"<{key}/>" for key in HANDS},
    hexcodes={
        "red-apple": ["1f34e"],
        "green-apple": ["1f34f"],
        "automobile": ["1f697"],
        "waving-hand": ["1f44b"],
        "waving-hand-light": ["1f44b-1f3fb"],
        "waving-hand-medium": ["1f44b-1f3fd"],
        "waving-hand-dark": ["1f44b-1f3ff"],
    },
)


def manifest(held_out=()):
    return {p.key: p for p in build_manifest({"noto": NOTO}, NAMES, {"noto": list(held_out)})}


def test_held_out_pictures_and_their_copies_are_left_out():
    assert {"automobile", "green-apple"} <= manifest().keys()
    pictures = manifest(["automobile", "red-apple"])
    assert "automobile" not in pictures
    assert "red-apple" not in pictures
    assert "apple-copy" not in pictures, "an equal drawing under another key would leak it"
    assert "green-apple" in pictures


def test_holdout_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="no-such-key"):
        manifest(["no-such-key"])
    with pytest.raises(ValueError, match="'noto'"):
        build_manifest({"noto": NOTO}, NAMES, {"flat": []})


def test_committed_holdout_covers_the_four_sets():
    holdout = json.loads(Path(captions.__file__).with_name("holdout.json").read_text())
    counts = {name: len(set(keys)) for name, keys in holdout.items()}
    assert counts == {
        "noto": 81,
        "fluent-emoji": 112,
        "fluent-emoji-flat": 92,
        "fluent-emoji-3d": 91,
    }


def test_equal_drawings_count_once():
    assert {"red-apple", "apple-copy"} & manifest().keys() == {"apple-copy"}


def test_variants_of_a_concept_share_its_weight():
    pictures = manifest()
    hands = [pictures[key].weight for key in HANDS]
    assert {pictures[key].concept for key in HANDS} == {"waving hand"}
    assert len(set(hands)) == 1
    alone = {p.key: p for p in build_manifest({"noto": one_hand()}, NAMES, {"noto": []})}
    ratio = hands[0] / pictures["automobile"].weight
    assert ratio == pytest.approx(
        alone["waving-hand"].weight / alone["automobile"].weight / 2, rel=1e-3
    )


def one_hand():
    keep = {"automobile", "waving-hand"}
    return Drawings({k: v for k, v in NOTO.items.items() if k in keep}, NOTO.hexcodes)


def test_weights_average_one():
    weights = [p.weight for p in manifest().values()]
    assert sum(weights) / len(weights) == pytest.approx(1, abs=1e-4)
    assert min(weights) > 0


def test_names_come_from_emojibase_then_from_the_key():
    pictures = manifest()
    assert pictures["waving-hand-dark"].name == "waving hand, dark skin tone"
    assert pictures["apple-copy"].name == "apple copy"


def test_captions_have_style_and_plain_wordings():
    captions = dict(manifest()["automobile"].captions)
    assert math.isclose(sum(captions.values()), 1, abs_tol=2e-3)
    for caption in (
        "automobile, noto style",
        "an automobile, noto style",
        "an emoji of an automobile in noto style",
        "automobile",
        "car",
        "a red car",
    ):
        assert captions[caption] > 0
    assert max(captions, key=lambda caption: captions[caption]) == "automobile, noto style"


def test_plurals_and_signs_take_no_article():
    assert "a grapes" not in dict(caption_variants("grapes", "flat", "food"))
    assert "a glass" in dict(caption_variants("glass", "flat", "food"))
    assert "a octopus" not in dict(caption_variants("octopus", "flat", "animals"))
    assert "an octopus" in dict(caption_variants("octopus", "flat", "animals"))
    assert "a keycap 1" not in dict(caption_variants("keycap 1", "flat", "symbols"))


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("flag: Germany", "flag of germany"),
        ("keycap: 1", "keycap 1"),
        ("waving hand: medium-light skin tone", "waving hand, medium-light skin tone"),
        ("Japanese “here” button", "japanese here button"),
    ],
)
def test_spoken_name(label, name):
    assert spoken_name(label) == name


def test_concepts_fold_tone_and_gender_but_not_flags():
    labels = ["health worker", "man health worker", "woman health worker: dark skin tone"]
    assert len({concept_of(label) for label in labels}) == 1
    assert concept_of("flag: Germany") != concept_of("flag: France")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("pickle", "pickle"),
        ("technologist-medium-light", "technologist, medium-light skin tone"),
        ("thumb-sign-dark-skin-tone", "thumb sign, dark skin tone"),
        ("a-light-skin-tone-dark-skin-tone", "a, light skin tone, dark skin tone"),
    ],
)
def test_name_from_key(key, name):
    assert name_from_key(key) == name


def test_hexcodes_have_one_spelling():
    assert normalize_hexcode("0039-FE0F-20E3") == normalize_hexcode("39-20e3") == "39-20e3"
    assert normalize_hexcode("1F3F4-E0067_E0062") == "1f3f4-e0067-e0062"


def test_hidden_icons_and_aliases_are_no_pictures():
    icon_set = {
        "width": 32,
        "height": 32,
        "icons": {
            "left": {"body": "<l/>"},
            "old": {"body": "<o/>", "hidden": True},
            "tall": {"body": "<t/>", "height": 36},
        },
        "aliases": {"right": {"parent": "left", "hFlip": True}},
    }
    drawings = read_icons(icon_set, {"1F448": "left", "1f449": "right"})
    assert set(drawings.items) == {"left", "tall"}
    assert drawings.hexcodes == {"left": ["1f448"]}
    assert 'viewBox="-2 0 36 36"' in str(drawings.items["tall"])
