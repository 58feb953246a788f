"""What saved workflows rely on: ids, inputs, their order, types and defaults; and what people read."""

import json
from pathlib import Path

import pytest

from imagen_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from imagen_nodes.nodes import host

ROOT = Path(__file__).parent.parent.parent
SNAPSHOT = Path(__file__).with_name("schema.json")
LISTED = {
    "cascade",
    "stage",
    "text_encoder",
    "saved_text",
    "lora",
    "folder",
}  # combos that depend on the models folder
NODES = pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)


def schema() -> dict:
    found = {}
    for node_id, cls in NODE_CLASS_MAPPINGS.items():
        inputs = []
        for group, entries in cls.INPUT_TYPES().items():
            for name, (kind, options) in entries.items():
                shown = "COMBO" if isinstance(kind, list) and name in LISTED else kind
                default = None if shown == "COMBO" else options.get("default")
                inputs.append([group, name, shown, default])
        found[node_id] = {"inputs": inputs, "outputs": list(cls.RETURN_TYPES)}
    return found


def test_schema_is_the_committed_one():
    """Append inputs at the end; never reorder or remove: widget values are saved by position."""
    assert json.loads(json.dumps(schema())) == json.loads(SNAPSHOT.read_text("utf-8"))


@NODES
def test_every_input_and_output_explains_itself(node_id):
    cls = NODE_CLASS_MAPPINGS[node_id]
    for entries in cls.INPUT_TYPES().values():
        for name, (_, options) in entries.items():
            assert len(options["tooltip"]) > 10, f"{node_id}.{name} has no tooltip"
    assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES)
    assert cls.DESCRIPTION
    assert NODE_DISPLAY_NAME_MAPPINGS[node_id]


@NODES
def test_numbers_have_ranges_that_hold_their_defaults(node_id):
    for entries in NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().values():
        for name, (kind, options) in entries.items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], name


@NODES
def test_help_page_names_every_input(node_id):
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    assert page.startswith(f"# {NODE_DISPLAY_NAME_MAPPINGS[node_id]}\n")
    names = [
        name for entries in NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().values() for name in entries
    ]
    assert [name for name in names if name not in page] == []


@NODES
def test_help_page_shows_the_node(node_id):
    """Made by tools/node_pictures.py in a real frontend; small, since every page loads its own."""
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    picture = ROOT / "web" / "docs" / f"{node_id}.png"
    assert picture.is_file(), f"COMFYUI_DIR=… python tools/node_pictures.py {node_id}"
    assert f"]({node_id}.png)" in page
    assert 1_000 < picture.stat().st_size < 60_000


@NODES
def test_a_search_finds_the_node_by_other_words(node_id):
    aliases = NODE_CLASS_MAPPINGS[node_id].SEARCH_ALIASES
    assert len(aliases) > 1
    assert all(alias == alias.lower() for alias in aliases)


RARE = {
    "ImagenBaseSample": {"timesteps", "inpaint", "resample", "jump"},
    "ImagenSR256": {"tile", "timesteps", "aug_noise", "strength", "inpaint"},
    "ImagenDynamicThreshold": {"percentile", "max_value", "start", "end"},
    "ImagenLoadCascade": {"dtype"},
    "ImagenLoadStage": {"dtype"},
    "ImagenLoadTextEncoder": {"dtype"},
    "ImagenT5Encode": {"clean_caption"},
}
RARE["ImagenSR1024"] = RARE["ImagenSR256"]


@pytest.mark.parametrize("node_id", RARE)
def test_what_is_rarely_changed_is_behind_the_host_s_button(node_id):
    """The field that ComfyUI reads; older ones ignore it."""
    groups = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES().values()
    marked = {
        name for group in groups for name, (_, options) in group.items() if options.get("advanced")
    }
    assert marked == RARE[node_id]


def test_widgets_offer_the_samplers_of_the_core():
    from imagen_nodes.imagen_core import SAMPLERS
    from imagen_nodes.nodes import widgets

    assert sorted(widgets.SAMPLERS) == sorted(SAMPLERS)


def test_bundled_cascade_is_offered_first():
    assert host.cascade_names()[0] == "emoji"
