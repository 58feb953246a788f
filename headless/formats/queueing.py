"""A workflow before it is queued: its texts stand as a person typed them, and inputs may be changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..graph import Graph, Link, Node
from ..registry import Registry, declared_inputs, declared_once
from .typed_texts import choose, fill_in

SAVERS = {
    *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM"),
    *("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveAnimatedPNG"),
    *("SaveGLB", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud"),
    *("CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"),
}
"""Node types in whose `filename_prefix` names are filled in."""


@dataclass
class Moment:
    """What texts take from the moment in which a workflow is queued.

    chance   draws the choices of prompts
    now      local time, for file names
    """

    chance: random.Random
    now: datetime = field(default_factory=datetime.now)


@dataclass(frozen=True)
class Shown:
    """A node as file names refer to it.

    id       in the graph, where it is there
    names    its type and its title
    values   of its widgets, as typed
    """

    id: str
    names: tuple[str, str]
    values: dict[str, Any]


@dataclass
class Draft:
    """A graph and what becomes of its texts.

    graph   nodes by id
    typed   (node id, input) of the texts that change when it is queued; not those of subgraphs' promoted
            widgets, which the frontend sends as they are, nor of the API format, which was queued before
    shown   the nodes that a file name may refer to, in the frontend's order
    """

    graph: Graph
    typed: dict[tuple[str, str], None] = field(default_factory=dict)
    shown: list[Shown] = field(default_factory=list)

    @staticmethod
    def of_api(graph: Graph) -> Draft:
        """The draft of a graph in the API format."""
        draft = Draft(graph)
        for node in graph.values():
            values = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
            draft.shown.append(Shown(node.id, (node.class_type, node.title), values))
        return draft

    def copy(self) -> Draft:
        """The same, to be changed without changing this one."""
        shown = [replace(each, values=dict(each.values)) for each in self.shown]
        return Draft(copied(self.graph), dict(self.typed), shown)

    def set(self, node: Node, name: str, value: Any) -> None:
        """Change an input, as a person does who types into its widget."""
        node.inputs[name] = value
        self.typed[node.id, name] = None
        for each in self.shown:
            if each.id == node.id:
                each.values[name] = value

    def queued(self, registry: Registry, moment: Moment) -> Graph:
        """The graph as it runs, of each {a|b} in its prompts one drawn, and its file names filled in.

        moment     in which it is queued
        """
        graph = copied(self.graph)
        with declared_once():
            self._queue_texts(graph, registry, moment)
        return graph

    def _queue_texts(self, graph: Graph, registry: Registry, moment: Moment) -> None:
        for node_id, name in self.typed:
            node = graph[node_id]
            text, cls = node.inputs.get(name), registry.get(node.class_type)
            if not isinstance(text, str):
                continue
            options = declared_inputs(cls)[name][1] if cls and name in declared_inputs(cls) else {}
            if options.get("dynamicPrompts"):
                node.inputs[name] = choose(text, moment.chance)
            elif name == "filename_prefix" and node.class_type in SAVERS:
                node.inputs[name] = fill_in(text, self._widgets(), moment.now)

    def _widgets(self) -> Callable[[str, str], Any]:
        """(node, widget) -> value, of the first node of that type, else of that title; or None."""
        called: dict[str, Shown] = {}
        for kind in (0, 1):
            for each in self.shown:
                called.setdefault(each.names[kind], each)
        return lambda node, name: called[node].values.get(name) if node in called else None


def copied(graph: Graph) -> Graph:
    """The same nodes, whose inputs may be changed without changing these."""
    return {key: replace(node, inputs=dict(node.inputs)) for key, node in graph.items()}
