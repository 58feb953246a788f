"""`imagen run`: a saved workflow, here or on a ComfyUI server, with inputs changed on the command line."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .graph import Graph, Node

if TYPE_CHECKING:
    from .draft import Draft
    from .registry import Registry

SWITCH = {"true": True, "1": True, "false": False, "0": False}


class InputError(ValueError):
    """Something on the command line, or in a file that it names, that cannot be used."""


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen run`.

    sub   receives them
    """
    sub.add_argument("workflow", type=Path)
    sub.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    sub.add_argument(
        "--prompt-seed", type=int, default=0, metavar="N", help="draws one of each {a|b} in prompts"
    )
    sub.add_argument("-o", "--out", type=Path, default=Path("output"), help="folder of pictures")
    add_input_option(sub)
    sub.add_argument("--comfy", metavar="URL", help="run it on this ComfyUI server instead")


def add_input_option(sub: argparse.ArgumentParser) -> None:
    """The option that says where pictures to load lie.

    sub   receives it
    """
    about = "folder that LoadImage reads; else ./input, else the folder input beside the workflow"
    sub.add_argument("--input", type=Path, help=about)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run a saved workflow and save its pictures.

    options   of the command line
    """
    started = time.monotonic()
    files = run_there(options) if options.comfy else run_here(options)
    for file in files:
        print(file, file=sys.stderr)
    return {
        "files": [str(file) for file in files],
        "seconds": round(time.monotonic() - started, 2),
    }


def run_here(options: argparse.Namespace) -> list[Path]:
    """The pictures of a workflow run in this process.

    With --set they carry the API format alone: the file's UI format would show the values before the change.
    What is set counts as typed: {a|b} in a prompt is drawn, names in file names are filled in.

    options   of the command line
    """
    from .core_nodes import Folders, use_folders
    from .execute import execute
    from .progress import Bar
    from .registry import default_registry

    use_folders(Folders(input_folder(options), options.out, options.out / "temp"))
    registry = default_registry()
    graph, workflow = queued(options, registry)
    require_writable(options.out)
    shown = execute(graph, registry, workflow, Bar)
    return saved_files(options.out, shown)


def run_there(options: argparse.Namespace) -> list[Path]:
    """The pictures of a workflow run on a ComfyUI server, brought back.

    options   of the command line
    """
    from .progress import Bar
    from .remote import Server

    server = Server(options.comfy)
    graph, workflow = queued(options, server.registry())
    server.upload_inputs(graph, input_folder(options))
    return server.run(graph, workflow, options.out, Bar)


def queued(options: argparse.Namespace, registry: Registry) -> tuple[Graph, dict[str, Any] | None]:
    """The graph of a command line with its changes, and the file's UI format where that still is the same.

    options    of the command line
    registry   node classes
    """
    from .draft import Moment
    from .workflow import load_draft

    draft, workflow = load_draft(options.workflow, registry)
    for change in options.set:
        set_input(draft, change)
    graph = draft.queued(registry, Moment(random.Random(options.prompt_seed)))
    return graph, None if options.set else workflow


def input_folder(options: argparse.Namespace) -> Path:
    """The folder that LoadImage reads: the one given, else ./input, else the one beside the workflow.

    options   of the command line
    """
    here, beside = Path("input"), options.workflow.parent / "input"
    return options.input or (beside if beside.is_dir() and not here.is_dir() else here)


def require_writable(folder: Path) -> None:
    """Raise InputError before anything runs if nothing could be saved in a folder.

    folder   may have to be made first
    """
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"-o: expected a folder that can be written to, got {folder}")


def saved_files(out: Path, shown: dict[str, dict[str, list[Any]]]) -> list[Path]:
    """The pictures that a run's output nodes saved, and after them those that are only looked at.

    out     the folder of pictures
    shown   what the nodes show, by id
    """
    files = [
        out / ("temp" if entry["type"] == "temp" else "") / entry["subfolder"] / entry["filename"]
        for outputs in shown.values()
        for entry in outputs.get("images", [])
    ]
    return sorted(files, key=lambda file: out / "temp" in file.parents)


def set_input(draft: Draft, change: str) -> None:
    """Change one input of a workflow.

    draft    changed in place
    change   "NODE.INPUT=VALUE"; NODE is an id, a title or a node type that occurs once
    """
    target, equals, value = change.partition("=")
    if not equals or "." not in target:
        raise InputError(f"--set: expected NODE.INPUT=VALUE, got {change!r}")
    node, name = find_input(draft.graph, target, f"--set {change}")
    switch = isinstance(node.inputs[name], bool)
    if switch and value.lower() not in SWITCH:
        raise InputError(f"--set {change}: expected true or false, got {value!r}")
    draft.set(node, name, SWITCH[value.lower()] if switch else value)


def find_input(graph: Graph, target: str, where: str) -> tuple[Node, str]:
    """The node and the name of an input that a person points at.

    graph    nodes by id
    target   "NODE.INPUT"; NODE is an id, a title or a node type that occurs once
    where    what is said first if there is none
    """
    name, _, input_name = target.rpartition(".")
    found = [node for node in graph.values() if name in (node.id, node.title, node.class_type)]
    found = [node for node in found if node.id == name] or found
    if len(found) != 1:
        known = ", ".join(str(node) for node in graph.values())
        raise InputError(f"{where}: {len(found)} nodes are called {name!r}; there are {known}")
    if input_name not in found[0].inputs:
        known = ", ".join(found[0].inputs)
        raise InputError(f"{where}: {found[0]} has no input {input_name!r}; it has {known}")
    return found[0], input_name
