"""Inputs of a workflow, changed by name before it is queued."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graph import Graph, Node, brief, cut, listed

if TYPE_CHECKING:
    from .formats.queueing import Draft

SWITCH = {"true": True, "1": True, "false": False, "0": False}


class InputError(ValueError):
    """Something on the command line, or in a file that it names, that cannot be used."""


def set_input(draft: Draft, change: str) -> None:
    """Change one input of a workflow.

    draft    changed in place
    change   "NODE.INPUT=VALUE"; NODE is an id, a title or a node type that occurs once
    """
    target, equals, value = change.partition("=")
    if not equals or "." not in target:
        raise InputError(f"--set: expected NODE.INPUT=VALUE, got {brief(change)}")
    where = f"--set {cut(change, 80)}"
    node, name = find_input(draft.graph, target, where)
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
