"""A workflow as a graph of nodes: what every format is read into, and what runs."""

import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

LONGEST_LINE = 1000  # characters of one problem in an error
MOST_LINES = 100  # problems that an error spells out

_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _reprs.maxlong = 80
_reprs.maxlevel = 3


def brief(value: Any, most: int = 80) -> str:
    """A value as Python writes it, or the beginning of that: errors stay short whatever a file holds."""
    return cut(_reprs.repr(value), most)


def cut(text: str, most: int) -> str:
    """A text of at most `most` characters; … where some are left out."""
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(things: Iterable[Any]) -> str:
    """The first twenty of some things in a line, and how many there are in all."""
    names = [str(thing) for thing in things]
    line = ", ".join(cut(name, 80) for name in names[:20])
    return line + (f", … ({len(names)} in all)" if len(names) > 20 else "")


def finite(value: Any) -> Any:
    """JSON data with null in place of NaN and the infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


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
    widgets      types of the inputs that its class shows as widgets, by name, as far as the class is known
    """

    id: str
    class_type: str
    title: str
    inputs: dict[str, Any] = field(default_factory=dict)
    widgets: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def links(self) -> dict[str, Link]:
        """The inputs that are links."""
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}

    def __str__(self) -> str:
        return name_of(self.id, self.title, self.class_type)


def name_of(node_id: Any, title: Any, class_type: Any) -> str:
    """What a person calls a node; long parts are cut."""
    kind = cut(str(class_type), 80)
    named = f' "{cut(str(title), 80)}"' if title and title != class_type else ""
    return f"node {cut(str(node_id), 80)}{named} ({kind})"


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
    """A workflow that cannot run: every problem that was found, a line each of the first MOST_LINES."""

    def __init__(self, problems: Iterable[Problem | str]):
        self.problems = [p if isinstance(p, Problem) else Problem(p) for p in problems]
        lines = [cut(problem.line, LONGEST_LINE) for problem in self.problems[:MOST_LINES]]
        more = len(self.problems) - len(lines)
        super().__init__("\n".join(lines + [f"… and {more} more problems"] * bool(more)))


def to_api(graph: Graph) -> dict[str, Any]:
    """The graph in ComfyUI's API format."""
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
