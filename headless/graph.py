"""A workflow as a graph of nodes: what every format is read into, and what runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Link:
    """An input that is another node's output.

    node   id of the source
    slot   which of its outputs
    """

    node: str
    slot: int


@dataclass
class Node:
    """One node of a graph.

    id           unique; "12:7" is node 7 inside subgraph instance 12
    class_type   id of the node's class
    title        what a person sees
    inputs       constants and Links by name
    """

    id: str
    class_type: str
    title: str
    inputs: dict[str, Any] = field(default_factory=dict)

    def links(self) -> dict[str, Link]:
        """The inputs that are links."""
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}

    def __str__(self) -> str:
        named = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        return f"node {self.id}{named} ({self.class_type})"


Graph = dict[str, Node]


class WorkflowError(ValueError):
    """A workflow that cannot run: every problem that was found, a line each."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def to_api(graph: Graph) -> dict[str, Any]:
    """The graph in ComfyUI's API format.

    graph   nodes by id
    """
    return {
        node.id: {
            "class_type": node.class_type,
            "inputs": {
                name: [value.node, value.slot] if isinstance(value, Link) else value
                for name, value in node.inputs.items()
            },
            "_meta": {"title": node.title},
        }
        for node in graph.values()
    }
