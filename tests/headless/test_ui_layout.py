"""Where nodes stand: wires run to the right, and nothing covers anything, before a run or after it."""

import itertools
import json
from pathlib import Path

import pytest

from imagen_nodes.headless.formats.ui_layout import GROWING, PICTURE, lay_out
from imagen_nodes.headless.graph import Link, Node

EXAMPLES = sorted((Path(__file__).parents[2] / "example_workflows").glob("*.json"))


def box(node):
    """Left, top, right and bottom, with the title above and the preview of a run below."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - 30, x + width, y + height + (PICTURE if node["type"] in GROWING else 0)


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_node_of_an_example_covers_another_and_wires_run_to_the_right(path):
    data = json.loads(path.read_text("utf-8"))
    nodes = {node["id"]: node for node in data["nodes"]}
    for a, b in itertools.combinations(nodes.values(), 2):
        assert not overlap(box(a), box(b)), (a["type"], b["type"])
    for _, source, _, target, _, _ in data["links"]:
        assert nodes[source]["pos"][0] + nodes[source]["size"][0] < nodes[target]["pos"][0]


def laid_out(**sources):
    graph = {
        name: Node(name, kind, name, {f"in{i}": Link(source, 0) for i, source in enumerate(takes)})
        for name, (kind, *takes) in sources.items()
    }
    nodes = {name: {"type": node.class_type, "size": [300, 200]} for name, node in graph.items()}
    lay_out(graph, nodes)
    return {name: tuple(node["pos"]) for name, node in nodes.items()}


def test_a_loader_stands_beside_its_only_taker_and_above_the_line_of_samplers():
    places = laid_out(
        first=("LoadA",),
        base=("ImagenBaseSample", "first"),
        second=("LoadB",),
        large=("ImagenSR256", "base", "second"),
        save=("SaveImage", "large"),
    )
    assert places["first"] == (0, 0)
    assert places["base"] == (340, 0)
    assert places["second"][0] == 340
    assert places["second"][1] + 200 < 0
    assert [places[name] for name in ("large", "save")] == [(680, 0), (1020, 0)]


def test_loaders_fill_the_column_before_when_theirs_is_full_and_outputs_stand_side_by_side():
    loaders = {f"load{i}": ("Load",) for i in range(6)}
    places = laid_out(
        text=("Text",),
        more=("Text", "text"),
        **loaders,
        use=("Use", "more", *loaders),
        one=("SaveImage", "use"),
        two=("SaveImage", "use"),
    )
    columns = [places[name][0] // 340 for name in loaders]
    assert columns == [1, 1, 1, 0, 0, 0]
    assert places["one"] == (3 * 340, 0)
    assert places["two"] == (4 * 340, 0)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_anew_shows_what_it_changed_and_knows_what_an_app_asks(path):
    data = json.loads(path.read_text("utf-8"))
    nodes = {node["id"]: node for node in data["nodes"]}
    kinds = {node["type"] for node in nodes.values()}
    assert not kinds & {"ImageCrop", "ImageBatch"}, "ComfyUI has deprecated them"
    for node in nodes.values():
        trains = node["type"] in ("ImagenFineTuneStage", "ImagenEvaluateCascade")
        kept = "fixed" in node.get("widgets_values", [])
        assert kept == trains, "else a second run does nothing, or cannot continue"
        if "smart100" in node.get("widgets_values", []):
            assert node["showAdvanced"]
    asked = data["extra"]["linearData"]
    for node_id, name in asked["inputs"]:
        assert name in {slot["name"] for slot in nodes[node_id]["inputs"]}
    assert any(name in ("prompt", "image", "folder") for _, name in asked["inputs"])
    assert {nodes[node_id]["type"] for node_id in asked["outputs"]} == {"SaveImage"}


def test_a_title_that_is_the_type_s_own_is_left_to_the_translation():
    nodes = json.loads(EXAMPLES[-1].read_text("utf-8"))["nodes"]
    assert [n.get("title") for n in nodes if n["type"] in ("ImagenSR256", "LoadImage")] == [
        "Picture", None,
    ]  # fmt: skip
