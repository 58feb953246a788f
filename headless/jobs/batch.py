"""`imagen batch`: one workflow run once for each line of a file, models loaded once, resumable.

DIR/manifest.jsonl gains a line for each one done or failed; a line that is done is not run again, as long as
neither it nor the workflow has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..graph import Graph, Link, Node, WorkflowError, brief, cut, finite, listed, to_api
from ..inputs import InputError, find_input

if TYPE_CHECKING:
    from ..formats.queueing import Draft
    from ..registry import Registry


@dataclass(frozen=True)
class Line:
    """One line of a batch.

    number   from 1
    values   of inputs, by "NODE.INPUT" or "prompt"
    key      what it would make: of the values and the workflow
    """

    number: int
    values: dict[str, Any]
    key: str


def run_line(session: Any, draft: Draft, line: Line, out: Path) -> dict[str, Any]:
    """Run one line; its record, which holds an error where it failed.

    session   keeps models and what did not change
    out       folder of pictures
    """
    from ..comfy_nodes.save import saved_files
    from ..engine.progress import Bar
    from ..engine.validate import validate

    started = time.monotonic()
    record: dict[str, Any] = {"line": line.number, "key": line.key, "values": line.values}
    try:
        changed = changed_graph(draft, line, session.registry)
        outputs = validate(changed, session.registry)
        report = session.run(changed, outputs, progress=Bar)
        record["files"] = [
            file.relative_to(out).as_posix() for file in saved_files(out, report.shown)
        ]
    except (WorkflowError, OSError, RuntimeError, ValueError) as error:
        record["error"] = str(error)
    except Exception as error:  # a line must never end a batch
        record["error"] = f"{type(error).__name__}: {error}"
    session.forget_outputs()
    return {**record, "seconds": round(time.monotonic() - started, 2)}


def changed_graph(draft: Draft, line: Line, registry: Registry) -> Graph:
    """The graph with a line's values, which are typed as into a widget; what it saves is named by the line.

    draft      the workflow; it is not changed
    line       of the batch; its number draws one of each {a|b} in prompts
    """
    from ..formats.queueing import Moment

    changed = draft.copy()
    given = [find_target(changed.graph, target, line.number) for target in line.values]
    for (node, name), value in zip(given, line.values.values(), strict=True):
        changed.set(node, name, value)
    named = {node.id for node, name in given if name == "filename_prefix"}
    for node in changed.graph.values():
        prefix = node.inputs.get("filename_prefix")
        if isinstance(prefix, str) and node.id not in named:
            node.inputs["filename_prefix"] = f"{line.number:06}/{prefix}"
    return changed.queued(registry, Moment(random.Random(line.number)))


def find_target(graph: Graph, target: str, number: int) -> tuple[Node, str]:
    """The node and input that a name in a line means.

    target   "NODE.INPUT", or the name of an input that one node alone has as a constant
    """
    if "." in target:
        return find_input(graph, target, f"line {number}")
    found = [
        node
        for node in graph.values()
        if (target in node.inputs or target in node.widgets)
        and not isinstance(node.inputs.get(target), Link)
    ]
    if len(found) != 1:
        names = listed(found) or "none"
        raise InputError(
            f"line {number}: expected one node with an input {brief(target)}, got {names}; "
            f'write "NODE.{cut(target, 80)}"'
        )
    return found[0], target


def read_lines(path: Path, graph: Graph) -> list[Line]:
    """The lines of a batch; all that is wrong with them in one error.

    path    of the file; empty lines are left out
    graph   of the workflow, whenever it is queued
    """
    try:
        texts = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable file: {error}") from error
    made_by = json.dumps(to_api(graph), sort_keys=True)
    lines, problems = [], []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                expected = 'expected {"NODE.INPUT": value}'
                raise InputError(f"line {number}: {expected}, got {text:.80}")
            for target in values:
                find_target(graph, target, number)
        except InputError as error:
            problems.append(str(error))
            continue
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: not JSON: {error}")
            continue
        parts = json.dumps([number, values, made_by], sort_keys=True)
        lines.append(Line(number, values, hashlib.sha256(parts.encode()).hexdigest()[:16]))
    if problems:
        raise WorkflowError([f"{path}: {problem}" for problem in problems])
    return lines


def finished(manifest: Path) -> set[str]:
    """The keys of the lines that are done and whose files are there.

    manifest   of earlier runs; a line that was cut off by a crash counts for nothing
    """
    if not manifest.is_file():
        return set()
    keys = set()
    with manifest.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if not isinstance(record, dict) or "error" in record:
                continue
            key, files = record.get("key"), record.get("files", [])
            whole = isinstance(files, list) and all(isinstance(each, str) for each in files)
            if not isinstance(key, str) or not whole:
                continue
            if all((manifest.parent / each).is_file() for each in files):
                keys.add(key)
    return keys


def append(manifest: Path, record: dict[str, Any]) -> None:
    """Add a record; what stands before it stays, whatever happens.

    record     JSON data
    """
    with manifest.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut_off = file.read(1) not in (b"", b"\n")
        line = json.dumps(finite(record)) + "\n"
        file.write((b"\n" if cut_off else b"") + line.encode())
        file.flush()
        os.fsync(file.fileno())
