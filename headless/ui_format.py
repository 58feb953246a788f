"""The UI format of a workflow -> graph, by the frontend's rules.

Subgraphs are flattened ("host:inner"); muted nodes vanish, bypassed ones hand an input on; reroutes,
primitives and Get/Set pairs dissolve; widget values find their names by the order of declared inputs.

Differs in two ways. The frontend emits what is inside a muted or bypassed subgraph that lies in another
subgraph, though nothing is linked to it; an output node among that would run although somebody muted it.
And a primitive wired to a subgraph's widget is shown there but not queued by frontend 1.58.1; here it counts.
"""

import re
from typing import Any

from .graph import Graph, Link, Node, Problem, WorkflowError
from .queued_texts import Moment, QueuedTexts
from .registry import Registry
from .ui_resolve import BYPASSED, MUTED, VIRTUAL, Constant, resolve_input
from .ui_scope import Scope, read_scopes
from .widgets import UnknownOrder, widget_values

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def convert(data: dict[str, Any], registry: Registry, moment: Moment) -> Graph:
    """The graph that the frontend would queue; WorkflowError names every node that cannot be read.

    data       workflow in the UI format, version 0.4 or 1
    registry   node classes; a type that is not in it keeps its links and the values that the file names
    moment     in which it is queued: prompts with {a|b} and file names with a date depend on it
    """
    graph: Graph = {}
    problems: list[Problem] = []
    try:
        root = read_scopes(data)
        emit(root, QueuedTexts(root, registry, moment), graph, problems)
    except WorkflowError as error:
        problems += error.problems
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        problems.append(Problem(f"workflow: not well-formed UI format: {error!r}"))
    if problems:
        raise WorkflowError(problems)
    for node in graph.values():
        gone = [name for name, link in node.links().items() if link.node not in graph]
        for name in gone:
            del node.inputs[name]
    return graph


def emit(scope: Scope, texts: QueuedTexts, graph: Graph, problems: list[Problem]) -> None:
    """Put the scope's real nodes into the graph.

    scope      with its subgraph instances
    texts      of the workflow, and the node classes
    graph      receives the nodes
    problems   receives what cannot be read
    """
    for node_id, node in scope.nodes.items():
        kind = node["type"]
        if node.get("mode", 0) in (MUTED, BYPASSED) or kind in VIRTUAL:
            continue
        if node_id in scope.children:
            emit(scope.children[node_id], texts, graph, problems)
            continue
        full_id = scope.prefix + node_id
        fault = unreadable(scope, node)
        try:
            values = widget_values(node, texts.registry.get(kind))
        except UnknownOrder as error:
            values, fault = {}, fault or unknown_order(scope, node, error)
        if fault:
            problems.append(fault)
            continue
        inputs = joined(scope, node, values, texts)
        graph[full_id] = Node(full_id, kind, node.get("title") or kind, inputs)


def joined(
    scope: Scope, node: dict[str, Any], values: dict[str, Any], texts: QueuedTexts
) -> dict[str, Any]:
    """A node's inputs: its widgets as they are queued, and over them what links and subgraphs bring.

    scope    of the node
    node     in the UI format
    values   of its widgets
    texts    of the workflow
    """
    kind = node["type"]
    slots = [slot["name"] for slot in node.get("inputs") or []]
    sources = {name: resolve_input(scope, node, i) for i, name in enumerate(slots)}
    brought = {
        name: source
        for name, source in sources.items()
        if isinstance(source, Constant) and (name in values or kind not in texts.registry)
    }
    own = {name: source.value for name, source in brought.items() if not source.promoted}
    promoted = {name: source.value for name, source in brought.items() if source.promoted}
    overrides = {
        name: value
        for (inner, name), value in scope.overrides.items()
        if inner == str(node["id"]) and name in values
    }
    links = {name: source for name, source in sources.items() if isinstance(source, Link)}
    return {**texts.of(kind, {**values, **own}), **overrides, **promoted, **links}


def unreadable(scope: Scope, node: dict[str, Any]) -> Problem | None:
    """What keeps a node from being read whatever its class, or None.

    scope   of the node
    node    in the UI format
    """
    name, node_id = scope.name_of(node), scope.prefix + str(node["id"])
    if UUID.fullmatch(str(node["type"])):
        line = f"{name}: is an instance of a subgraph that the file does not define"
        return Problem(line, "missing_subgraph", node_id)
    if str(node["type"]).startswith(("workflow>", "workflow/")):
        line = f"{name}: group nodes are not supported; convert it to a subgraph in ComfyUI"
        return Problem(line, "unsupported_group_node", node_id)
    return None


def unknown_order(scope: Scope, node: dict[str, Any], error: UnknownOrder) -> Problem:
    """The problem of a node of unknown class whose widget values have no names.

    scope   of the node
    node    in the UI format
    error   says what is missing
    """
    properties = node.get("properties") or {}
    pack = properties.get("cnr_id") or properties.get("aux_id") or "an unnamed pack"
    line = (
        f"{scope.name_of(node)}: this node type, of {pack}, is not known here, and the file holds "
        f"{error}"
    )
    info = {"class_type": node["type"], "pack": pack}
    return Problem(line, "missing_node_type", scope.prefix + str(node["id"]), str(error), info)
