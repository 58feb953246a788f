"""Workflow files -> graph: API format, UI format, and PNG files that carry either."""

import json
import random
from pathlib import Path
from typing import Any

from .graph import Graph, Link, Node, WorkflowError
from .queued_texts import Moment
from .registry import Registry
from .ui_format import convert

LARGEST = 64 * 2**20  # bytes of a workflow file
DEEPEST = 100  # nested brackets


def load_workflow(
    path: str | Path, registry: Registry, prompt_seed: int = 0
) -> tuple[Graph, dict[str, Any] | None]:
    """The graph in a file, and the file's UI format where it has one.

    path          .json in either format, or a .png that carries a workflow
    registry      the node classes, whose order of inputs gives widget values their names
    prompt_seed   which one of each {a|b} a prompt takes
    """
    data = read_json(Path(path))
    graph = to_graph(data, registry, Moment(random.Random(prompt_seed)))
    return graph, data if is_ui(data) else None


def to_graph(data: dict[str, Any], registry: Registry, moment: Moment) -> Graph:
    """The graph of a workflow in either format.

    data       from `read_json`
    registry   the node classes, whose order of inputs gives widget values their names
    moment     in which it is queued; the API format holds texts that are settled already
    """
    return convert(data, registry, moment) if is_ui(data) else parse_api(data)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a workflow file or in a PNG's metadata.

    path   of the file
    """
    if not path.is_file():
        raise WorkflowError([f"{path}: no such file"])
    if path.stat().st_size > LARGEST:
        raise WorkflowError([f"{path}: larger than {LARGEST} bytes, not a workflow"])
    text = _png_text(path) if path.suffix.lower() == ".png" else _text(path)
    if _depth(text) > DEEPEST:
        raise WorkflowError([f"{path}: nested more than {DEEPEST} deep, not a workflow"])
    try:
        data = json.loads(text)
    except ValueError as error:
        raise WorkflowError([f"{path}: not JSON: {error}"]) from error
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if not isinstance(data, dict) or not (is_ui(data) or is_api(data)):
        raise WorkflowError(
            [f"{path}: neither ComfyUI's UI format (nodes, links) nor its API format (class_type)"]
        )
    return data


def is_ui(data: Any) -> bool:
    """Whether JSON data is a workflow in the UI format.

    data   parsed JSON
    """
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def is_api(data: Any) -> bool:
    """Whether JSON data is a workflow in the API format.

    data   parsed JSON
    """
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(node, dict) and "class_type" in node for node in data.values())
    )


def parse_api(data: dict[str, Any]) -> Graph:
    """The graph in API format; a stored `is_changed` is dropped.

    data   nodes by id
    """
    graph, problems = {}, []
    for node_id, node in data.items():
        class_type, inputs = node["class_type"], node.get("inputs", {})
        if not isinstance(class_type, str) or not isinstance(inputs, dict):
            problems.append(
                f"node {node_id}: expected class_type text and inputs, got {node!r:.80}"
            )
            continue
        meta = node.get("_meta")
        title = meta.get("title", class_type) if isinstance(meta, dict) else class_type
        parsed = {name: parse_value(value) for name, value in inputs.items()}
        graph[str(node_id)] = Node(str(node_id), class_type, str(title), parsed)
    if problems:
        raise WorkflowError(problems)
    return graph


def parse_value(value: Any) -> Any:
    """A constant, or a Link for [node id, slot]; {"__value__": [...]} is a constant list.

    value   of an input in API format
    """
    is_pair = isinstance(value, list) and len(value) == 2
    if is_pair and isinstance(value[0], str) and isinstance(value[1], (int, float)):
        return Link(value[0], int(value[1]))
    if isinstance(value, dict) and "__value__" in value:
        return value["__value__"]
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WorkflowError([f"{path}: not a text file: {error}"]) from error


def _png_text(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            texts = dict(image.info)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise WorkflowError([f"{path}: not a readable PNG: {error}"]) from error
    for key in ("workflow", "prompt"):
        if isinstance(texts.get(key), str):
            return texts[key]
    raise WorkflowError([f"{path}: carries no workflow"])


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings."""
    depth = deepest = 0
    quoted = escaped = False
    for character in text:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
