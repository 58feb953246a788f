"""`imagen batch`: a workflow run once for each line of a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..headless.jobs.batch import (
    append,
    finished,
    read_lines,
    run_line,
)
from .run import add_input_option, input_folder, require_writable


def add_batch_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen batch`."""
    sub.add_argument(
        "prompts",
        type=Path,
        metavar="PROMPTS.jsonl",
        help='a JSON object per line, such as {"prompt": "a cat"} or {"NODE.INPUT": value, …}',
    )
    about = "the workflow to run for each line"
    sub.add_argument("--workflow", type=Path, required=True, help=about)
    sub.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder for the images, and for manifest.jsonl, which records what is done",
    )
    add_input_option(sub)


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """Run a workflow for every line that is not done; exit code 1 if any failed."""
    from ..headless.comfy_nodes.folders import Folders
    from ..headless.engine.execute import Session
    from ..headless.formats.workflow import load_draft
    from ..headless.registry import declared_once
    from .node_classes import default_registry, use_folders

    registry = default_registry()
    use_folders(Folders(input_folder(options), options.out, options.out / "temp"))
    draft, _ = load_draft(options.workflow, registry)
    lines = read_lines(options.prompts, draft.graph)
    require_writable(options.out)
    manifest = options.out / "manifest.jsonl"
    done = finished(manifest)
    todo = [line for line in lines if line.key not in done]
    options.out.mkdir(parents=True, exist_ok=True)
    session, failed = Session(registry), 0
    with declared_once():
        for line in todo:
            print(f"line {line.number} of {len(lines)}", file=sys.stderr)
            record = run_line(session, draft, line, options.out)
            failed += "error" in record
            append(manifest, record)
            if "error" in record:
                print(f"line {line.number}: {record['error']}", file=sys.stderr)
    counts = {"done": len(todo) - failed, "failed": failed, "skipped": len(lines) - len(todo)}
    print("{done} done, {failed} failed, {skipped} done before".format(**counts), file=sys.stderr)
    return {**counts, "manifest": str(manifest), "exit": 1 if failed else 0}
