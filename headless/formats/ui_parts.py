"""Nodes and links of the UI format as the rest of the reader may rely on them, whatever a file lacks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..graph import Problem, WorkflowError, brief

SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20
ENDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot")


@dataclass(frozen=True)
class UILink:
    """A link of the UI format."""

    origin: int | float | str
    origin_slot: int | float | str
    target: int | float | str
    target_slot: int | float | str


@dataclass
class Part:
    """A graph as a file holds it: the root, or a subgraph's definition.

    nodes      by id, each with id, type, title, mode, properties, inputs, outputs and both forms of values
    links      by id
    inputs     of the subgraph
    outputs    of the subgraph
    setters    the SetNodes by the name that they set
    ends       of the subgraph's outputs: the first link that ends there, by place
    widgets    names of the inputs that show as widgets on instances; None = not asked for yet
    """

    nodes: dict[str, dict[str, Any]]
    links: dict[Any, UILink]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    setters: dict[str, dict[str, Any]]
    ends: dict[Any, UILink]
    widgets: list[str] | None = None

    def inner_links(self) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
        """What the subgraph's inputs feed: the input's place, the node inside, and its slot.

        Where an input lists its links, others that start from it are stale.
        """
        listed = [link_ids(entry) for entry in self.inputs]
        for node in self.nodes.values():
            for entry in node["inputs"]:
                link = self.links.get(entry["link"])
                if link is None or link.origin != SUBGRAPH_INPUT:
                    continue
                slot = link.origin_slot
                if isinstance(slot, int) and 0 <= slot < len(self.inputs):
                    ids = listed[slot]
                    if ids is None or entry["link"] in ids:
                        yield slot, node, entry

    def output_link(self, slot: int) -> UILink | None:
        """The link that feeds an output of the subgraph: the first that the output lists, as in the frontend.

        Where it lists none at all, the first of the table.
        """
        listed = link_ids(self.outputs[slot]) if 0 <= slot < len(self.outputs) else None
        if listed is not None:
            return next((self.links[each] for each in listed if each in self.links), None)
        return self.ends.get(slot)


def link_ids(entry: dict[str, Any]) -> dict[Any, None] | None:
    """The ids of the links that a subgraph's input or output lists, in order; None where it has no list."""
    listed = entry.get("linkIds")
    if not isinstance(listed, list):
        return None
    return dict.fromkeys(each for each in listed if is_id(each))


def read_part(data: dict[str, Any], where: str) -> Part:
    """The graph in JSON data; WorkflowError naming each node and link that cannot be read.

    where   names the graph in errors
    """
    problems: list[Problem] = []
    nodes: dict[str, dict[str, Any]] = {}
    for entry in as_list(data.get("nodes")):
        node = entry if isinstance(entry, dict) else {}
        if is_id(node.get("id")) and isinstance(node.get("type"), str):
            nodes[str(node["id"])] = read_node(node)
        else:
            line = f"{where}: expected a node with an id and a type, got {brief(entry)}"
            problems.append(Problem(line))
    links = read_links(data, where, problems)
    if problems:
        raise WorkflowError(problems)
    setters: dict[str, dict[str, Any]] = {}
    for node in nodes.values():
        name = first_value(node)
        if node["type"] == "SetNode" and isinstance(name, str):
            setters.setdefault(name, node)
    ends: dict[Any, UILink] = {}
    for link in links.values():
        if link.target == SUBGRAPH_OUTPUT:
            ends.setdefault(link.target_slot, link)
    inputs, outputs = read_slots(data.get("inputs")), read_slots(data.get("outputs"))
    return Part(nodes, links, inputs, outputs, setters, ends)


def read_links(data: dict[str, Any], where: str, problems: list[Problem]) -> dict[Any, UILink]:
    """The links in JSON data by id, in either spelling; nulls are left out.

    where      names the graph in errors
    problems   receives what is no link
    """
    links: dict[Any, UILink] = {}
    for entry in as_list(data.get("links")):
        if entry is None:
            continue
        ends = [entry.get(name) for name in ENDS] if isinstance(entry, dict) else entry
        if isinstance(ends, list) and len(ends) >= len(ENDS) and is_id(ends[0]):
            origin, slot, target, target_slot = (
                each if isinstance(each, (int, float)) else str(each) for each in ends[1:5]
            )
            links[ends[0]] = UILink(origin, slot, target, target_slot)
        else:
            line = f"{where}: expected a link with an id and two ends, got {brief(entry)}"
            problems.append(Problem(line))
    return links


def read_node(entry: dict[str, Any]) -> dict[str, Any]:
    """A node with all that the reader looks at; nulls and what has the wrong type count as absent."""
    properties, values = entry.get("properties"), entry.get("widgets_values")
    named = entry.get("widgets_values_named")
    return {
        **entry,
        "title": entry.get("title") if isinstance(entry.get("title"), str) else "",
        "inputs": read_slots(entry.get("inputs")),
        "outputs": read_slots(entry.get("outputs")),
        "properties": properties if isinstance(properties, dict) else {},
        "widgets_values": values if isinstance(values, (list, dict)) else None,
        "widgets_values_named": named if isinstance(named, dict) else None,
    }


def read_slots(entries: Any) -> list[dict[str, Any]]:
    """Slots, each with name, type, link and widget; a null keeps its place."""
    slots = []
    for entry in as_list(entries):
        slot = entry if isinstance(entry, dict) else {}
        kind, link, widget = slot.get("type", "*"), slot.get("link"), slot.get("widget")
        whole = isinstance(widget, dict) and isinstance(widget.get("name"), str)
        slots.append(
            {
                **slot,
                "name": str(slot.get("name", "")),
                "type": kind if isinstance(kind, (str, int)) else str(kind),
                "link": link if is_id(link) else None,
                "widget": widget if whole else None,
            }
        )
    return slots


def first_value(node: dict[str, Any]) -> Any:
    """The value of a node's first widget, or None."""
    values = node["widgets_values"]
    values = list(values.values()) if isinstance(values, dict) else values
    return values[0] if values else None


def as_list(entries: Any) -> list[Any]:
    """A list; the values of an object; nothing of anything else."""
    if isinstance(entries, dict):
        return list(entries.values())
    return entries if isinstance(entries, list) else []


def is_id(value: Any) -> bool:
    """Whether JSON data can be the id of a node or link."""
    return isinstance(value, (int, str, float)) and not isinstance(value, bool)
