"""A graph that grows while it runs, seen the way ComfyUI's nodes see it (hidden input DYNPROMPT)."""

from typing import Any

from ..formats.workflow import parse_api
from ..graph import Graph, Node, to_api


class DynamicPrompt:
    """The nodes of a workflow and those that expansion added.

    graph   of the workflow; it is copied, not changed
    """

    def __init__(self, graph: Graph):
        self.graph: Graph = dict(graph)
        self.original = to_api(graph)
        self.parents: dict[str, str] = {}
        self.displayed: dict[str, str] = {}

    def add(self, parent: str, nodes: dict[str, Any]) -> list[Node]:
        """Put nodes into the graph; an id that is taken is an error.

        parent   id of the node that they stand for
        nodes    in API format
        """
        taken = sorted(set(nodes) & set(self.graph))
        if taken:
            raise ValueError(f"expanded into nodes whose ids are taken: {', '.join(taken)}")
        added = parse_api(nodes)
        self.graph.update(added)
        for node_id in added:
            self.parents[node_id] = parent
            self.displayed[node_id] = nodes[node_id].get("override_display_id") or parent
        return list(added.values())

    def real_node(self, node_id: str) -> Node:
        """The node of the workflow that a node stands for."""
        return self.graph[self.get_real_node_id(node_id)]

    def get_real_node_id(self, node_id: str) -> str:
        """The id of the workflow's node that a node stands for."""
        while node_id in self.parents:
            node_id = self.parents[node_id]
        return node_id

    def get_parent_node_id(self, node_id: str) -> str | None:
        """The id of the node that put this one into the graph; None = nobody."""
        return self.parents.get(node_id)

    def get_display_node_id(self, node_id: str) -> str:
        """The id under which a person sees the node."""
        while node_id in self.displayed:
            node_id = self.displayed[node_id]
        return node_id

    def get_original_prompt(self) -> dict[str, Any]:
        """The workflow in API format, before any expansion."""
        return self.original

    def has_node(self, node_id: str) -> bool:
        """Whether the graph has a node."""
        return node_id in self.graph

    def all_node_ids(self) -> set[str]:
        """The ids of all nodes."""
        return set(self.graph)

    def get_node(self, node_id: str) -> dict[str, Any]:
        """A node in API format."""
        return to_api({node_id: self.graph[node_id]})[node_id]
