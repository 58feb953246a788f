"""What feeds an input in the UI format: through reroutes, bypassed nodes and subgraphs, up to a real node."""

from dataclasses import dataclass
from typing import Any

from ..graph import Link, Problem, WorkflowError
from .ui_scopes import DEEPEST, SUBGRAPH_INPUT, SUBGRAPH_OUTPUT, Scope, UILink

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "Reroute", "PrimitiveNode", "GetNode", "SetNode")
ANY = ("*", "", 0)


@dataclass(frozen=True)
class Constant:
    """What an input resolves to where no node feeds it.

    value      of a primitive, or of a subgraph's promoted widget
    promoted   whether it comes through a subgraph's input
    """

    value: Any
    promoted: bool = False


Source = Link | Constant | None


def resolve_input(
    scope: Scope, node: dict[str, Any], index: int, depth: int = 0, kind: Any = None
) -> Source:
    """What feeds an input slot: a real node's output, a constant, or nothing.

    scope   of the node
    node    in the UI format
    index   of the slot in node["inputs"]
    depth   links followed so far
    kind    type that the first consumer takes; None = this slot is the first
    """
    if depth > DEEPEST:
        line = f"{scope.name_of(node)}: its links run in a circle"
        problem = Problem(line, "dependency_cycle", scope.prefix + str(node["id"]))
        raise WorkflowError([problem])
    slot = node["inputs"][index]
    link = scope.links.get(slot.get("link"))
    if link is None:
        return None
    return resolve_origin(scope, link, depth + 1, slot.get("type", "*") if kind is None else kind)


def resolve_origin(scope: Scope, link: UILink, depth: int, kind: Any) -> Source:
    """What a link brings.

    scope   of the link
    link    to follow up
    depth   links followed so far
    kind    type that the consumer takes
    """
    if link.origin == SUBGRAPH_INPUT:
        return resolve_host_input(scope, link.origin_slot, depth, kind)
    node_id = str(link.origin)
    node = scope.nodes.get(node_id)
    if node is None or node.get("mode", 0) == MUTED or node["type"] in NOTES:
        return None
    if node.get("mode", 0) == BYPASSED:
        index = bypass_input(node, link.origin_slot, kind)
        return None if index is None else resolve_input(scope, node, index, depth)
    if node_id in scope.children:
        return resolve_subgraph_output(scope.children[node_id], link.origin_slot, depth, kind)
    if node["type"] in ("Reroute", "SetNode"):
        return resolve_input(scope, node, 0, depth, kind)
    if node["type"] == "PrimitiveNode":
        values = node.get("widgets_values") or []
        return Constant(values[0]) if values else None
    if node["type"] == "GetNode":
        return resolve_get(scope, node, depth, kind)
    return Link(scope.prefix + node_id, int(link.origin_slot))


def resolve_host_input(scope: Scope, slot: int, depth: int, kind: Any) -> Source:
    """What feeds input `slot` of a subgraph instance: its link, else its promoted widget's value.

    scope   inside the instance
    slot    index among the definition's inputs
    depth   links followed so far
    kind    type that the consumer takes
    """
    host, parent = scope.host, scope.parent
    if host is None or parent is None or scope.definition is None:
        return None
    name = scope.definition["inputs"][slot]["name"]
    slots = host.get("inputs") or []
    index = next((i for i, entry in enumerate(slots) if entry["name"] == name), None)
    if index is not None:
        source = resolve_input(parent, host, index, depth)
        if isinstance(source, Constant):
            return Constant(source.value, promoted=True)
        if source is not None:
            return source
    return Constant(scope.promoted[name], promoted=True) if name in scope.promoted else None


def resolve_subgraph_output(scope: Scope, slot: int, depth: int, kind: Any) -> Source:
    """What a subgraph instance puts out at a slot.

    scope   inside the instance
    slot    index among its outputs
    depth   links followed so far
    kind    type that the consumer takes
    """
    if depth > DEEPEST:
        line = f"subgraph {scope.prefix}: its links run in a circle"
        raise WorkflowError([Problem(line, "dependency_cycle", scope.prefix.rstrip(":"))])
    for link in scope.links.values():
        if link.target == SUBGRAPH_OUTPUT and link.target_slot == slot:
            return resolve_origin(scope, link, depth + 1, kind)
    return None


def resolve_get(scope: Scope, node: dict[str, Any], depth: int, kind: Any) -> Source:
    """What the SetNode of the same name was given, in this scope or one around it.

    scope   of the GetNode
    node    the GetNode
    depth   links followed so far
    kind    type that the consumer takes
    """
    name = (node.get("widgets_values") or [None])[0]
    around: Scope | None = scope
    while around is not None:
        for other in around.nodes.values():
            if other["type"] == "SetNode" and (other.get("widgets_values") or [None])[0] == name:
                return resolve_input(around, other, 0, depth, kind)
        around = around.parent
    return None


def bypass_input(node: dict[str, Any], slot: int, kind: Any) -> int | None:
    """The input that a bypassed node hands on at an output, or None.

    node   in the UI format
    slot   of the output
    kind   type that the consumer takes
    """
    inputs, outputs = node.get("inputs") or [], node.get("outputs") or []
    if not inputs:
        return None
    if kind in ANY:
        return slot if slot < len(inputs) else 0
    own = outputs[slot].get("type", "*") if slot < len(outputs) else "*"
    types = [entry.get("type", "*") for entry in inputs]
    fits = [i for i, it in enumerate(types) if compatible(it, own) and compatible(it, kind)]
    if slot in fits:
        return slot
    exact = [i for i, it in enumerate(types) if it == kind]
    return (exact or fits or [None])[0]


def compatible(a: Any, b: Any) -> bool:
    """Whether two slot types may be joined: wildcards match, comma lists overlap, case is nothing.

    a, b   types
    """
    if a in ANY or b in ANY:
        return True
    return bool(set(str(a).lower().split(",")) & set(str(b).lower().split(",")))
