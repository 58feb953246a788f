"""Reading workflows: both formats, the frontend's rules, and PNG files."""

import json
import random
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_nodes.headless.formats.queueing import Moment
from imagen_nodes.headless.formats.ui_read import convert as draft_of
from imagen_nodes.headless.formats.ui_write import to_ui
from imagen_nodes.headless.formats.workflow import parse_api, read_workflow
from imagen_nodes.headless.graph import Link, WorkflowError


class Source:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "seed": ("INT", {"default": 0}),
                "steps": ("INT", {"default": 20}),
                "name": (["a", "b"], {"image_upload": True}),
                "text": ("STRING", {"default": "hello"}),
            }
        }


class Filter(Source):
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "mask": ("MASK",),
                "image": ("IMAGE",),
                "amount": ("FLOAT", {"default": 0.5}),
            }
        }


class Save(Source):
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "prefix": ("STRING", {"default": "p"})}}


def convert(data, registry):
    return draft_of(data, registry).queued(registry, Moment(random.Random(0)))


REGISTRY = {"Source": Source, "Filter": Filter, "Save": Save}


def node(node_id, kind, values=None, inputs=(), **more):
    slots = [
        {
            "name": name,
            "type": shown,
            "link": link,
            **({"widget": {"name": name}} if widget else {}),
        }
        for name, shown, link, widget in inputs
    ]
    outputs = [
        {"name": t, "type": t} for t in getattr(REGISTRY.get(kind), "RETURN_TYPES", ("IMAGE",))
    ]
    base = {"id": node_id, "type": kind, "mode": 0, "inputs": slots, "outputs": outputs}
    return {**base, **({} if values is None else {"widgets_values": values}), **more}


def image(link):
    return ("images", "IMAGE", link, False)


def ui(*nodes, links=(), **more):
    return {"nodes": list(nodes), "links": [list(link) for link in links], "version": 0.4, **more}


SOURCE_VALUES = [7, "randomize", 30, "b", "a cat", "image"]  # the button stands last


def test_widget_values_skip_controls_and_upload_buttons():
    graph = convert(ui(node(1, "Source", SOURCE_VALUES)), REGISTRY)
    assert graph["1"].inputs == {"seed": 7, "steps": 30, "name": "b", "text": "a cat"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"widgets_values": {"seed": 1, "steps": 2, "name": "a", "text": "t"}}, (1, 2, "a", "t")),
        (
            {"widgets_values": SOURCE_VALUES, "widgets_values_named": {"steps": 9}},
            (7, 30, "b", "a cat"),
        ),
        (
            {"widgets_values": [5, "fixed"], "widgets_values_named": {"steps": 9, "gone": 1}},
            (5, 9, "a", "hello"),
        ),
        ({"widgets_values": [5, "fixed"]}, (5, 20, "a", "hello")),
        ({"widgets_values": [5, True, 6]}, (5, 6, "a", "hello")),
        ({}, (0, 20, "a", "hello")),
    ],
)
def test_other_spellings_of_widget_values(more, expected):
    graph = convert(ui(node(1, "Source", **more)), REGISTRY)
    assert tuple(graph["1"].inputs.values()) == expected


def test_links_become_inputs_and_win_over_widgets():
    nodes = (
        node(1, "Source", SOURCE_VALUES),
        node(2, "Source", SOURCE_VALUES, [("steps", "INT", 5, True)], title="Second"),
        node(3, "Save", ["x"], [image(6)]),
    )
    graph = convert(ui(*nodes, links=[(5, 1, 0, 2, 0, "INT"), (6, 2, 0, 3, 0, "IMAGE")]), REGISTRY)
    assert graph["2"].inputs["steps"] == Link("1", 0)
    assert graph["3"].inputs == {"prefix": "x", "images": Link("2", 0)}
    assert graph["2"].title == "Second"


def test_reroutes_primitives_and_notes_dissolve():
    nodes = (
        node(1, "Source", SOURCE_VALUES),
        node(2, "Reroute", None, [("", "*", 1, False)]),
        node(3, "PrimitiveNode", [42, "fixed"]),
        node(4, "Source", SOURCE_VALUES, [("steps", "INT", 3, True)]),
        node(5, "Save", ["x"], [image(2)]),
        node(6, "Note", ["read me"]),
        node(7, "MarkdownNote", ["read me"]),
    )
    links = [(1, 1, 0, 2, 0, "*"), (2, 2, 0, 5, 0, "IMAGE"), (3, 3, 0, 4, 0, "INT")]
    graph = convert(ui(*nodes, links=links), REGISTRY)
    assert set(graph) == {"1", "4", "5"}
    assert graph["5"].inputs["images"] == Link("1", 0)
    assert graph["4"].inputs["steps"] == 42


def test_get_and_set_meet_by_name():
    nodes = (
        node(1, "Source", SOURCE_VALUES),
        node(2, "SetNode", ["pic"], [("IMAGE", "IMAGE", 1, False)]),
        node(3, "GetNode", ["pic"]),
        node(4, "Save", ["x"], [image(2)]),
    )
    graph = convert(
        ui(*nodes, links=[(1, 1, 0, 2, 0, "IMAGE"), (2, 3, 0, 4, 0, "IMAGE")]), REGISTRY
    )
    assert graph["4"].inputs["images"] == Link("1", 0)


@pytest.mark.parametrize(("mode", "expected"), [(2, None), (4, Link("1", 0))])
def test_muted_nodes_vanish_and_bypassed_ones_hand_on_the_fitting_input(mode, expected):
    nodes = (
        node(1, "Source", SOURCE_VALUES),
        node(
            2,
            "Filter",
            [0.1],
            [("mask", "MASK", None, False), ("image", "IMAGE", 1, False)],
            mode=mode,
        ),
        node(3, "Save", ["x"], [image(2)]),
    )
    graph = convert(
        ui(*nodes, links=[(1, 1, 0, 2, 1, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE")]), REGISTRY
    )
    assert set(graph) == {"1", "3"}
    assert graph["3"].inputs.get("images") == expected


def link(link_id, origin, origin_slot, target, target_slot, kind="IMAGE"):
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, (link_id, origin, origin_slot, target, target_slot, kind), strict=True))


INNER = {
    "id": "uuid",
    "name": "sub",
    "inputs": [{"name": "image", "type": "IMAGE"}, {"name": "steps", "type": "INT"}],
    "outputs": [{"name": "out", "type": "IMAGE"}, {"name": "same", "type": "IMAGE"}],
    "nodes": [
        node(1, "Source", SOURCE_VALUES, [("steps", "INT", 2, True)]),
        node(2, "Filter", [0.3], [("mask", "MASK", None, False), ("image", "IMAGE", 1, False)]),
    ],
    "links": [
        link(1, -10, 0, 2, 1),
        link(2, -10, 1, 1, 0, "INT"),
        link(3, 2, 0, -20, 0),
        link(4, -10, 0, -20, 1),
    ],
}


def subgraph(host_values=None, steps_link=None, save_slot=0, properties=None, host_mode=0):
    host = node(
        5,
        "uuid",
        host_values,
        [("image", "IMAGE", 1, False), ("steps", "INT", steps_link, True)],
        properties=properties or {},
        mode=host_mode,
    )
    host["outputs"] = [{"name": "out", "type": "IMAGE"}, {"name": "same", "type": "IMAGE"}]
    nodes = (node(1, "Source", SOURCE_VALUES), host, node(6, "Save", ["x"], [image(2)]))
    links = [(1, 1, 0, 5, 0, "IMAGE"), (2, 5, save_slot, 6, 0, "IMAGE"), (3, 1, 0, 5, 1, "INT")]
    return convert(ui(*nodes, links=links, definitions={"subgraphs": [INNER]}), REGISTRY)


def test_a_subgraph_is_flattened_and_wired_through():
    graph = subgraph()
    assert set(graph) == {"1", "5:1", "5:2", "6"}
    assert graph["5:2"].inputs == {"amount": 0.3, "image": Link("1", 0)}
    assert graph["6"].inputs["images"] == Link("5:2", 0)
    assert graph["5:1"].inputs["steps"] == 30


def test_a_pass_through_output_is_the_hosts_own_input():
    assert subgraph(save_slot=1)["6"].inputs["images"] == Link("1", 0)


def test_promoted_values_of_the_host_win_over_inner_widgets():
    assert subgraph(host_values=[99])["5:1"].inputs["steps"] == 99
    assert subgraph(host_values=[99], steps_link=3)["5:1"].inputs["steps"] == Link("1", 0)


def test_older_files_name_promoted_widgets_in_properties():
    proxies = {"proxyWidgets": [["2", "amount"], ["-1", "steps"]]}
    graph = subgraph(host_values=[0.9, 11], properties=proxies)
    assert graph["5:2"].inputs["amount"] == 0.9
    assert graph["5:1"].inputs["steps"] == 11


@pytest.mark.parametrize(("mode", "expected"), [(2, None), (4, Link("1", 0))])
def test_a_muted_or_bypassed_host_emits_nothing_of_its_inside(mode, expected):
    graph = subgraph(host_mode=mode)
    assert set(graph) == {"1", "6"}
    assert graph["6"].inputs.get("images") == expected


def test_subgraphs_that_double_at_each_level_are_refused_at_once():
    levels = [
        {
            **INNER,
            "id": f"level{i}",
            "nodes": [node(n, f"level{i + 1}") for n in (1, 2)],
            "links": [],
        }
        for i in range(40)
    ]
    started = time.monotonic()
    with pytest.raises(WorkflowError, match="more than 10000 instances of subgraphs"):
        convert(ui(node(1, "level0"), definitions={"subgraphs": levels}), REGISTRY)
    assert time.monotonic() - started < 10


def test_links_of_version_1_are_objects():
    nodes = [node(1, "Source", SOURCE_VALUES), node(2, "Save", ["x"], [image(1)])]
    graph = convert({"nodes": nodes, "links": [link(1, 1, 0, 2, 0)], "version": 1}, REGISTRY)
    assert graph["2"].inputs["images"] == Link("1", 0)


@pytest.mark.parametrize(
    "data",
    [
        ui({"id": 1}),
        ui(node(1, "Save", ["x"], [image(1)]), links=[(1, 2)]),
        {"nodes": [None], "links": []},
        ui(
            node(1, "Reroute", None, [("", "*", 1, False)]),
            node(2, "Save", ["x"], [image(2)]),
            links=[(1, 1, 0, 1, 0, "*"), (2, 1, 0, 2, 0, "IMAGE")],
        ),
    ],
)
def test_malformed_files_end_in_a_workflow_error(data):
    with pytest.raises(WorkflowError):
        convert(data, REGISTRY)


API = {
    "1": {"class_type": "Source", "inputs": {"seed": 3, "steps": 4, "name": "a", "text": "t"}},
    "2": {"class_type": "Save", "inputs": {"images": ["1", 0], "prefix": "x"}, "is_changed": [1]},
}


def test_api_format_and_its_wrapper(tmp_path):
    for name, data in {"plain": API, "wrapped": {"prompt": API}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        graph = parse_api(read_workflow(tmp_path / f"{name}.json")[0])
        assert graph["2"].inputs == {"images": Link("1", 0), "prefix": "x"}
    assert parse_api({"1": {"class_type": "A", "inputs": {"v": {"__value__": ["x", 1]}}}})[
        "1"
    ].inputs == {"v": ["x", 1]}


def test_a_png_carries_its_workflow(tmp_path):
    info = PngInfo()
    info.add_text("prompt", json.dumps({**API, "1": {**API["1"], "is_changed": float("nan")}}))
    Image.new("RGB", (2, 2)).save(tmp_path / "p.png", pnginfo=info)
    assert set(read_workflow(tmp_path / "p.png")[0]) == {"1", "2"}
    info.add_text("workflow", json.dumps(ui(node(1, "Source"))))
    Image.new("RGB", (2, 2)).save(tmp_path / "both.png", pnginfo=info)
    data, workflow = read_workflow(tmp_path / "both.png")
    assert set(data) == {"1", "2"}  # with the choices of its prompt as they were drawn
    assert "nodes" in workflow


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "no such file"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[1, 2]", "neither ComfyUI's UI format"),
        ("a.json", b'{"a": 1}', "neither ComfyUI's UI format"),
        ("a.json", b"[" * 200, "nested more than 100 deep"),
        ("a.json", b"\xff\xfe\x00", "expected a .json or .png file, got no text"),
        ("a.png", b"no picture", "not a readable PNG"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkflowError, match=message):
        read_workflow(tmp_path / name)


def test_what_is_built_for_the_frontend_reads_back_as_the_same_graph():
    graph = parse_api(API)
    graph["2"].inputs["prefix"] = "y"
    back = convert(to_ui(graph, REGISTRY, "a note"), REGISTRY)
    assert back == graph
