"""Checks a graph before it runs: every problem in one report, by ComfyUI's rules."""

from typing import Any

from .graph import Graph, Link, Node, WorkflowError
from .registry import Registry, declared_inputs

LISTED = 20  # choices that an error spells out


def validate(graph: Graph, registry: Registry) -> list[str]:
    """The ids of the outputs to run; raises WorkflowError with all problems of the graph.

    graph      constants are converted to their declared types in place, as ComfyUI does
    registry   node classes
    """
    problems = [
        f"{node}: this node type is not known here; a workflow may use {_choices(sorted(registry))}"
        for node in graph.values()
        if node.class_type not in registry
    ]
    known = {node_id: node for node_id, node in graph.items() if node.class_type in registry}
    outputs = [
        node_id
        for node_id, node in known.items()
        if getattr(registry[node.class_type], "OUTPUT_NODE", False)
    ]
    if not outputs and not problems:
        problems.append("workflow: has no output node, such as Save Image; nothing would run")
    needed = reachable(graph, outputs)
    for node_id in needed:
        if node_id in known:
            problems += check_node(known[node_id], graph, registry)
    problems += cycles(graph, needed)
    if problems:
        raise WorkflowError(problems)
    return outputs


def reachable(graph: Graph, outputs: list[str]) -> list[str]:
    """The nodes that the outputs need, in the graph's order.

    graph     nodes by id
    outputs   where to start
    """
    seen, stack = set(), list(outputs)
    while stack:
        node_id = stack.pop()
        if node_id in seen or node_id not in graph:
            continue
        seen.add(node_id)
        stack += [link.node for link in graph[node_id].links().values()]
    return [node_id for node_id in graph if node_id in seen]


def check_node(node: Node, graph: Graph, registry: Registry) -> list[str]:
    """Problems of one node's inputs.

    node       its constants are converted in place
    graph      for the sources of links
    registry   node classes
    """
    problems = []
    for name, (kind, options, required) in declared_inputs(registry[node.class_type]).items():
        where = f"{node}, input {name}"
        if name not in node.inputs:
            if required:
                problems.append(f"{where}: missing; connect it or give it a value ({_kind(kind)})")
            continue
        value = node.inputs[name]
        if isinstance(value, Link):
            fault = check_link(value, kind, graph, registry)
        else:
            node.inputs[name], fault = check_constant(value, kind, options)
        if fault:
            problems.append(f"{where}: {fault}")
    return problems or check_custom(node, registry)


def check_link(link: Link, kind: Any, graph: Graph, registry: Registry) -> str | None:
    """What is wrong with a link, or None.

    link       the input
    kind       declared type of the input
    graph      for the source
    registry   node classes
    """
    source = graph.get(link.node)
    if source is None:
        return f"is linked to node {link.node}, which is not in the workflow"
    if source.class_type not in registry:
        return None
    types = registry[source.class_type].RETURN_TYPES
    if not 0 <= link.slot < len(types):
        return f"is linked to output {link.slot} of {source}, which has {len(types)}"
    given = types[link.slot]
    if not _fits(given, kind):
        return f"expected {_wire(kind)}, got {_wire(given)} from {source}"
    return None


def check_constant(value: Any, kind: Any, options: dict[str, Any]) -> tuple[Any, str | None]:
    """The constant in its declared type, and what is wrong with it, or None.

    value     of the input
    kind      declared type
    options   declared range
    """
    if isinstance(kind, list):
        if value in kind:
            return value, None
        return value, f"expected one of {_choices(kind)}, got {value!r}"
    if kind not in ("INT", "FLOAT", "STRING", "BOOLEAN"):
        return value, f"expected a link that carries {kind}, got {value!r:.40}"
    converters = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    try:
        value = converters[kind](value)
    except (TypeError, ValueError, OverflowError):
        return value, f"expected {_kind(kind)}, got {value!r:.80}"
    if kind in ("INT", "FLOAT"):
        if "min" in options and not value >= options["min"]:
            return value, f"expected at least {options['min']}, got {value}"
        if "max" in options and not value <= options["max"]:
            return value, f"expected at most {options['max']}, got {value}"
    return value, None


def check_custom(node: Node, registry: Registry) -> list[str]:
    """Problems that the class's own VALIDATE_INPUTS finds among the constants.

    node       whose inputs passed the other checks
    registry   node classes
    """
    cls = registry[node.class_type]
    check = getattr(cls, "VALIDATE_INPUTS", None)
    if check is None:
        return []
    names = check.__code__.co_varnames[1 : check.__code__.co_argcount]
    given = {
        name: None if isinstance(node.inputs.get(name), Link) else node.inputs.get(name)
        for name in names
    }
    answer = check(**given)
    return [] if answer is True else [f"{node}, input {', '.join(names)}: {answer}"]


def cycles(graph: Graph, needed: list[str]) -> list[str]:
    """One problem naming the nodes that lie on, or only between, circles of links.

    graph    nodes by id
    needed   where to look
    """
    sources = {
        node_id: {link.node for link in graph[node_id].links().values() if link.node in graph}
        for node_id in needed
    }
    while True:
        free = {node_id for node_id, before in sources.items() if not before & sources.keys()}
        feeding = set().union(*sources.values()) if sources else set()
        free |= sources.keys() - feeding
        if not free:
            break
        sources = {node_id: before for node_id, before in sources.items() if node_id not in free}
    if not sources:
        return []
    return ["links run in a circle through " + ", ".join(str(graph[n]) for n in sources)]


def _fits(given: Any, wanted: Any) -> bool:
    """Whether an output type may feed an input type: wildcards, unions, lists to combos."""
    if isinstance(wanted, list):
        return isinstance(given, list) or given in ("*", "COMBO") or given == wanted
    if isinstance(given, list):
        return wanted in ("*", "COMBO")
    if "*" in (given, wanted):
        return True
    return bool(set(given.split(",")) & set(wanted.split(",")))


def _wire(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else str(kind)


def _kind(kind: Any) -> str:
    if isinstance(kind, list):
        return f"one of {_choices(kind)}"
    names = {
        "INT": "a whole number",
        "FLOAT": "a number",
        "STRING": "text",
        "BOOLEAN": "true or false",
    }
    return names.get(kind, str(kind))


def _choices(names: list[Any]) -> str:
    listed = ", ".join(str(name) for name in names[:LISTED])
    return listed + (f", … ({len(names)} in all)" if len(names) > LISTED else "")
