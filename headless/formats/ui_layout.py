"""Where the nodes of a graph stand on the canvas: in columns, each beside what takes from it."""

from typing import Any

from ..graph import Graph

COLUMN, ROW = 340, 60
TALLEST = 1100  # pixels of a column that loaders are added to
CHART, PICTURE = 170, 220  # pixels that the frontend adds to a node: web/lib/chart.js, a preview
SAMPLERS = ("ImagenBaseSample", "ImagenSR256", "ImagenSR1024")
ADDED = dict.fromkeys(SAMPLERS, CHART) | dict.fromkeys(("LoadImage", "LoadImageMask"), PICTURE)
GROWING = (
    *SAMPLERS,
    "ImagenFineTuneStage",
    "ImagenCascadeView",
    "SaveImage",
    "PreviewImage",
)  # while they run


def lay_out(graph: Graph, nodes: dict[str, dict[str, Any]]) -> None:
    """Give the nodes their places, and height for what the frontend adds to them.

    graph   without circles
    nodes   in the UI format, by id; size, pos and order are set
    """
    for order, node in enumerate(nodes.values()):
        node["size"][1] += ADDED.get(node["type"], 0)
        node["order"] = order
    columns = depths(graph)
    pull_right(graph, nodes, columns)
    spread(graph, columns)
    for column in set(columns.values()):
        stack([nodes[node_id] for node_id in graph if columns[node_id] == column], column)


def depths(graph: Graph) -> dict[str, int]:
    """Each node's column: one right of its rightmost source.

    graph   without circles
    """
    columns: dict[str, int] = {}
    for first in graph:
        stack = [first]
        while stack:
            before = [link.node for link in graph[stack[-1]].links().values()]
            missing = [node_id for node_id in before if node_id not in columns]
            if not missing:
                node_id = stack.pop()
                columns[node_id] = max((columns[each] for each in before), default=-1) + 1
            stack += missing
    return columns


def pull_right(graph: Graph, nodes: dict[str, dict[str, Any]], columns: dict[str, int]) -> None:
    """Move each node beside the leftmost node that takes from it, so that wires are short.

    graph     without circles
    nodes     in the UI format, by id
    columns   by id; changed in place

    Nodes without sources, which may stand anywhere to the left, keep away from a column that is full.
    """
    takers: dict[str, list[str]] = {node_id: [] for node_id in graph}
    for node in graph.values():
        for link in node.links().values():
            takers[link.node].append(node.id)
    filled: dict[int, int] = {}
    free = {node_id for node_id in graph if not graph[node_id].links()}
    for node_id in sorted(graph, key=lambda each: (each in free, -columns[each])):
        beside = min((columns[taker] - 1 for taker in takers[node_id]), default=columns[node_id])
        height = nodes[node_id]["size"][1] + ROW
        room = (c for c in range(beside, -1, -1) if filled.get(c, 0) + height <= TALLEST)
        columns[node_id] = next(room, beside) if node_id in free else beside
        if nodes[node_id]["type"] not in GROWING:
            filled[columns[node_id]] = filled.get(columns[node_id], 0) + height


def spread(graph: Graph, columns: dict[str, int]) -> None:
    """Give nodes that nothing takes from a column each: how tall they grow depends on what they show.

    graph     without circles
    columns   by id; changed in place
    """
    taken = {link.node for node in graph.values() for link in node.links().values()}
    used: set[int] = set()
    for node_id in sorted((each for each in graph if each not in taken), key=columns.__getitem__):
        while columns[node_id] in used:
            columns[node_id] += 1
        used.add(columns[node_id])


def stack(nodes: list[dict[str, Any]], column: int) -> None:
    """Put the nodes of one column below each other from the line on; above it where one of them grows.

    nodes    in the UI format; pos is set
    column   from 0
    """
    growing = [node for node in nodes if node["type"] in GROWING]
    others = [node for node in nodes if node["type"] not in GROWING]
    y = -sum(node["size"][1] + ROW for node in others) if growing else 0
    for node in others + growing:
        node["pos"] = [column * COLUMN, y]
        y += node["size"][1] + ROW + (PICTURE if node["type"] in GROWING else 0)
