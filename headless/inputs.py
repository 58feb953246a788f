"""Inputs of a workflow, changed by name before it is queued."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .graph import Graph, Node

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
        raise InputError(f"--set: expected NODE.INPUT=VALUE, got {change!r}")
    node, name = find_input(draft.graph, target, f"--set {change}")
    switch = isinstance(node.inputs[name], bool)
    if switch and value.lower() not in SWITCH:
        raise InputError(f"--set {change}: expected true or false, got {value!r}")
    draft.set(node, name, SWITCH[value.lower()] if switch else value)


def find_input(graph: Graph, target: str, where: str) -> tuple[Node, str]:
    """The node and the name of an input that a person points at.

    target   "NODE.INPUT"; NODE is an id, a title or a node type that occurs once
    where    what is said first if there is none
    """
    name, _, input_name = target.rpartition(".")
    found = [node for node in graph.values() if name in (node.id, node.title, node.class_type)]
    found = [node for node in found if node.id == name] or found
    if len(found) != 1:
        known = ", ".join(str(node) for node in graph.values())
        raise InputError(f"{where}: {len(found)} nodes are called {name!r}; there are {known}")
    if input_name not in found[0].inputs:
        known = ", ".join(found[0].inputs)
        raise InputError(f"{where}: {found[0]} has no input {input_name!r}; it has {known}")
    return found[0], input_name
