"""Node classes made of a ComfyUI server's /object_info: they declare and validate, but do not run."""

import json
from pathlib import Path
from typing import Any

from .graph import WorkflowError
from .registry import Registry


def read_object_info(path: Path) -> Registry:
    """The classes in a saved /object_info."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WorkflowError([f"{path}: not a readable /object_info: {error}"]) from error
    return registry_of(data)


def registry_of(info: Any) -> Registry:
    """A class for each node type of /object_info.

    info   parsed JSON: node types by id
    """
    if not isinstance(info, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("input"), dict) for entry in info.values()
    ):
        raise WorkflowError(["object info: expected node types by id, each with its inputs"])
    return Registry({name: declare(name, entry) for name, entry in info.items()})


def declare(name: str, entry: dict[str, Any]) -> type:
    """A class with a node type's declarations and no body.

    name    id of the node type
    entry   its part of /object_info
    """
    order = entry.get("input_order") or {}
    types = {
        group: {key: specs[key] for key in [*order.get(group, []), *specs] if key in specs}
        for group, specs in entry["input"].items()
        if isinstance(specs, dict)
    }
    members = {
        "INPUT_TYPES": classmethod(lambda cls: types),
        "RETURN_TYPES": tuple(entry.get("output") or ()),
        "OUTPUT_IS_LIST": tuple(entry.get("output_is_list") or ()),
        "OUTPUT_NODE": bool(entry.get("output_node")),
    }
    return type(name, (), members)
