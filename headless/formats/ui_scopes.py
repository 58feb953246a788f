"""The UI format read into scopes: the root graph and every instance of a subgraph, with its values."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..graph import Link, Problem, WorkflowError, name_of
from .ui_parts import Part, read_part

DEEPEST = 100  # subgraphs within each other
MOST = 10_000  # instances of subgraphs in a workflow
MOST_NODES = 100_000  # in those instances together


@dataclass(frozen=True)
class Constant:
    """What an input resolves to where no node feeds it.

    value      of a primitive, or of a subgraph's promoted widget
    promoted   whether it comes through a subgraph's input
    """

    value: Any
    promoted: bool = False


Source = Link | Constant | None


class BadLink(ValueError):
    """A link that leads nowhere.

    type   ComfyUI's name of the fault
    """

    def __init__(self, message: str, kind: str = "bad_linked_input"):
        super().__init__(message)
        self.type = kind


@dataclass
class Scope:
    """A graph or one instance of a subgraph.

    prefix       "" or "host:" of the ids inside
    part         nodes and links, shared with the other instances of the same subgraph
    host         the instance's node, in `parent`; None at the root
    children     instances inside, by their node's id
    promoted     values that the instance gives its own inputs, by name
    overrides    values that the instance sets on inner widgets, by inner id and widget name
    resolved     what feeds the outputs that links start from, as far as it was asked for
    """

    prefix: str
    part: Part
    host: dict[str, Any] | None = None
    parent: "Scope | None" = None
    children: dict[str, "Scope"] = field(default_factory=dict)
    promoted: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    resolved: dict[Any, "Source | BadLink"] = field(default_factory=dict)

    @cached_property
    def host_slots(self) -> dict[str, int]:
        """Where the instance's inputs stand among its node's, by name; of equal names the first."""
        entries = list(enumerate(self.host["inputs"] if self.host else []))
        return {entry["name"]: i for i, entry in reversed(entries)}

    def name_of(self, node: dict[str, Any]) -> str:
        """What a person calls a node, as in the reports of the validator."""
        return name_of(f"{self.prefix}{node['id']}", node["title"], node["type"])


class Definitions:
    """The subgraphs that a file defines, each read once.

    listed   as in the file; entries without an id are left out
    """

    def __init__(self, listed: Any):
        entries = listed if isinstance(listed, list) else []
        self.raw = {
            e["id"]: e for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)
        }
        self.read: dict[str, Part] = {}
        self.instances = self.nodes = 0

    def part(self, kind: str) -> Part | None:
        """The definition of an instance's type, or None where the type is no subgraph of this file."""
        if kind in self.raw and kind not in self.read:
            self.read[kind] = read_part(self.raw[kind], f"subgraph {kind}")
        return self.read.get(kind)

    def count(self, prefix: str, part: Part) -> None:
        """Count one more instance; WorkflowError where a file would grow without bound."""
        self.instances += 1
        self.nodes += len(part.nodes)
        line = f"subgraph {prefix}: "
        if prefix.count(":") > DEEPEST:
            raise WorkflowError(
                [Problem(f"{line}nested more than {DEEPEST} deep", "subgraph_loop")]
            )
        if self.instances > MOST or self.nodes > MOST_NODES:
            line += f"more than {MOST} instances of subgraphs, or {MOST_NODES} nodes in them"
            raise WorkflowError([Problem(line, "subgraph_loop")])

    def widgets(self, part: Part) -> list[str]:
        """The inputs of a subgraph that show as widgets on its instances, in order.

        part   whose nesting is known to end
        """
        if part.widgets is None:
            inner = part.inner_links()
            leading = {slot for slot, node, entry in inner if self._shows(node, entry)}
            part.widgets = [e["name"] for i, e in enumerate(part.inputs) if i in leading]
        return part.widgets

    def _shows(self, node: dict[str, Any], entry: dict[str, Any]) -> bool:
        part = self.part(node["type"])
        return bool(entry["widget"]) if part is None else entry["name"] in self.widgets(part)


def read_scopes(data: dict[str, Any]) -> Scope:
    """The root scope of a workflow, with all instances of subgraphs inside.

    data   workflow in the UI format, version 0.4 or 1
    """
    listed = data.get("definitions")
    definitions = Definitions(listed.get("subgraphs") if isinstance(listed, dict) else None)
    root = Scope("", read_part(data, "workflow"))
    fill(root, definitions)
    push_overrides(root, definitions)
    return root


def nodes_within(scope: Scope) -> Iterator[tuple[Scope, dict[str, Any]]]:
    """All nodes and their scopes in the frontend's order: what is in a subgraph comes before its instance.

    scope   the root, or an instance
    """
    for node_id, node in scope.part.nodes.items():
        if node_id in scope.children:
            yield from nodes_within(scope.children[node_id])
        yield scope, node


def fill(scope: Scope, definitions: Definitions) -> None:
    """Make a scope's instances of subgraphs, with theirs, and read their values."""
    for node_id, node in scope.part.nodes.items():
        part = definitions.part(node["type"])
        if part is None:
            continue
        child = Scope(f"{scope.prefix}{node_id}:", part, node, scope)
        definitions.count(child.prefix, part)
        fill(child, definitions)
        read_instance(child, definitions)
        scope.children[node_id] = child


def proxies(host: dict[str, Any]) -> list[tuple[str, str] | None]:
    """Inner id and widget name of each widget that an older file promotes; None = unreadable."""
    entries = host["properties"].get("proxyWidgets")
    return [
        (str(entry[0]), str(entry[1])) if isinstance(entry, list) and len(entry) > 1 else None
        for entry in (entries if isinstance(entries, list) else [])
    ]


def read_instance(scope: Scope, definitions: Definitions) -> None:
    """Set the values that an instance gives its inputs and inner widgets, from either form of file.

    A null is no value: what is inside keeps its own.
    """
    host: dict[str, Any] = scope.host or {}
    values, named = host["widgets_values"], host["widgets_values_named"] or {}
    values = values if isinstance(values, list) else []
    entries = proxies(host)
    kept = quarantined(host)
    for entry, value in zip(entries, values, strict=False):
        if entry is not None:
            set_promoted(scope, entry, kept.get(entry, value))
    if not entries:
        names = definitions.widgets(scope.part)
        by_position = dict(zip(names, values, strict=False))
        by_name = {name: value for name, value in named.items() if name in set(names)}
        both = (by_name, by_position) if len(names) == len(values) else (by_position, by_name)
        scope.promoted = {k: v for part in both for k, v in part.items() if v is not None}


def quarantined(host: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """The values that the frontend's migration kept, by entry of the promoted widgets."""
    entries = host["properties"].get("proxyWidgetErrorQuarantine")
    found: dict[tuple[str, str], Any] = {}
    for kept in entries if isinstance(entries, list) else []:
        entry = kept.get("originalEntry") if isinstance(kept, dict) else None
        if isinstance(entry, list) and len(entry) > 1 and "hostValue" in kept:
            found.setdefault((str(entry[0]), str(entry[1])), kept["hostValue"])
    return found


def set_promoted(scope: Scope, entry: tuple[str, str], value: Any) -> None:
    """Give a promoted widget of an older file its value; None gives none.

    entry   (inner id, widget name); inner id -1 is an input of the subgraph itself
    """
    if value is None:
        return
    if entry[0] == "-1":
        scope.promoted[entry[1]] = value
    else:
        scope.overrides.setdefault(entry[0], {})[entry[1]] = value


def push_overrides(scope: Scope, definitions: Definitions) -> None:
    """Hand values set on nested instances down to the widgets that these promote, outermost last."""
    for inner, values in scope.overrides.items():
        child = scope.children.get(inner)
        if child is None:
            continue
        own = set(definitions.widgets(child.part))
        deeper = {entry[1]: entry for entry in reversed(proxies(child.host or {})) if entry}
        for name, value in values.items():
            if name in own:
                child.promoted[name] = value
            elif name in deeper:
                set_promoted(child, deeper[name], value)
    for child in scope.children.values():
        push_overrides(child, definitions)
