"""The UI format of a workflow -> graph, by the frontend's rules.

Subgraphs are flattened ("host:inner"); muted nodes vanish, bypassed ones hand an input on; reroutes,
primitives and Get/Set pairs dissolve; widget values find their names by the order of declared inputs.
"""

from dataclasses import dataclass, field
from typing import Any

from .graph import Graph, Link, Node, WorkflowError
from .registry import (
    CONTROLS,
    Registry,
    declared_inputs,
    default_value,
    extra_values,
    is_widget,
)

MUTED, BYPASSED = 2, 4
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20
NOTES = ("Note", "MarkdownNote")
VIRTUAL = (*NOTES, "Reroute", "PrimitiveNode", "GetNode", "SetNode")
DEEPEST = 100  # links and subgraphs that are followed before a loop is assumed


@dataclass(frozen=True)
class UILink:
    """A link of the UI format."""

    origin: int | str
    origin_slot: int
    target: int | str
    target_slot: int
    kind: Any


@dataclass(frozen=True)
class Constant:
    """What an input resolves to where no node feeds it."""

    value: Any


@dataclass
class Scope:
    """A graph or one instance of a subgraph.

    prefix       "" or "host:" of the ids inside
    nodes        by id
    links        by id
    definition   of the subgraph; None at the root
    host         the instance's node, in `parent`
    overrides    values that the host sets on inner widgets: (inner id, widget name) -> value
    """

    prefix: str
    nodes: dict[str, dict[str, Any]]
    links: dict[Any, UILink]
    definition: dict[str, Any] | None = None
    host: dict[str, Any] | None = None
    parent: "Scope | None" = None
    children: dict[str, "Scope"] = field(default_factory=dict)
    overrides: dict[tuple[str, str], Any] = field(default_factory=dict)


def convert(data: dict[str, Any], registry: Registry) -> Graph:
    """The graph that the frontend would queue.

    data       workflow in the UI format, version 0.4 or 1
    registry   node classes; a type that is not in it keeps its links and named values
    """
    try:
        definitions = {
            entry["id"]: entry for entry in data.get("definitions", {}).get("subgraphs", [])
        }
        root = make_scope(data, definitions, "", 0)
        graph: Graph = {}
        emit(root, definitions, registry, graph)
    except WorkflowError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise WorkflowError([f"workflow: not well-formed UI format: {error!r}"]) from error
    return graph


def make_scope(
    data: dict[str, Any],
    definitions: dict[str, Any],
    prefix: str,
    depth: int,
    host: dict[str, Any] | None = None,
    parent: Scope | None = None,
) -> Scope:
    """A graph with all subgraph instances inside it.

    data          nodes and links
    definitions   subgraphs by id
    prefix        of the ids inside
    depth         of nesting so far
    host, parent  the instance, for a subgraph
    """
    if depth > DEEPEST:
        raise WorkflowError([f"subgraph {prefix}: nested more than {DEEPEST} deep"])
    scope = Scope(
        prefix,
        {str(node["id"]): node for node in data["nodes"]},
        dict(parse_link(link) for link in data.get("links") or []),
        data if host is not None else None,
        host,
        parent,
    )
    for node_id, node in scope.nodes.items():
        if node["type"] in definitions:
            inner = make_scope(
                definitions[node["type"]],
                definitions,
                f"{prefix}{node_id}:",
                depth + 1,
                node,
                scope,
            )
            inner.overrides = promoted_overrides(node)
            scope.children[node_id] = inner
    return scope


def parse_link(link: Any) -> tuple[Any, UILink]:
    """A link's id and ends, from either spelling.

    link   [id, origin, slot, target, slot, type] or an object
    """
    if isinstance(link, dict):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        link = [*(link[name] for name in names), link.get("type", "*")]
    link_id, origin, origin_slot, target, target_slot, *kind = link
    return link_id, UILink(origin, origin_slot, target, target_slot, kind[0] if kind else "*")


def promoted_overrides(host: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Values that a subgraph instance sets on inner widgets (properties.proxyWidgets).

    host   the instance's node
    """
    proxies = host.get("properties", {}).get("proxyWidgets") or []
    values = host.get("widgets_values") or []
    pairs = zip(proxies, values, strict=False) if isinstance(values, list) else []
    return {
        (str(entry[0]), str(entry[1])): value for entry, value in pairs if str(entry[0]) != "-1"
    }


def emit(scope: Scope, definitions: dict[str, Any], registry: Registry, graph: Graph) -> None:
    """Put the scope's real nodes into the graph.

    scope         with its subgraph instances
    definitions   subgraphs by id
    registry      node classes
    graph         receives the nodes
    """
    for node_id, node in scope.nodes.items():
        kind = node["type"]
        if node.get("mode", 0) in (MUTED, BYPASSED) or kind in VIRTUAL:
            continue
        if node_id in scope.children:
            emit(scope.children[node_id], definitions, registry, graph)
            continue
        full_id = scope.prefix + node_id
        title = node.get("title") or kind
        inputs = widget_values(node, registry.get(kind))
        for (inner, name), value in scope.overrides.items():
            if inner == node_id and name in inputs:
                inputs[name] = value
        for index, slot in enumerate(node.get("inputs") or []):
            source = resolve_input(scope, node, index, 0)
            if isinstance(source, Link):
                inputs[slot["name"]] = source
            elif isinstance(source, Constant):
                inputs[slot["name"]] = source.value
        graph[full_id] = Node(full_id, kind, title, inputs)


def widget_values(node: dict[str, Any], cls: type | None) -> dict[str, Any]:
    """A node's widget values by name.

    node   in the UI format
    cls    its class; None where it is unknown
    """
    values = node.get("widgets_values")
    named = node.get("widgets_values_named")
    if isinstance(values, dict):
        named, values = values, None
    if cls is None:
        return dict(named or {})
    widgets = {
        name: (kind, options)
        for name, (kind, options, _) in declared_inputs(cls).items()
        if is_widget(kind, options)
    }
    result, position = {}, 0
    values = values or []
    for name, (kind, options) in widgets.items():
        if position < len(values):
            result[name] = values[position]
            position += 1 + _extra_at(values, position + 1, extra_values(name, kind, options))
        else:
            result[name] = default_value(kind, options)
    result.update({name: value for name, value in (named or {}).items() if name in widgets})
    return result


def _extra_at(values: list[Any], position: int, most: int) -> int:
    """How many of the values from a position on are controls or buttons rather than widgets."""
    count = 0
    for value in values[position : position + most]:
        if not (value in CONTROLS or isinstance(value, bool) or value in ("image", "", None)):
            break
        count += 1
    return count


def resolve_input(
    scope: Scope, node: dict[str, Any], index: int, depth: int
) -> Link | Constant | None:
    """What feeds an input slot: a real node's output, a constant, or nothing.

    scope   of the node
    node    in the UI format
    index   of the slot in node["inputs"]
    depth   links followed so far
    """
    if depth > DEEPEST:
        raise WorkflowError([f"node {scope.prefix}{node['id']}: its links run in a circle"])
    link = scope.links.get(node["inputs"][index].get("link"))
    if link is None:
        return None
    return resolve_origin(scope, link, depth + 1)


def resolve_origin(scope: Scope, link: UILink, depth: int) -> Link | Constant | None:
    """What a link brings.

    scope   of the link
    link    to follow up
    depth   links followed so far
    """
    if link.origin == SUBGRAPH_INPUT:
        return resolve_host_input(scope, link.origin_slot, depth)
    node_id = str(link.origin)
    node = scope.nodes.get(node_id)
    if node is None or node.get("mode", 0) == MUTED or node["type"] in NOTES:
        return None
    if node.get("mode", 0) == BYPASSED:
        index = bypass_input(node, link.origin_slot, link.kind)
        return None if index is None else resolve_input(scope, node, index, depth)
    if node_id in scope.children:
        return resolve_subgraph_output(scope.children[node_id], link.origin_slot, depth)
    if node["type"] == "Reroute" or node["type"] == "SetNode":
        return resolve_input(scope, node, 0, depth)
    if node["type"] == "PrimitiveNode":
        values = node.get("widgets_values") or []
        return Constant(values[0]) if values else None
    if node["type"] == "GetNode":
        return resolve_get(scope, node, depth)
    return Link(scope.prefix + node_id, int(link.origin_slot))


def resolve_host_input(scope: Scope, slot: int, depth: int) -> Link | Constant | None:
    """What feeds input `slot` of a subgraph instance: its link, else its promoted widget's value.

    scope   inside the instance
    slot    index among the definition's inputs
    depth   links followed so far
    """
    host, parent = scope.host, scope.parent
    if host is None or parent is None or scope.definition is None:
        return None
    name = scope.definition["inputs"][slot]["name"]
    slots = host.get("inputs") or []
    index = next((i for i, entry in enumerate(slots) if entry["name"] == name), None)
    if index is not None:
        source = resolve_input(parent, host, index, depth)
        if source is not None:
            return source
    values = host.get("widgets_values") or []
    proxies = host.get("properties", {}).get("proxyWidgets")
    if proxies:
        order = [str(entry[1]) if str(entry[0]) == "-1" else None for entry in proxies]
    else:
        order = [entry["name"] for entry in slots if entry.get("widget")]
    if name in order and order.index(name) < len(values):
        return Constant(values[order.index(name)])
    return None


def resolve_subgraph_output(scope: Scope, slot: int, depth: int) -> Link | Constant | None:
    """What a subgraph instance puts out at a slot.

    scope   inside the instance
    slot    index among its outputs
    depth   links followed so far
    """
    if depth > DEEPEST:
        raise WorkflowError([f"subgraph {scope.prefix}: its links run in a circle"])
    for link in scope.links.values():
        if link.target == SUBGRAPH_OUTPUT and link.target_slot == slot:
            return resolve_origin(scope, link, depth + 1)
    return None


def resolve_get(scope: Scope, node: dict[str, Any], depth: int) -> Link | Constant | None:
    """What the SetNode of the same name was given, in this scope or one around it.

    scope   of the GetNode
    node    the GetNode
    depth   links followed so far
    """
    name = (node.get("widgets_values") or [None])[0]
    around: Scope | None = scope
    while around is not None:
        for other in around.nodes.values():
            if other["type"] == "SetNode" and (other.get("widgets_values") or [None])[0] == name:
                return resolve_input(around, other, 0, depth)
        around = around.parent
    return None


def bypass_input(node: dict[str, Any], slot: int, consumer: Any) -> int | None:
    """The input that a bypassed node hands on at an output, or None.

    node       in the UI format
    slot       of the output
    consumer   type that the link carries
    """
    inputs, outputs = node.get("inputs") or [], node.get("outputs") or []
    if not inputs:
        return None
    if consumer in ("*", "", 0):
        return slot if slot < len(inputs) else 0
    own = outputs[slot].get("type", "*") if slot < len(outputs) else "*"
    if slot < len(inputs):
        same = inputs[slot].get("type", "*")
        if compatible(same, own) and compatible(same, consumer):
            return slot
    exact = [i for i, entry in enumerate(inputs) if entry.get("type") == consumer]
    fits = [i for i, entry in enumerate(inputs) if compatible(entry.get("type", "*"), consumer)]
    return (exact or fits or [None])[0]


def compatible(a: Any, b: Any) -> bool:
    """Whether two slot types may be joined: wildcards match, comma lists overlap, case is nothing.

    a, b   types
    """
    if a in ("*", "", 0) or b in ("*", "", 0):
        return True
    return bool(set(str(a).lower().split(",")) & set(str(b).lower().split(",")))
