"""Node classes made of a ComfyUI server's /object_info: they declare and validate, but do not run."""

from typing import Any

from .graph import WorkflowError
from .registry import Registry


def registry_of(info: Any) -> Registry:
    """A class for each node type of /object_info.

    info   parsed JSON: node types by id
    """
    if not isinstance(info, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("input"), dict) for entry in info.values()
    ):
        raise WorkflowError(["object info: expected node types by id, each with its inputs"])
    return Registry({name: declare(name, entry) for name, entry in info.items()})


def in_order(specs: dict[str, Any], order: Any, group: str) -> list[str]:
    """The inputs of a group, those first that the server puts first.

    order   by group, as far as the server tells
    """
    first = order.get(group) if isinstance(order, dict) else None
    first = [key for key in first if isinstance(key, str)] if isinstance(first, list) else []
    return [key for key in dict.fromkeys([*first, *specs]) if key in specs]


def declared(spec: Any) -> Any:
    """An input's type and options; of an answer that is none of ComfyUI's, a type that takes anything."""
    if isinstance(spec, str):
        return spec
    if not isinstance(spec, list) or not spec or not isinstance(spec[0], (str, list)):
        return ["*", {}]
    return [spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}]


def listed(value: Any) -> tuple[Any, ...]:
    """A list of the answer; none where it has another."""
    return tuple(value) if isinstance(value, list) else ()


def declare(name: str, entry: dict[str, Any]) -> type:
    """A class with a node type's declarations and no body.

    name    id of the node type
    entry   its part of /object_info
    """
    order = entry.get("input_order")
    types = {
        group: {key: declared(specs[key]) for key in in_order(specs, order, group)}
        for group, specs in entry["input"].items()
        if isinstance(specs, dict)
    }
    members = {
        "INPUT_TYPES": classmethod(lambda cls: types),
        "RETURN_TYPES": listed(entry.get("output")),
        "OUTPUT_IS_LIST": listed(entry.get("output_is_list")),
        "OUTPUT_NODE": bool(entry.get("output_node")),
    }
    return type(name, (), members)
