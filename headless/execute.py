"""Runs a checked graph: only what its outputs need, each distinct node once, a progress bar a node."""

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..nodes import host
from .graph import Graph, Link, Node, to_api
from .registry import Registry, declared_inputs
from .validate import validate

Outputs = list[list[Any]]  # by output, then by call of a mapped list


class NodeError(RuntimeError):
    """A node that failed while it ran; the message names it."""


def execute(
    graph: Graph,
    registry: Registry,
    workflow: dict[str, Any] | None = None,
    progress: Callable[[Node], "Bar"] | None = None,
) -> dict[str, dict[str, list[Any]]]:
    """What the output nodes show, by node id; WorkflowError before anything runs if the graph is bad.

    graph      constants are converted to their declared types in place
    registry   node classes
    workflow   UI format of the same graph, for the metadata of saved pictures
    progress   makes the bar of a node; None = none
    """
    outputs = validate(graph, registry)
    run = Run(graph, registry, workflow, progress or (lambda node: Bar(node, None)))
    with torch.inference_mode():
        for node_id in outputs:
            run.results_of(node_id)
    return run.shown


class Bar:
    """The progress of one node on standard error."""

    def __init__(self, node: Node, stream: Any = sys.stderr):
        self.node, self.stream, self.bar = node, stream, None

    def on_step(self, step: int, num_steps: int, x0: Tensor) -> None:
        """Move the bar; it appears with the first step."""
        if self.stream is None:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=num_steps, desc=self.node.title, file=self.stream)
        self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


class Run:
    """One run of a graph: results by node, shared between nodes of equal inputs."""

    def __init__(
        self,
        graph: Graph,
        registry: Registry,
        workflow: dict[str, Any] | None,
        progress: Callable[[Node], Bar],
    ):
        self.graph, self.registry, self.progress = graph, registry, progress
        self.hidden = {
            "PROMPT": to_api(graph),
            "EXTRA_PNGINFO": {} if workflow is None else {"workflow": workflow},
            "DYNPROMPT": None,
        }
        self.signatures: dict[str, str] = {}
        self.results: dict[str, Outputs] = {}
        self.shown: dict[str, dict[str, list[Any]]] = {}

    def results_of(self, node_id: str) -> Outputs:
        """A node's outputs, computed if need be, with all that it needs; sources come first."""
        stack = [node_id]
        while stack:
            node = self.graph[stack[-1]]
            lazy = self._lazy_names(node)
            missing = [
                link.node
                for name, link in node.links().items()
                if name not in lazy and link.node not in self.signatures
            ]
            if missing:
                stack += missing
                continue
            stack.pop()
            if node.id not in self.signatures:
                self._complete(node, lazy)
        return self.results[self.signatures[node_id]]

    def _complete(self, node: Node, lazy: set[str]) -> None:
        """Run a node whose strict inputs are there, unless an equal one has run."""
        wanted = self._needed_lazy(node, lazy)
        signature = self._signature(node, lazy - wanted)
        if signature not in self.results:
            self.results[signature] = self._call(node, lazy - wanted)
        self.signatures[node.id] = signature

    def _lazy_names(self, node: Node) -> set[str]:
        declared = declared_inputs(self.registry[node.class_type])
        return {name for name, (_, options, _) in declared.items() if options.get("lazy")}

    def _needed_lazy(self, node: Node, lazy: set[str]) -> set[str]:
        """The lazy inputs that the node asks for, their sources run."""
        instance = self.registry[node.class_type]()
        wanted: set[str] = set()
        if not lazy or not hasattr(instance, "check_lazy_status"):
            return wanted
        while True:
            asked = instance.check_lazy_status(**self._first(node, lazy - wanted)) or []
            fresh = {name for name in asked if name in lazy} - wanted
            if not fresh:
                return wanted
            for name in fresh:
                link = node.inputs[name]
                if isinstance(link, Link):
                    self.results_of(link.node)
            wanted |= fresh

    def _signature(self, node: Node, absent: set[str]) -> str:
        """What a node's outputs depend on: class, constants, and the signatures of its sources."""
        cls = self.registry[node.class_type]
        parts: dict[str, Any] = {"class": node.class_type}
        for name, value in sorted(node.inputs.items()):
            if name in absent:
                continue
            linked = isinstance(value, Link)
            parts[f"input {name}"] = [self.signatures[value.node], value.slot] if linked else value
        if hasattr(cls, "IS_CHANGED"):
            parts["changed"] = cls.IS_CHANGED(**self._constants(node))
        if "UNIQUE_ID" in self._hidden_types(cls).values() or getattr(cls, "OUTPUT_NODE", False):
            parts["id"] = node.id
        text = json.dumps(parts, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def _constants(self, node: Node) -> dict[str, Any]:
        names = declared_inputs(self.registry[node.class_type])
        return {
            name: None if isinstance(value, Link) else value
            for name, value in node.inputs.items()
            if name in names
        }

    def _hidden_types(self, cls: Any) -> dict[str, str]:
        return cls.INPUT_TYPES().get("hidden", {})

    def _arguments(self, node: Node, absent: set[str]) -> dict[str, list[Any]]:
        """Every argument as a list, as ComfyUI passes them inside."""
        declared = declared_inputs(self.registry[node.class_type])
        arguments: dict[str, list[Any]] = {}
        for name, value in node.inputs.items():
            if isinstance(value, Link):
                known = None if name in absent else self.results[self.signatures[value.node]]
                arguments[name] = [None] if known is None else known[value.slot]
            elif name in declared:
                arguments[name] = [value]
        for name, kind in self._hidden_types(self.registry[node.class_type]).items():
            arguments[name] = [node.id if kind == "UNIQUE_ID" else self.hidden.get(kind)]
        return arguments

    def _first(self, node: Node, absent: set[str]) -> dict[str, Any]:
        return {name: values[0] for name, values in self._arguments(node, absent).items()}

    def _call(self, node: Node, absent: set[str]) -> Outputs:
        """Call a node, once for each element of its longest list input."""
        cls = self.registry[node.class_type]
        instance = cls()
        function = getattr(instance, cls.FUNCTION)
        arguments = self._arguments(node, absent)
        if getattr(cls, "INPUT_IS_LIST", False):
            calls = [arguments]
        else:
            longest = max((len(values) for values in arguments.values()), default=1)
            calls = [
                {name: values[min(i, len(values) - 1)] for name, values in arguments.items()}
                for i in range(longest)
            ]
        bar = self.progress(node)
        token = host.reporter.set(bar.on_step)
        try:
            returned = [function(**call) for call in calls]
        except (ValueError, TypeError, RuntimeError, OSError, ArithmeticError) as error:
            raise NodeError(f"{node}: {error}") from error
        finally:
            host.reporter.reset(token)
            bar.close()
        return self._merge(node, cls, returned)

    def _merge(self, node: Node, cls: Any, returned: list[Any]) -> Outputs:
        """Outputs of all calls: lists are joined, single values collected; ui goes to `shown`."""
        results = []
        for value in returned:
            if isinstance(value, dict):
                for key, items in value.get("ui", {}).items():
                    self.shown.setdefault(node.id, {}).setdefault(key, []).extend(items)
                value = value.get("result", ())
            results.append(value)
        is_list = getattr(cls, "OUTPUT_IS_LIST", (False,) * len(cls.RETURN_TYPES))
        return [
            [item for result in results for item in (result[i] if is_list[i] else [result[i]])]
            for i in range(len(cls.RETURN_TYPES))
        ]
