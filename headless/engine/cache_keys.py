"""What a node's outputs depend on, as a text to cache them by: its class, constants and ancestry.

Ids and titles of nodes do not matter, so equal parts of a graph share their results; a node that asks
for its own id shares with none.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any

from ..graph import Graph, Link, Node
from ..registry import Registry, declared_inputs, hidden_inputs
from .node_calls import make_calls, settle

_unique = itertools.count()


class CycleError(ValueError):
    """Links that run in a circle."""


class Signatures:
    """The signatures of a graph's nodes.

    graph       nodes by id; it may grow
    registry    node classes
    arguments   a node's constants as lists, for IS_CHANGED
    """

    def __init__(
        self, graph: Graph, registry: Registry, arguments: Callable[[Node], dict[str, list[Any]]]
    ):
        self.graph, self.registry, self.arguments = graph, registry, arguments
        self.known: dict[str, str] = {}

    def of(self, node_id: str) -> str:
        """A node's signature; CycleError if its ancestry runs in a circle."""
        stack, open_nodes = [node_id], set()
        while stack:
            node = self.graph[stack[-1]]
            missing = [link.node for link in node.links().values() if link.node not in self.known]
            if node.id in self.known:
                stack.pop()
            elif missing:
                if node.id in open_nodes or node.id in missing:
                    raise CycleError(f"links run in a circle through {node}")
                open_nodes.add(node.id)
                stack += missing
            else:
                stack.pop()
                open_nodes.discard(node.id)
                self.known[node.id] = self._compute(node)
        return self.known[node_id]

    def _compute(self, node: Node) -> str:
        cls: Any = self.registry[node.class_type]
        parts: dict[str, Any] = {"class": node.class_type}
        for name, value in sorted(node.inputs.items()):
            linked = isinstance(value, Link)
            parts[f"input {name}"] = (
                ["link", self.known[value.node], value.slot] if linked else hashable(value)
            )
        if hasattr(cls, "IS_CHANGED"):
            parts["changed"] = self._changed(cls, node)
        own = getattr(cls, "NOT_IDEMPOTENT", False)
        if own or "UNIQUE_ID" in hidden_inputs(cls).values():
            parts["id"] = node.id
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _changed(self, cls: Any, node: Node) -> Any:
        """What IS_CHANGED answers; if it fails, something new each time, as in ComfyUI."""
        try:
            answers = make_calls(cls.IS_CHANGED, self.arguments(node), False)
            return hashable([settle(answer) for answer in answers])
        except Exception:  # the node's own code; the run says what is wrong with its inputs
            return hashable(float("nan"))


def hashable(value: Any) -> Any:
    """JSON data that is equal only for equal values; NaN and objects equal nothing, not even themselves."""
    if isinstance(value, dict):
        return {"dict": {str(key): hashable(item) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [hashable(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and value == value:
        return value
    return {"unique": next(_unique)}


def constants(node: Node, cls: Any) -> dict[str, list[Any]]:
    """A node's declared constants as lists; a link is [None]."""
    names = declared_inputs(cls)
    return {
        name: [None if isinstance(value, Link) else value]
        for name, value in node.inputs.items()
        if name in names
    }
