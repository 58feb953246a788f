"""What feeds an input in the UI format: through reroutes, bypassed nodes and subgraphs, up to a real node."""

from dataclasses import dataclass
from typing import Any

from ..graph import Link, brief
from .ui_parts import SUBGRAPH_INPUT, UILink, first_value
from .ui_scopes import BadLink, Constant, Scope, Source

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "Reroute", "PrimitiveNode", "GetNode", "SetNode")
ANY = ("*", "", 0)


@dataclass(frozen=True)
class Step:
    """Where a link is followed on.

    scope     of the next link
    link      the next link
    kind      type that its consumer takes
    left      the instance that was left through its input, and the input's name; None = none was
    """

    scope: Scope
    link: UILink
    kind: Any
    left: tuple[Scope, str] | None = None


def resolve_input(scope: Scope, node: dict[str, Any], index: int) -> Source:
    """What feeds an input slot: a real node's output, a constant, or nothing; BadLink where it leads nowhere.

    node    in the UI format
    index   of the slot in node["inputs"]

    A link is followed once for all the inputs that it leads to.
    """
    step = into(scope, node, index)
    trail: list[tuple[dict[Any, Any], Any, tuple[Scope, str] | None]] = []
    followed = set()
    source: Source | BadLink = None
    while isinstance(step, Step):
        known, key = step.scope.resolved, (step.link.origin, step.link.origin_slot, step.kind)
        trail.append((known, key, step.left))
        if key in known:
            source, step = known[key], None
        elif (id(known), key) in followed:
            source, step = BadLink("its links run in a circle", "dependency_cycle"), None
        else:
            followed.add((id(known), key))
            try:
                step = follow(step.scope, step.link, step.kind)
                source = None if isinstance(step, Step) else step
            except BadLink as error:
                source, step = error, None
    for known, key, left in reversed(trail):
        known[key] = source
        if left is not None and not isinstance(source, BadLink):
            source = entering(*left, source)
    if isinstance(source, BadLink):
        raise source
    return source


def into(scope: Scope, node: dict[str, Any], index: int, kind: Any = None) -> Step | None:
    """The link of an input slot, where it has one.

    kind   type that the first consumer takes; None = this slot is the first
    """
    if not 0 <= index < len(node["inputs"]):
        return None
    slot = node["inputs"][index]
    link = scope.part.links.get(slot["link"])
    return link and Step(scope, link, slot["type"] if kind is None else kind)


def follow(scope: Scope, link: UILink, kind: Any) -> Step | Source:
    """What a link brings, or where it is followed on.

    kind   type that the consumer takes
    """
    if link.origin == SUBGRAPH_INPUT:
        return out_of(scope, whole(link.origin_slot))
    node_id = str(link.origin)
    node = scope.part.nodes.get(node_id)
    if node is None or node.get("mode", 0) == MUTED or node["type"] in NOTES:
        return None
    if node.get("mode", 0) == BYPASSED:
        index = bypass_input(node, whole(link.origin_slot), kind)
        return None if index is None else into(scope, node, index)
    if node_id in scope.children:
        child = scope.children[node_id]
        inner = child.part.output_link(whole(link.origin_slot))
        return inner and Step(child, inner, kind)
    if node["type"] in ("Reroute", "SetNode"):
        return into(scope, node, 0, kind)
    if node["type"] == "PrimitiveNode":
        value = first_value(node)
        return None if value is None else Constant(value)
    if node["type"] == "GetNode":
        return from_setter(scope, first_value(node), kind)
    return Link(scope.prefix + node_id, whole(link.origin_slot))


def out_of(scope: Scope, slot: int) -> Step | Source:
    """What feeds input `slot` of a subgraph instance: its link, else its promoted widget's value.

    scope   inside the instance
    """
    host, parent, inputs = scope.host, scope.parent, scope.part.inputs
    if host is None or parent is None or not 0 <= slot < len(inputs):
        return None
    name = inputs[slot]["name"]
    step = into(parent, host, scope.host_slots.get(name, -1))
    if step is None:
        return entering(scope, name, None)
    return Step(step.scope, step.link, step.kind, (scope, name))


def entering(scope: Scope, name: str, source: Source) -> Source:
    """What an instance's input brings inside: what feeds it, else its promoted widget's value.

    scope    inside the instance
    source   what its link brings
    """
    if isinstance(source, Constant):
        return Constant(source.value, promoted=True)
    if source is None and name in scope.promoted:
        return Constant(scope.promoted[name], promoted=True)
    return source


def from_setter(scope: Scope, name: Any, kind: Any) -> Step | None:
    """The link of the SetNode of that name, in this scope or one around it.

    kind   type that the consumer takes
    """
    around: Scope | None = scope if isinstance(name, str) else None
    while around is not None:
        if name in around.part.setters:
            return into(around, around.part.setters[name], 0, kind)
        around = around.parent
    return None


def whole(slot: Any) -> int:
    """The number of an output; BadLink where it is none."""
    if isinstance(slot, float) and slot.is_integer():
        return int(slot)
    if isinstance(slot, str) and slot.isdecimal() and len(slot) < 10:
        return int(slot)
    if isinstance(slot, int) and not isinstance(slot, bool):
        return slot
    raise BadLink(f"expected a link from an output's number, got {brief(slot)}")


def bypass_input(node: dict[str, Any], slot: int, kind: Any) -> int | None:
    """The input that a bypassed node hands on at an output, or None.

    node   in the UI format
    slot   of the output
    kind   type that the consumer takes
    """
    inputs, outputs = node["inputs"], node["outputs"]
    if not inputs:
        return None
    if kind in ANY:
        return slot if 0 <= slot < len(inputs) else 0
    own = outputs[slot]["type"] if 0 <= slot < len(outputs) else "*"
    types = [entry["type"] for entry in inputs]
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
