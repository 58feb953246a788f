"""The UI format read into scopes: the root graph and every instance of a subgraph, with its values."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..graph import Problem, WorkflowError

SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20
DEEPEST = 100  # links and subgraphs that are followed before a loop is assumed
MOST = 10_000  # instances of subgraphs in a workflow


@dataclass(frozen=True)
class UILink:
    """A link of the UI format."""

    origin: int | str
    origin_slot: int
    target: int | str
    target_slot: int


@dataclass
class Scope:
    """A graph or one instance of a subgraph.

    prefix       "" or "host:" of the ids inside
    nodes        by id
    links        by id
    definition   of the subgraph; None at the root
    host         the instance's node, in `parent`
    promoted     values that the instance gives its own inputs, by name
    overrides    values that the instance sets on inner widgets: (inner id, widget name) -> value
    """

    prefix: str
    nodes: dict[str, dict[str, Any]]
    links: dict[Any, UILink]
    definition: dict[str, Any] | None = None
    host: dict[str, Any] | None = None
    parent: "Scope | None" = None
    children: dict[str, "Scope"] = field(default_factory=dict)
    promoted: dict[str, Any] = field(default_factory=dict)
    overrides: dict[tuple[str, str], Any] = field(default_factory=dict)

    def name_of(self, node: dict[str, Any]) -> str:
        """What a person calls a node, as in the reports of the validator."""
        title, kind = node.get("title"), node.get("type")
        named = f' "{title}"' if title and title != kind else ""
        return f"node {self.prefix}{node.get('id')}{named} ({kind})"


def read_scopes(data: dict[str, Any]) -> Scope:
    """The root scope of a workflow, with all instances of subgraphs inside.

    data   workflow in the UI format, version 0.4 or 1
    """
    listed = (data.get("definitions") or {}).get("subgraphs") or []
    definitions = {entry["id"]: entry for entry in listed}
    return make_scope(data, definitions, Scope("", {}, {}), itertools.count())


def nodes_within(scope: Scope) -> Iterator[tuple[Scope, dict[str, Any]]]:
    """All nodes and their scopes in the frontend's order: what is in a subgraph comes before its instance.

    scope   the root, or an instance
    """
    for node_id, node in scope.nodes.items():
        if node_id in scope.children:
            yield from nodes_within(scope.children[node_id])
        yield scope, node


def make_scope(
    data: dict[str, Any], definitions: dict[str, Any], scope: Scope, made: Iterator[int]
) -> Scope:
    """A scope filled with a graph's nodes, links and subgraph instances.

    data          nodes and links
    definitions   subgraphs by id
    scope         empty, with its prefix, host and parent; it is filled
    made          counts the scopes of the workflow
    """
    too_many = f"more than {MOST} instances of subgraphs" if next(made) > MOST else ""
    too_deep = f"nested more than {DEEPEST} deep" if scope.prefix.count(":") > DEEPEST else ""
    if too_many or too_deep:
        line = f"subgraph {scope.prefix}: {too_many or too_deep}"
        raise WorkflowError([Problem(line, "subgraph_loop")])
    scope.nodes = {str(node["id"]): node for node in data["nodes"]}
    scope.links = dict(parse_link(link) for link in data.get("links") or [])
    for node_id, node in scope.nodes.items():
        definition = definitions.get(node["type"])
        if definition is None:
            continue
        child = Scope(f"{scope.prefix}{node_id}:", {}, {}, definition, node, scope)
        make_scope(definition, definitions, child, made)
        read_instance(child)
        scope.children[node_id] = child
    if scope.host is None:
        push_overrides(scope)
    return scope


def parse_link(link: Any) -> tuple[Any, UILink]:
    """A link's id and ends, from either spelling.

    link   [id, origin, slot, target, slot, type] or an object
    """
    if isinstance(link, dict):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
        link = [link[name] for name in names]
    return link[0], UILink(*link[1:5])


def proxies(host: dict[str, Any]) -> list[tuple[str, ...]]:
    """Entries (inner id, widget name, …) of an older file's list of promoted widgets.

    host   the instance's node
    """
    entries = (host.get("properties") or {}).get("proxyWidgets") or []
    return [tuple(str(part) for part in entry) for entry in entries]


def read_instance(scope: Scope) -> None:
    """Set the values that an instance gives its inputs and inner widgets, from either form of file.

    scope   of the instance, its children made
    """
    host = scope.host or {}
    values, named = host.get("widgets_values"), host.get("widgets_values_named") or {}
    values = values if isinstance(values, list) else []
    entries = proxies(host)
    for entry, value in zip(entries, values, strict=False):
        set_promoted(scope, entry, quarantined(host, entry, value))
    if not entries:
        names = widget_inputs(scope)
        by_position = dict(zip(names, values, strict=False))
        by_name = {name: value for name, value in named.items() if name in names}
        fits = len(names) == len(values)
        scope.promoted = {**by_name, **by_position} if fits else {**by_position, **by_name}


def quarantined(host: dict[str, Any], entry: tuple[str, ...], value: Any) -> Any:
    """The value that the frontend's migration kept for an entry, else the one given.

    host    the instance's node
    entry   of its promoted widgets
    value   by position
    """
    for kept in (host.get("properties") or {}).get("proxyWidgetErrorQuarantine") or []:
        original = tuple(str(part) for part in kept.get("originalEntry") or ())
        if original == entry and "hostValue" in kept:
            return kept["hostValue"]
    return value


def set_promoted(scope: Scope, entry: tuple[str, ...], value: Any) -> None:
    """Give a promoted widget of an older file its value.

    scope   of the instance
    entry   (inner id, widget name, …); inner id -1 is an input of the subgraph itself
    value   of the widget
    """
    if entry[0] == "-1":
        scope.promoted[entry[1]] = value
    else:
        scope.overrides[entry[0], entry[1]] = value


def push_overrides(scope: Scope) -> None:
    """Hand values set on nested instances down to the widgets that these promote, outermost last.

    scope   the root or an instance; its children are visited
    """
    for (inner, name), value in scope.overrides.items():
        child = scope.children.get(inner)
        if child is None:
            continue
        deeper = next((e for e in proxies(child.host or {}) if e[1] == name), None)
        if name in widget_inputs(child):
            child.promoted[name] = value
        elif deeper is not None:
            set_promoted(child, deeper, value)
    for child in scope.children.values():
        push_overrides(child)


def widget_inputs(scope: Scope) -> list[str]:
    """The inputs of a subgraph that show as widgets on its instances, in order.

    scope   inside an instance
    """
    inputs = (scope.definition or {}).get("inputs") or []
    return [entry["name"] for i, entry in enumerate(inputs) if leads_to_widget(scope, i)]


def leads_to_widget(scope: Scope, slot: int) -> bool:
    """Whether an input of a subgraph feeds a widget inside.

    scope   inside an instance
    slot    index among the definition's inputs
    """
    for link_id, link in scope.links.items():
        if link.origin != SUBGRAPH_INPUT or link.origin_slot != slot:
            continue
        target = scope.nodes.get(str(link.target))
        for entry in (target or {}).get("inputs") or []:
            if entry.get("link") == link_id:
                child = scope.children.get(str(link.target))
                if child is not None:
                    if entry["name"] in widget_inputs(child):
                        return True
                elif entry.get("widget"):
                    return True
    return False
