"""Writes subgraphs/: the whole cascade as one node, which ComfyUI offers among its blueprints.

python tools/blueprint.py
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from example_workflows import text_to_1024  # the script beside this one
from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.formats.ui_write import to_ui

OUT = Path(__file__).parent.parent / "subgraphs"
NAME = "Imagen Cascade"
INPUT, OUTPUT = -10, -20
# Outer input: the inner inputs that it feeds, by node type.
PROMOTED = {
    "prompt": [("ImagenT5Encode", "prompt")],
    "negative_prompt": [("ImagenT5Encode", "negative_prompt")],
    "guidance_scale": [("ImagenDynamicThreshold", "guidance_scale")],
    "batch_size": [("ImagenBaseSample", "batch_size")],
    "seed": [("ImagenBaseSample", "seed"), ("ImagenSR256", "seed"), ("ImagenSR1024", "seed")],
}
RESULTS = {
    "image_64": "ImagenBaseSample",
    "image_256": "ImagenSR256",
    "image_1024": "ImagenSR1024",
}


def identity(name: str) -> str:
    """The same UUID for the same name, so that a rebuilt file differs only where it changed.

    name   of the thing
    """
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"imagen-nodes/{name}"))


def blueprint() -> dict[str, Any]:
    """The workflow of one subgraph node, its definition inside."""
    graph = {
        node_id: node
        for node_id, node in text_to_1024().items()
        if node.class_type not in ("SaveImage", "ImagenCascadeView")
    }
    inner = to_ui(graph, default_registry())
    nodes = {node["type"]: node for node in inner["nodes"]}
    links = [
        dict(zip(LINK_KEYS, link, strict=True)) for link in inner["links"]
    ]  # objects inside definitions

    def wire(origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        values = (len(links) + 1, origin, origin_slot, target, target_slot, kind)
        links.append(dict(zip(LINK_KEYS, values, strict=True)))
        return len(links)

    inputs, outer, values = [], [], []
    for slot, (name, targets) in enumerate(PROMOTED.items()):
        ids = []
        for kind, inner_name in targets:
            entries = nodes[kind]["inputs"]
            index = next(i for i, entry in enumerate(entries) if entry["name"] == inner_name)
            entry = entries[index]
            entry["link"] = wire(INPUT, slot, nodes[kind]["id"], index, entry["type"])
            ids.append(entry["link"])
        kind, inner_name = targets[0]
        inputs.append(port(name, entry["type"], ids, slot, -320))
        outer.append({"name": name, "type": entry["type"], "widget": {"name": name}, "link": None})
        values.append(graph[str(nodes[kind]["id"])].inputs[inner_name])
    outputs = []
    for slot, (name, kind) in enumerate(RESULTS.items()):
        link = wire(nodes[kind]["id"], 0, OUTPUT, slot, "IMAGE")
        nodes[kind]["outputs"][0]["links"].append(link)
        outputs.append(port(name, "IMAGE", [link], slot, 1800))
    definition = {
        "id": identity(NAME),
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": inner["last_node_id"],
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": NAME,
        "inputNode": {"id": INPUT, "bounding": [-360, 100, 140, 160]},
        "outputNode": {"id": OUTPUT, "bounding": [1800, 100, 120, 120]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": [],
        "links": links,
        "extra": {},
    }
    return around(definition, outer, values)


LINK_KEYS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def port(name: str, kind: str, links: list[int], slot: int, x: int) -> dict[str, Any]:
    """An input or output of the definition.

    name    shown
    kind    type of the wire
    links   inside
    slot    from the top
    x       place
    """
    place = [x + 20, 120 + 20 * slot]
    return {
        "id": identity(f"{NAME}/{name}"),
        "name": name,
        "type": kind,
        "linkIds": links,
        "pos": place,
    }


def around(
    definition: dict[str, Any], outer: list[dict[str, Any]], values: list[Any]
) -> dict[str, Any]:
    """A workflow of one node, which is the subgraph.

    definition   of the subgraph
    outer        inputs of the node
    values       of its widgets, in the order of its inputs
    """
    # Ids are unique over a workflow and its subgraphs; newer frontends rename those that are not.
    node_id = definition["state"]["lastNodeId"] + 1
    node = {
        "id": node_id,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [320, 340],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": outer,
        "outputs": [{"name": name, "type": "IMAGE", "links": []} for name in RESULTS],
        "title": NAME,
        "properties": {"proxyWidgets": [["-1", entry["name"]] for entry in outer]},
        "widgets_values": values,
    }
    return {
        "id": identity(f"{NAME}/workflow"),
        "revision": 0,
        "last_node_id": node_id,
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [definition]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def main() -> None:
    OUT.mkdir(exist_ok=True)
    text = json.dumps(blueprint(), indent=2, ensure_ascii=False) + "\n"
    (OUT / f"{NAME}.json").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
