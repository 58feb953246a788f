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


@dataclass(frozen=True)
class Problem:
    """One fault of a workflow: a line for a person, and ComfyUI's name and data for a program.

    line         says where, what was expected and what was given
    type         ComfyUI's error type where it has one, such as "value_not_in_list"
    node         id of the node at fault; "" = the workflow as a whole
    details      in short, without the node
    extra_info   input_name, input_config, received_value and so on, as ComfyUI sends them
    """

    line: str
    type: str = "invalid_workflow"
    node: str = ""
    details: str = ""
    extra_info: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.line

    def to_dict(self) -> dict[str, Any]:
        """The problem as ComfyUI's servers write one, and whose it is."""
        return {
            "type": self.type,
            "message": self.line,
            "details": self.details or self.line,
            "extra_info": self.extra_info,
            "node_id": self.node,
        }


class WorkflowError(ValueError):
    """A workflow that cannot run: every problem that was found, a line each."""

    def __init__(self, problems: Iterable[Problem | str]):
        self.problems = [p if isinstance(p, Problem) else Problem(p) for p in problems]
        super().__init__("\n".join(problem.line for problem in self.problems))


def to_api(graph: Graph) -> dict[str, Any]:
    """The graph in ComfyUI's API format.

    graph   nodes by id
    """
    return {
        node.id: {
            "class_type": node.class_type,
            "inputs": {name: to_api_value(value) for name, value in node.inputs.items()},
            "_meta": {"title": node.title},
        }
        for node in graph.values()
    }


def to_api_value(value: Any) -> Any:
    """An input in API format: a link is a pair, and a constant list is wrapped so as not to be one.

    value   a constant or a Link
    """
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value
