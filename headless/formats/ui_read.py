"""The UI format of a workflow -> graph, by the frontend's rules.

Subgraphs are flattened ("host:inner"); muted nodes vanish, bypassed ones hand an input on; reroutes,
primitives and Get/Set pairs dissolve; widget values find their names by the order of declared inputs.

Differs in two ways. The frontend emits what is inside a muted or bypassed subgraph that lies in another
subgraph, though nothing is linked to it; an output node among that would run although somebody muted it.
And a primitive wired to a subgraph's widget is shown there but not queued by frontend 1.58.1; here it counts.
"""

import re
from typing import Any

from ..graph import Link, Node, Problem, WorkflowError, cut
from ..registry import Registry, declared_once, title_of
from .queueing import Draft, Shown
from .ui_links import BYPASSED, MUTED, VIRTUAL, resolve_input
from .ui_scopes import BadLink, Constant, Scope, Source, nodes_within, read_scopes
from .widget_values import UnknownOrder, widget_values

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def convert(data: dict[str, Any], registry: Registry) -> Draft:
    """What the frontend would queue; WorkflowError names every node that cannot be read.

    data       workflow in the UI format, version 0.4 or 1
    registry   node classes; a type that is not in it keeps its links and the values that the file names
    """
    draft = Draft({})
    problems: list[Problem] = []
    try:
        with declared_once():
            root = read_scopes(data)
            emit(root, registry, draft, problems)
            draft.shown += (shown(scope, node, registry) for scope, node in nodes_within(root))
    except WorkflowError as error:
        problems += error.problems
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        problems.append(Problem(f"workflow: not well-formed UI format: {error!r:.200}"))
    if problems:
        raise WorkflowError(problems)
    for node in draft.graph.values():
        gone = [name for name, link in node.links().items() if link.node not in draft.graph]
        for name in gone:
            del node.inputs[name]
    return draft


def emit(scope: Scope, registry: Registry, draft: Draft, problems: list[Problem]) -> None:
    """Put the scope's real nodes into the draft.

    scope      with its subgraph instances
    registry   node classes
    draft      receives the nodes
    problems   receives what cannot be read
    """
    for node_id, node in scope.part.nodes.items():
        kind = node["type"]
        if node.get("mode", 0) in (MUTED, BYPASSED) or kind in VIRTUAL:
            continue
        if node_id in scope.children:
            emit(scope.children[node_id], registry, draft, problems)
            continue
        full_id = scope.prefix + node_id
        fault = unreadable(scope, node)
        try:
            values = widget_values(node, registry.get(kind))
        except UnknownOrder as error:
            values, fault = {}, fault or unknown_order(scope, node, error)
        if fault:
            problems.append(fault)
            continue
        own, brought = joined(scope, node, values, kind in registry, problems)
        draft.typed |= dict.fromkeys((full_id, name) for name in own if name not in brought)
        draft.graph[full_id] = Node(
            full_id, kind, node["title"] or title_of(registry, kind), {**own, **brought}
        )


def joined(
    scope: Scope,
    node: dict[str, Any],
    values: dict[str, Any],
    declared: bool,
    problems: list[Problem],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A node's inputs: its own widgets, primitives among them; and over them what links and subgraphs bring.

    node       in the UI format
    values     of its widgets
    declared   whether its class is known
    problems   receives the links that lead nowhere
    """
    sources: dict[str, Source] = {}
    for i, slot in enumerate(node["inputs"]):
        try:
            sources[slot["name"]] = resolve_input(scope, node, i)
        except BadLink as error:
            line = f"{scope.name_of(node)}, input {cut(slot['name'], 80)}: {error}"
            info = {"input_name": slot["name"]}
            full_id = scope.prefix + str(node["id"])
            problems.append(Problem(line, error.type, full_id, str(error), info))
    constants = {
        name: source
        for name, source in sources.items()
        if isinstance(source, Constant) and (name in values or not declared)
    }
    primitives = {name: each.value for name, each in constants.items() if not each.promoted}
    promoted = {name: each.value for name, each in constants.items() if each.promoted}
    overridden = scope.overrides.get(str(node["id"]), {})
    overrides = {name: value for name, value in overridden.items() if name in values}
    links = {name: source for name, source in sources.items() if isinstance(source, Link)}
    return {**values, **primitives}, {**overrides, **promoted, **links}


def shown(scope: Scope, node: dict[str, Any], registry: Registry) -> Shown:
    """A node as file names refer to it.

    node       in the UI format
    registry   node classes
    """
    try:
        values = widget_values(node, registry.get(node["type"]))
    except UnknownOrder:
        values = {}
    kind = str(node["properties"].get("Node name for S&R", node["type"]))
    title = node["title"] or title_of(registry, node["type"])
    return Shown(scope.prefix + str(node["id"]), (kind, title), values)


def unreadable(scope: Scope, node: dict[str, Any]) -> Problem | None:
    """What keeps a node from being read whatever its class, or None.

    node    in the UI format
    """
    name, node_id = scope.name_of(node), scope.prefix + str(node["id"])
    if UUID.fullmatch(node["type"]):
        line = f"{name}: is an instance of a subgraph that the file does not define"
        return Problem(line, "missing_subgraph", node_id)
    if node["type"].startswith(("workflow>", "workflow/")):
        line = f"{name}: group nodes are not supported; convert it to a subgraph in ComfyUI"
        return Problem(line, "unsupported_group_node", node_id)
    return None


def unknown_order(scope: Scope, node: dict[str, Any], error: UnknownOrder) -> Problem:
    """The problem of a node of unknown class whose widget values have no names.

    node    in the UI format
    error   says what is missing
    """
    properties = node["properties"]
    pack = properties.get("cnr_id") or properties.get("aux_id") or "an unnamed pack"
    line = (
        f"{scope.name_of(node)}: this node type, of {pack}, is not known here, and the file holds "
        f"{error}"
    )
    info = {"class_type": node["type"], "pack": pack}
    return Problem(line, "missing_node_type", scope.prefix + str(node["id"]), str(error), info)
