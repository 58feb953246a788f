"""Whether the cells of a row fit the inputs that they set: seen for all rows before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..engine.validate import (
    check_constant,
    check_custom,
    output_ids,
    reachable,
    validator_arguments,
)
from ..graph import Graph, Node, brief
from ..inputs import SWITCH, InputError, Place
from ..registry import declared_inputs

if TYPE_CHECKING:
    from ..registry import Registry

# Names that classes are asked about before a batch begins; later ones when they run.
MOST_FILES = 10_000


@dataclass
class Cells:
    """What the inputs of a workflow take.

    graph      of the workflow, not yet changed by a row
    registry   the node classes
    """

    graph: Graph
    registry: Registry
    declared: dict[Place, tuple[Any, dict[str, Any], bool]] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], str] = field(default_factory=dict)
    needed: frozenset[str] = frozenset()

    def __post_init__(self):
        self.needed = frozenset(reachable(self.graph, output_ids(self.graph, self.registry)))

    def fault(self, place: Place, value: Any) -> str:
        """Why a value cannot be what an input is set to; "" = it can, as far as is known before it runs.

        place   a node's id and an input of it
        """
        kind, options, asks = self._declared(place)
        node, name = self.graph[place[0]], place[1]
        if kind is None:
            return ""
        if asks:
            return self._answer(node, name, value)
        found = whole(value) if kind == "INT" else ""
        try:
            value = typed(node, name, value)
        except InputError as error:
            found = str(error)
        found = found or (check_constant(value, kind, options)[1] or ("", ""))[1]
        return f"{node}, input {name}: {found}" if found else ""

    def test(self, place: Place) -> Callable[[Any], bool]:
        """A quick test of values: what passes it has no fault."""
        kind, options, asks = self._declared(place)
        if kind is None:
            return lambda value: True
        if kind == "STRING":
            return lambda value: type(value) is str
        if asks or kind not in ("INT", "FLOAT"):
            return lambda value: False
        types = (int,) if kind == "INT" else (int, float)
        low, high = options.get("min", -sys.float_info.max), options.get("max", sys.float_info.max)
        return lambda value: type(value) in types and low <= value <= high

    def is_uploaded(self, place: Place) -> bool:
        """Whether an input names a file that a server gets when its row runs."""
        node = self.graph.get(place[0])
        cls: Any = self.registry.get(node.class_type) if node else None
        if cls is None or hasattr(cls, "VALIDATE_INPUTS"):
            return False
        return bool(declared_inputs(cls).get(place[1], (None, {}))[1].get("image_upload"))

    def _declared(self, place: Place) -> tuple[Any, dict[str, Any], bool]:
        """Type and options of an input, None where anything goes; whether its class checks its choices."""
        if place not in self.declared:
            self.declared[place] = self._read(place)
        return self.declared[place]

    def _read(self, place: Place) -> tuple[Any, dict[str, Any], bool]:
        """What the node's class declares, as `_declared` has it."""
        node, name = self.graph[place[0]], place[1]
        cls: Any = self.registry.get(node.class_type)
        if cls is None or node.id not in self.needed or name not in declared_inputs(cls):
            return None, {}, False
        kind, options, _ = declared_inputs(cls)[name]
        names, takes_all = validator_arguments(cls)
        if not takes_all and name not in names:
            return (None if self.is_uploaded(place) else kind), options, False
        if isinstance(kind, list):
            return (kind if names == [name] else None), {}, True
        return kind, {}, False

    def _answer(self, node: Node, name: str, value: Any) -> str:
        """What a class says of a choice that it checks itself, such as a file; each is asked about once."""
        key = (node.id, name, brief(value, 500))
        if key not in self.answers and len(self.answers) < MOST_FILES:
            alone = Node(node.id, node.class_type, node.title, {name: value})
            problems = check_custom(alone, self.graph, self.registry)
            self.answers[key] = "; ".join(problem.line for problem in problems)
        return self.answers.get(key, "")


def whole(value: Any) -> str:
    """What is wrong with a number that ComfyUI would cut off to a whole one; "" = nothing."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        return f"expected a whole number, got {brief(value)}"
    return ""


def typed(node: Node, name: str, value: Any) -> Any:
    """A cell as an input takes it: texts such as "false" for a switch."""
    switch = isinstance(node.inputs.get(name), bool) or node.widgets.get(name) == "BOOLEAN"
    if not switch or not isinstance(value, str):
        return value
    if value.lower() not in SWITCH:
        raise InputError(f"expected true or false, got {brief(value)}")
    return SWITCH[value.lower()]
