"""Inputs of a workflow, changed by name before it is queued."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .graph import Graph, Link, Node, brief, cut, listed

if TYPE_CHECKING:
    from .formats.queueing import Draft

SEEDS = ("seed", "noise_seed")
Place = tuple[str, str]  # node id, input
SHORTEST_SLIP = 4  # letters of a name in which one may be wrong
SWITCH = {"true": True, "1": True, "false": False, "0": False}


class InputError(ValueError):
    """Something on the command line, or in a file that it names, that cannot be used."""


def set_input(draft: Draft, change: str) -> None:
    """Change one input of a workflow, or every seed.

    draft    changed in place
    change   "NODE.INPUT=VALUE"; NODE is an id, a title or a node type that occurs once, and may be left
             out where one node alone has such an input
    """
    target, equals, value = change.partition("=")
    if not equals:
        raise InputError(f"--set: expected NODE.INPUT=VALUE, got {brief(change)}")
    where = f"--set {cut(change, 80)}"
    places = find_targets(draft.graph, target, where)
    if not places:
        near = nearly(target, [name for node in draft.graph.values() for name in node.widgets])
        but = f", but one has {near!r}" if near else ""
        raise InputError(
            f"{where}: no node has an input {brief(target)}{but}; expected NODE.INPUT=VALUE with one of "
            f"{listed(draft.graph.values())}"
        )
    for node_id, name in places:
        node = draft.graph[node_id]
        switch = isinstance(node.inputs.get(name), bool) or node.widgets.get(name) == "BOOLEAN"
        if switch and value.lower() not in SWITCH:
            raise InputError(f"{where}: expected true or false, got {brief(value)}")
        draft.set(node, name, SWITCH[value.lower()] if switch else value)


def find_input(graph: Graph, target: str, where: str) -> tuple[Node, str]:
    """The node and the name of an input that a person points at: one that is given, or a widget of its class.

    target   "NODE.INPUT"; NODE is an id, a title or a node type that occurs once
    where    what is said first if there is none
    """
    name, _, input_name = target.rpartition(".")
    found = [node for node in graph.values() if name in (node.id, node.title, node.class_type)]
    found = [node for node in found if node.id == name] or found
    if len(found) != 1:
        known = listed(graph.values())
        raise InputError(f"{where}: {len(found)} nodes are called {brief(name)}; there are {known}")
    names = dict.fromkeys([*found[0].inputs, *found[0].widgets])
    if input_name not in names:
        known = listed(names)
        raise InputError(f"{where}: {found[0]} has no input {brief(input_name)}; it has {known}")
    return found[0], input_name


def find_targets(graph: Graph, target: str, where: str) -> list[Place]:
    """The inputs that a name means: "NODE.INPUT", each seed, or the only input of that name; [] = none.

    where   what an error begins with
    """
    if "." in target:
        node, name = find_input(graph, target, where)
        return [(node.id, name)]
    found = [
        node
        for node in graph.values()
        if (target in node.inputs or target in node.widgets)
        and not isinstance(node.inputs.get(target), Link)
    ]
    if len(found) > 1 and target not in SEEDS:
        raise InputError(
            f"{where}: expected one node with an input {brief(target)}, got {listed(found)}; "
            f'write "NODE.{cut(target, 80)}"'
        )
    return [(node.id, target) for node in found]


def nearly(given: str, names: Iterable[str]) -> str:
    """The first name that a given one differs from by spaces, case or a letter, not its first; "" = none."""
    lower = given.strip().lower()
    for name in names:
        other = name.lower()
        long = min(len(lower), len(other)) >= SHORTEST_SLIP
        if lower == other or (long and lower[0] == other[0] and one_slip(lower, other)):
            return name
    return ""


def one_slip(one: str, other: str) -> bool:
    """Whether a letter more, less or other, or two that changed places, make one text of the other."""
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]
