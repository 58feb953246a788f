"""Workflow files -> graph: API format, UI format, and PNG files that carry either."""

import json
import random
import re
from pathlib import Path
from typing import Any

from ..graph import Graph, Link, Node, Problem, WorkflowError, brief, cut
from ..png_chunks import BadText, is_png, read_texts
from ..registry import Registry, declared_once
from .queueing import Draft, Moment
from .ui_read import convert
from .widget_values import widget_types

LARGEST = 64 * 2**20  # bytes of a workflow file
DEEPEST = 100  # nested brackets


def load_draft(path: str | Path, registry: Registry) -> tuple[Draft, dict[str, Any] | None]:
    """What a file holds before it is queued, and its UI format where it has one.

    path       of a file as `read_workflow` takes it
    registry   the node classes, whose order of inputs gives widget values their names
    """
    data, ui = read_workflow(Path(path))
    draft = convert(data, registry) if is_ui(data) else Draft.of_api(parse_api(data))
    with declared_once():
        known: dict[str, dict[str, Any]] = {}
        for node in draft.graph.values():
            if node.class_type in registry and node.class_type not in known:
                known[node.class_type] = widget_types(registry[node.class_type])
            node.widgets = known.get(node.class_type, {})
    return draft, ui


def load_workflow(
    path: str | Path, registry: Registry, prompt_seed: int = 0
) -> tuple[Graph, dict[str, Any] | None]:
    """The graph in a file as it is queued now, and the file's UI format where it has one.

    path          as for `load_draft`
    prompt_seed   draws one of each {a|b} in a prompt
    """
    draft, data = load_draft(path, registry)
    return draft.queued(registry, Moment(random.Random(prompt_seed))), data


def read_workflow(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The workflow in a file, and its UI format where there is one.

    path   text in either format; or a PNG, which is made again as it was: its API format comes first
    """
    if not path.is_file():
        raise WorkflowError(
            [f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}"]
        )
    if is_png(path):
        found = in_png(path)
    elif path.suffix.lower() == ".png":
        raise WorkflowError([f"{path}: not a readable PNG: it does not start as one"])
    elif path.stat().st_size > LARGEST:
        raise WorkflowError([f"{path}: larger than {LARGEST} bytes, not a workflow"])
    else:
        found = [parse_json(_text(path), str(path))]
    return found[0], found[-1] if is_ui(found[-1]) else None


def in_png(path: Path) -> list[dict[str, Any]]:
    """What a picture carries: its API format, then its UI format; one that cannot be read is left out.

    WorkflowError where neither can.
    """
    found, problems = [], []
    for key, text in sorted(read_texts(path, ("prompt", "workflow"), LARGEST).items()):
        try:
            if isinstance(text, BadText):
                raise WorkflowError([f"{path}, {key}: {text}"])
            found.append(parse_json(text, f"{path}, {key}"))
        except WorkflowError as error:
            problems += error.problems
    if not found:
        raise WorkflowError(problems or [f"{path}: holds no workflow"])
    return found


def parse_json(text: str, where: str) -> dict[str, Any]:
    """A workflow's JSON object, in either format.

    text    of a file, or in a PNG's metadata
    """
    if _depth(text) > DEEPEST:
        raise WorkflowError([f"{where}: nested more than {DEEPEST} deep, not a workflow"])
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WorkflowError([f"{where}: not JSON: {error}"]) from error
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if not is_ui(data) and not is_api(data):
        raise WorkflowError(
            [f"{where}: neither ComfyUI's UI format (nodes, links) nor its API format (class_type)"]
        )
    if not is_ui(data) and (faults := no_nodes(data)):
        raise WorkflowError([Problem(f"{where}: {each.line}", node=each.node) for each in faults])
    return data


def no_nodes(data: dict[str, Any]) -> list[Problem]:
    """The entries of an API format that are no nodes, each with what it lacks."""
    problems = []
    for node_id, node in data.items():
        if not isinstance(node, dict) or "class_type" not in node:
            expected = "expected a node with a class_type"
        elif not isinstance(node["class_type"], str):
            expected = "expected a class_type that is text"
        elif not isinstance(node.get("inputs", {}), dict):
            expected = "expected inputs by name"
        else:
            continue
        line = f"node {cut(str(node_id), 80)}: {expected}, got {brief(node)}"
        problems.append(Problem(line, "invalid_prompt", node_id))
    return problems


def is_ui(data: Any) -> bool:
    """Whether JSON data is a workflow in the UI format."""
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def is_api(data: Any) -> bool:
    """Whether JSON data is a workflow in the API format: at least one entry is a node."""
    return isinstance(data, dict) and any(
        isinstance(node, dict) and "class_type" in node for node in data.values()
    )


def parse_api(data: dict[str, Any]) -> Graph:
    """The graph in API format; a stored `is_changed` is dropped."""
    graph: Graph = {}
    problems = no_nodes(data)
    bad = {problem.node for problem in problems}
    for node_id, node in data.items():
        if node_id in bad:
            continue
        class_type, meta = node["class_type"], node.get("_meta")
        title = meta.get("title", class_type) if isinstance(meta, dict) else class_type
        parsed = Node(str(node_id), class_type, str(title))
        for name, value in node.get("inputs", {}).items():
            try:
                parsed.inputs[name] = parse_value(value)
            except ValueError as error:
                info = {"input_name": name}
                line = f"{parsed}, input {cut(name, 80)}: {error}"
                problems.append(Problem(line, "bad_linked_input", parsed.id, str(error), info))
        graph[parsed.id] = parsed
    if problems:
        raise WorkflowError(problems)
    return graph


def parse_value(value: Any) -> Any:
    """A constant, or a Link for [node id, slot]; {"__value__": [...]} is a constant list.

    value   of an input in API format; ValueError for a link whose slot is no whole number
    """
    is_pair = isinstance(value, list) and len(value) == 2
    if is_pair and isinstance(value[0], str) and isinstance(value[1], (int, float)):
        slot = value[1]
        if isinstance(slot, float) and not slot.is_integer():  # nor are Infinity and NaN
            raise ValueError(f"expected a link [node, number of its output], got {brief(value)}")
        return Link(value[0], int(slot))
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


BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|$)|[\[{]|[\]}]', re.DOTALL)


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings."""
    depth = deepest = 0
    for found in BRACKET.finditer(text):
        character = found[0]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
