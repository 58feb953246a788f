"""Workflow files -> graph: API format, UI format, and PNG files that carry either."""

import json
import random
from pathlib import Path
from typing import Any

from ..graph import Graph, Link, Node, WorkflowError
from ..registry import Registry
from .queueing import Draft, Moment
from .ui_read import convert

LARGEST = 64 * 2**20  # bytes of a workflow file
DEEPEST = 100  # nested brackets


def load_draft(path: str | Path, registry: Registry) -> tuple[Draft, dict[str, Any] | None]:
    """What a file holds before it is queued, and its UI format where it has one.

    path       of a file as `read_workflow` takes it
    registry   the node classes, whose order of inputs gives widget values their names
    """
    data, ui = read_workflow(Path(path))
    if is_ui(data):
        return convert(data, registry), ui
    return Draft.of_api(parse_api(data)), ui


def load_workflow(
    path: str | Path, registry: Registry, prompt_seed: int = 0
) -> tuple[Graph, dict[str, Any] | None]:
    """The graph in a file as it is queued now, and the file's UI format where it has one.

    path          as for `load_draft`
    registry      the node classes
    prompt_seed   draws one of each {a|b} in a prompt
    """
    draft, data = load_draft(path, registry)
    return draft.queued(registry, Moment(random.Random(prompt_seed))), data


def read_workflow(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The workflow in a file, and its UI format where there is one.

    path   .json in either format; or a .png, which is made again as it was: its API format comes first
    """
    if not path.is_file():
        raise WorkflowError(
            [f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}"]
        )
    if path.stat().st_size > LARGEST:
        raise WorkflowError([f"{path}: larger than {LARGEST} bytes, not a workflow"])
    texts = _png_texts(path) if path.suffix.lower() == ".png" else [_text(path)]
    found = [parse_json(text, path) for text in texts]
    return found[0], found[-1] if is_ui(found[-1]) else None


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """A workflow's JSON object, in either format.

    text   of a file, or in a PNG's metadata
    path   of the file, for errors
    """
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
        raise WorkflowError(
            [f"{path}: expected a .json or .png file, got no text: {error}"]
        ) from error


def _png_texts(path: Path) -> list[str]:
    """What a picture carries: the API format, then the UI format."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            info = dict(image.info)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise WorkflowError([f"{path}: not a readable PNG: {error}"]) from error
    texts = [info[key] for key in ("prompt", "workflow") if isinstance(info.get(key), str)]
    if not texts:
        raise WorkflowError([f"{path}: carries no workflow"])
    return texts


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
