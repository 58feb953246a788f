"""Checks a graph before it runs: every problem in one report, by ComfyUI's rules and under its names."""

import inspect
import math
from dataclasses import dataclass
from typing import Any

from ..graph import Graph, Link, Node, Problem, WorkflowError, brief, cut, listed
from ..registry import Registry, declared_inputs, declared_once
from .cache_keys import constants
from .node_calls import is_blocker, make_calls, settle

LISTED = 20  # choices that ComfyUI sends with a declaration
WIRES = ("IMAGE", "MASK", "LATENT", "CONDITIONING", "MODEL", "CLIP", "VAE")  # never constants
SIMPLE = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass
class Verdict:
    """What a check found.

    outputs    ids of the output nodes that can run
    problems   of the nodes that outputs need, and of unknown ones
    """

    outputs: list[str]
    problems: list[Problem]


def validate(graph: Graph, registry: Registry) -> list[str]:
    """The ids of the outputs to run; raises WorkflowError with all problems of the graph.

    graph      constants are converted to their declared types in place, as ComfyUI does
    """
    verdict = check(graph, registry)
    if verdict.problems:
        raise WorkflowError(verdict.problems)
    return verdict.outputs


def check(graph: Graph, registry: Registry, targets: list[str] | None = None) -> Verdict:
    """The outputs that can run, and every problem; one output's problems do not stop another.

    graph      constants are converted to their declared types in place
    targets    outputs to run; None = all
    """
    with declared_once():
        return _check(graph, registry, targets)


def _check(graph: Graph, registry: Registry, targets: list[str] | None) -> Verdict:
    unknown = [unknown_type(n, registry) for n in graph.values() if n.class_type not in registry]
    if unknown:
        return Verdict([], unknown + problems_of(graph, registry, output_ids(graph, registry)))
    outputs = [
        node_id for node_id in output_ids(graph, registry) if targets is None or node_id in targets
    ]
    if not outputs:
        line = "workflow: has no output node, such as Save Image; nothing would run"
        return Verdict([], [Problem(line, "prompt_no_outputs")])
    problems = problems_of(graph, registry, outputs)
    bad = spoilt(graph, {problem.node for problem in problems})
    return Verdict([output for output in outputs if output not in bad], problems)


def spoilt(graph: Graph, bad: set[str]) -> set[str]:
    """The nodes of `bad`, and all that need one of them, directly or through others."""
    takers: dict[str, list[str]] = {}
    for node in graph.values() if bad else ():
        for link in node.links().values():
            takers.setdefault(link.node, []).append(node.id)
    found, stack = set(bad), list(bad)
    while stack:
        new = [taker for taker in takers.get(stack.pop(), ()) if taker not in found]
        found.update(new)
        stack += new
    return found


def output_ids(graph: Graph, registry: Registry) -> list[str]:
    """The ids of a graph's output nodes."""
    return [
        node_id
        for node_id, node in graph.items()
        if getattr(registry.get(node.class_type), "OUTPUT_NODE", False)
    ]


def problems_of(graph: Graph, registry: Registry, outputs: list[str]) -> list[Problem]:
    """The problems of all known nodes that outputs need."""
    needed = reachable(graph, outputs)
    problems: list[Problem] = []
    for node_id in needed:
        if graph[node_id].class_type in registry:
            problems += check_node(graph[node_id], graph, registry)
    return problems + cycles(graph, needed)


def unknown_type(node: Node, registry: Registry) -> Problem:
    """The problem of a node whose class is not known."""
    known = listed(sorted(registry))
    line = f"{node}: this node type is not known here; a workflow may use {known}"
    info = {"node_id": node.id, "class_type": node.class_type, "node_title": node.title}
    return Problem(line, "missing_node_type", node.id, node.class_type, info)


def reachable(graph: Graph, outputs: list[str]) -> list[str]:
    """The nodes that the outputs need, in the graph's order.

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


def check_node(node: Node, graph: Graph, registry: Registry) -> list[Problem]:
    """Problems of one node's inputs.

    node       its constants are converted in place
    """
    problems = []
    cls: Any = registry[node.class_type]
    names, takes_all = validator_arguments(cls)
    for name, (kind, options, required) in declared_inputs(cls).items():
        value = node.inputs.get(name)
        if name not in node.inputs:
            fault = (
                "required_input_missing",
                f"missing; connect it or give it a value ({_kind(kind)})",
            )
            fault = fault if required else None
        elif isinstance(value, Link):
            fault = check_link(value, kind, graph, registry, "input_types" in names)
        else:
            own = takes_all or name in names
            node.inputs[name], fault = check_constant(value, kind, {} if own else options, own)
        if fault:
            info = {"input_name": name, "input_config": _config(kind, options)}
            if isinstance(value, Link):
                info["linked_node"] = [value.node, value.slot]
            elif value is not None:
                info["received_value"] = value
            line = f"{node}, input {cut(name, 80)}: {fault[1]}"
            problems.append(Problem(line, fault[0], node.id, f"{name}: {fault[1]}", info))
    return problems or check_custom(node, graph, registry)


Fault = tuple[str, str]  # ComfyUI's type, what a person reads


def check_link(
    link: Link, kind: Any, graph: Graph, registry: Registry, any_type: bool = False
) -> Fault | None:
    """What is wrong with a link, or None.

    any_type   the class checks the types of its links itself
    """
    source = graph.get(link.node)
    if source is None:
        text = f"is linked to node {cut(link.node, 80)}, which is not in the workflow"
        return "exception_during_inner_validation", text
    if source.class_type not in registry:
        return None
    types = getattr(registry[source.class_type], "RETURN_TYPES", ())
    if not 0 <= link.slot < len(types):
        text = f"is linked to output {brief(link.slot)} of {source}, which has {len(types)}"
        return "exception_during_inner_validation", text
    given = types[link.slot]
    if not any_type and not _fits(given, kind):
        return "return_type_mismatch", f"expected {_wire(kind)}, got {_wire(given)} from {source}"
    return None


def check_constant(
    value: Any, kind: Any, options: dict[str, Any], any_choice: bool = False
) -> tuple[Any, Fault | None]:
    """The constant in its declared type, and what is wrong with it, or None.

    any_choice   the class checks its choices itself
    """
    if isinstance(kind, list):
        if any_choice or value in kind or options.get("remote"):
            return value, None
        text = f"expected one of {listed(kind)}, got {brief(value)}"
        return value, ("value_not_in_list", text)
    if kind not in SIMPLE:
        if kind not in WIRES and not str(kind).startswith("IMAGEN_"):
            return value, None  # ComfyUI takes any constant; some packs' types are plain values
        text = f"expected a link that carries {kind}, got {brief(value)}"
        return value, ("invalid_input_type", text)
    try:
        if is_nothing(value) or (kind == "STRING" and isinstance(value, (list, dict))):
            raise ValueError
        made = SIMPLE[kind](value)
        if is_nothing(made):
            raise ValueError
        value = made
    except (TypeError, ValueError, OverflowError):
        return value, ("invalid_input_type", f"expected {_kind(kind)}, got {brief(value)}")
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min"), options.get("max")
        if low is not None and not value >= low:
            return value, ("value_smaller_than_min", f"expected at least {low}, got {brief(value)}")
        if high is not None and not value <= high:
            return value, ("value_bigger_than_max", f"expected at most {high}, got {brief(value)}")
    return value, None


def is_nothing(value: Any) -> bool:
    """Whether a constant is null or no finite number; ComfyUI would draw "None" and "nan"."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def validator_arguments(cls: Any) -> tuple[list[str], bool]:
    """The inputs that a class checks itself, and whether it checks all."""
    function = getattr(cls, "VALIDATE_INPUTS", None)
    if function is None:
        return [], False
    spec = inspect.getfullargspec(function)
    return [name for name in spec.args if name not in ("cls", "self", "s")], spec.varkw is not None


def check_custom(node: Node, graph: Graph, registry: Registry) -> list[Problem]:
    """Problems that the class's own VALIDATE_INPUTS finds among the constants.

    node       whose inputs passed the other checks
    """
    cls: Any = registry[node.class_type]
    if not hasattr(cls, "VALIDATE_INPUTS"):
        return []
    names, takes_all = validator_arguments(cls)
    given = {k: v for k, v in constants(node, cls).items() if takes_all or k in names}
    if "input_types" in names:
        given["input_types"] = [received_types(node, graph, registry)]
    if not given:
        return []
    try:
        answers = [settle(answer) for answer in make_calls(cls.VALIDATE_INPUTS, given, False)]
    except Exception as error:  # the class's own code
        line = f"{node}: its inputs could not be checked: {error}"
        return [Problem(line, "exception_during_validation", node.id, str(error))]
    where = ", ".join(given)
    # Answers about all inputs' types begin with the input.
    place = "input" if where == "input_types" else f"input {where}:"
    return [
        Problem(
            f"{node}, {place} {answer or 'not valid'}",
            "custom_validation_failed",
            node.id,
            f"{where} - {answer}" if answer else where,
            {"input_name": next(iter(given))},
        )
        for answer in answers
        if answer is not True and not is_blocker(answer)
    ]


def received_types(node: Node, graph: Graph, registry: Registry) -> dict[str, Any]:
    """The types that a node's links bring, by input."""
    return {
        name: getattr(registry[graph[link.node].class_type], "RETURN_TYPES", ())[link.slot]
        for name, link in node.links().items()
        if link.node in graph and graph[link.node].class_type in registry
    }


def cycles(graph: Graph, needed: list[str]) -> list[Problem]:
    """One problem naming the nodes that lie on, or only between, circles of links.

    needed   where to look
    """
    before = {
        node_id: {link.node for link in graph[node_id].links().values() if link.node in graph}
        for node_id in needed
    }
    after: dict[str, set[str]] = {node_id: set() for node_id in needed}
    for node_id, sources in before.items():
        for source in sources:
            after[source].add(node_id)
    circle = set(needed)
    for near, far in ((before, after), (after, before)):
        # Again and again, nodes are taken away that none before them, or none after them, holds.
        waiting = {node_id: len(near[node_id] & circle) for node_id in circle}
        free = [node_id for node_id, count in waiting.items() if not count]
        while free:
            node_id = free.pop()
            circle.discard(node_id)
            for other in far[node_id] & circle:
                waiting[other] -= 1
                if not waiting[other]:
                    free.append(other)
    if not circle:
        return []
    named = [node_id for node_id in needed if node_id in circle]
    line = "links run in a circle through " + listed([graph[n] for n in named])
    return [Problem(line, "dependency_cycle", named[0], extra_info={"nodes": named})]


def _fits(given: Any, wanted: Any) -> bool:
    """Whether an output type may feed an input type: wildcards, unions, lists to combos.

    The first test is "not unequal": some packs' types are text that is unequal to nothing.
    """
    if not (given != wanted):  # noqa: SIM202
        return True
    if isinstance(wanted, list):
        return isinstance(given, list) or given in ("*", "COMBO")
    if isinstance(given, list):
        return wanted in ("*", "COMBO")
    if "*" in (given, wanted) or "COMFY_MATCHTYPE_V3" in (given, wanted):
        return True
    return bool(set(given.split(",")) & set(wanted.split(",")))


def _config(kind: Any, options: dict[str, Any]) -> Any:
    """A declaration as ComfyUI sends it; a long list of choices is left out."""
    return None if isinstance(kind, list) and len(kind) > LISTED else [kind, options]


def _wire(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else str(kind)


def _kind(kind: Any) -> str:
    if isinstance(kind, list):
        return f"one of {listed(kind)}"
    names = {
        "INT": "a whole number",
        "FLOAT": "a number",
        "STRING": "text",
        "BOOLEAN": "true or false",
    }
    return names.get(kind, str(kind))
