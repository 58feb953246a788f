"""A graph -> the UI format: what the frontend would save, laid out from left to right."""

import json
import uuid
from typing import Any

from ..graph import Graph, Link, Node, to_api
from ..registry import Registry, declared_inputs, title_of
from .typed_texts import kept
from .ui_layout import COLUMN, lay_out
from .widget_values import is_widget, saved_positions

WIDTH = 300
SLOT, WIDGET, HEAD = 22, 28, 60


def to_ui(graph: Graph, registry: Registry, note: str = "") -> dict[str, Any]:
    """The graph as a workflow of version 0.4.

    graph      ids are whole numbers
    note       text of a note beside the graph; "" = none
    """
    links: list[list[Any]] = []
    nodes = {node.id: ui_node(node, registry) for node in graph.values()}
    for node in graph.values():
        for name, link in node.links().items():
            source = nodes[link.node]["outputs"][link.slot]
            slots = nodes[node.id]["inputs"]
            slot = next(i for i, entry in enumerate(slots) if entry["name"] == name)
            links.append(
                [len(links) + 1, int(link.node), link.slot, int(node.id), slot, source["type"]]
            )
            slots[slot]["link"] = len(links)
            source["links"].append(len(links))
    lay_out(graph, nodes)
    listed = list(nodes.values())
    if note:
        listed.append(ui_note(note, max(int(node_id) for node_id in graph) + 1))
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(to_api(graph)))),
        "revision": 0,
        "last_node_id": max(node["id"] for node in listed),
        "last_link_id": len(links),
        "nodes": listed,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def ui_node(node: Node, registry: Registry) -> dict[str, Any]:
    """One node: its slots, linked ones first as declared, and its widget values in order."""
    cls: Any = registry[node.class_type]
    names = getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)
    constants = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    for name, (_, options, _) in declared_inputs(cls).items():
        if options.get("dynamicPrompts") and isinstance(constants.get(name), str):
            constants[name] = kept(constants[name])
    values = saved_positions(cls, constants)
    inputs: list[dict[str, Any]] = []
    widgets = 0
    for name, (kind, options, required) in declared_inputs(cls).items():
        widget = is_widget(kind, options)
        shown = "COMBO" if isinstance(kind, list) else kind
        if widget:
            inputs.append({"name": name, "type": shown, "widget": {"name": name}, "link": None})
            widgets += 1
        else:
            slot = {"name": name, "type": shown, "link": None}
            inputs.append(slot if required else {**slot, "shape": 7})
    outputs = [
        {"name": name, "type": kind, "links": []}
        for name, kind in zip(names, cls.RETURN_TYPES, strict=True)
    ]
    changed = any(
        options.get("advanced") and name in constants and constants[name] != options.get("default")
        for name, (_, options, _) in declared_inputs(cls).items()
    )
    height = HEAD + SLOT * max(len(inputs) - widgets, len(outputs)) + WIDGET * len(values)
    tall = sum(bool(o.get("multiline")) for _, o, _ in declared_inputs(cls).values())
    return {
        "id": int(node.id),
        "type": node.class_type,
        "pos": [0, 0],
        "size": [WIDTH, height + 90 * tall + (260 if getattr(cls, "OUTPUT_NODE", False) else 0)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        # A title of a node's type is not written, so that a translation of it shows.
        **({"title": node.title} if node.title != title_of(registry, node.class_type) else {}),
        **({"showAdvanced": True} if changed else {}),
        "properties": {"Node name for S&R": node.class_type},
        "widgets_values": values,
    }


def ui_note(text: str, node_id: int) -> dict[str, Any]:
    """A note to the left of the graph.

    text      Markdown
    node_id   free id
    """
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [-COLUMN, 0],
        "size": [WIDTH, 220],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "About",
        "properties": {},
        "widgets_values": [text],
    }
