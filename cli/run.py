"""`imagen run`: a saved workflow, here or on a ComfyUI server, with inputs changed on the command line."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..headless.graph import Graph
from ..headless.inputs import InputError, set_input

if TYPE_CHECKING:
    from ..headless.registry import Registry


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen run`."""
    about = "a workflow: JSON in the UI or the API format, or a PNG that holds one"
    sub.add_argument("workflow", type=Path, help=about)
    about = (
        "change an input; NODE is an id, a title or a node type that occurs once, and is not needed where "
        "one node alone has such an input; repeatable"
    )
    sub.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help=about)
    sub.add_argument(
        "--prompt-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random choices {a|b} in prompts",
    )
    sub.add_argument("-o", "--out", type=Path, default=Path("output"), help="folder for the images")
    add_input_option(sub)
    sub.add_argument("--comfy", metavar="URL", help="run it on this ComfyUI server instead")


def add_input_option(sub: argparse.ArgumentParser) -> None:
    """The option that says where pictures to load lie."""
    about = "folder of the images to load; default: ./input, or else input beside the workflow"
    sub.add_argument("--input", type=Path, help=about)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run a saved workflow and save its pictures."""
    started = time.monotonic()
    files = run_there(options) if options.comfy else run_here(options)
    for file in files:
        print(file, file=sys.stderr)
    return {"files": [str(file) for file in files], "seconds": round(time.monotonic() - started, 2)}


def run_here(options: argparse.Namespace) -> list[Path]:
    """The pictures of a workflow run in this process.

    With --set they carry the API format alone: the file's UI format would show the values before the change.
    What is set counts as typed: {a|b} in a prompt is drawn, names in file names are filled in.
    """
    from ..headless.comfy_nodes.folders import Folders
    from ..headless.comfy_nodes.save import saved_files
    from ..headless.engine.execute import execute
    from ..headless.engine.progress import Bar
    from ..headless.files import remove_leftovers
    from .node_classes import default_registry, use_folders

    use_folders(Folders(input_folder(options), options.out, options.out / "temp"))
    registry = default_registry()
    graph, workflow = queued(options, registry)
    remove_leftovers(require_writable(options.out))
    shown = execute(graph, registry, workflow, Bar)
    return saved_files(options.out, shown)


def run_there(options: argparse.Namespace) -> list[Path]:
    """The pictures of a workflow run on a ComfyUI server, brought back."""
    from ..headless.engine.progress import Bar
    from ..headless.remote import Server

    server = Server(options.comfy)
    graph, workflow = queued(options, server.registry())
    server.upload_inputs(graph, input_folder(options))
    return server.run(graph, workflow, options.out, Bar)


def queued(options: argparse.Namespace, registry: Registry) -> tuple[Graph, dict[str, Any] | None]:
    """The graph of a command line with its changes, and the file's UI format where that still is the same."""
    from ..headless.formats.queueing import Moment
    from ..headless.formats.workflow import load_draft

    draft, workflow = load_draft(options.workflow, registry)
    for change in options.set:
        set_input(draft, change)
    graph = draft.queued(registry, Moment(random.Random(options.prompt_seed)))
    return graph, None if options.set else workflow


def input_folder(options: argparse.Namespace) -> Path:
    """The folder that LoadImage reads: the one given, else ./input, else the one beside the workflow."""
    here = Path("input")
    beside = (options.workflow or options.prompts / "of the folder").parent / "input"
    return options.input or (beside if beside.is_dir() and not here.is_dir() else here)


def require_writable(folder: Path, *names: str) -> Path:
    """The nearest existing folder; InputError before anything runs if nothing could be saved in this one.

    folder   may have to be made first
    names    of the files to be
    """
    folder = folder.absolute()
    there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise InputError(
            f"-o: expected a folder that can be written to, got {folder}; {there} {why}"
        )
    for name in (*folder.relative_to(there).parts, *names):
        try:
            os.lstat(there / name)
        except FileNotFoundError:
            continue
        except OSError as error:  # such as a name that is too long
            raise InputError(f"-o: {name}: {error.strerror}") from error
    return there
