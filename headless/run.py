"""`imagen run`: a saved workflow, here or on a ComfyUI server, with inputs changed on the command line."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from .graph import Graph, Node

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
    sub.add_argument(
        "--input", type=Path, default=Path("input"), help="folder that LoadImage reads"
    )
    sub.add_argument("--comfy", metavar="URL", help="run it on this ComfyUI server instead")


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

    options   of the command line
    """
    from .core_nodes import Folders, use_folders
    from .execute import execute
    from .progress import Bar
    from .registry import default_registry
    from .workflow import load_workflow

    use_folders(Folders(options.input, options.out, options.out / "temp"))
    registry = default_registry()
    graph, workflow = load_workflow(options.workflow, registry, options.prompt_seed)
    for change in options.set:
        set_input(graph, change)
    shown = execute(graph, registry, None if options.set else workflow, Bar)
    return saved_files(options.out, shown)


def run_there(options: argparse.Namespace) -> list[Path]:
    """The pictures of a workflow run on a ComfyUI server, brought back.

    options   of the command line
    """
    from .progress import Bar
    from .remote import Server
    from .workflow import load_workflow

    server = Server(options.comfy)
    graph, workflow = load_workflow(options.workflow, server.registry(), options.prompt_seed)
    for change in options.set:
        set_input(graph, change)
    server.upload_inputs(graph, options.input)
    return server.run(graph, None if options.set else workflow, options.out, Bar)


def saved_files(out: Path, shown: dict[str, dict[str, list[Any]]]) -> list[Path]:
    """The pictures that a run's output nodes saved.

    out     the folder of pictures
    shown   what the nodes show, by id
    """
    return [
        out / ("temp" if entry["type"] == "temp" else "") / entry["subfolder"] / entry["filename"]
        for outputs in shown.values()
        for entry in outputs.get("images", [])
    ]


def set_input(graph: Graph, change: str) -> None:
    """Change one input of a graph.

    graph    changed in place
    change   "NODE.INPUT=VALUE"; NODE is an id, a title or a node type that occurs once
    """
    target, equals, value = change.partition("=")
    if not equals or "." not in target:
        raise InputError(f"--set: expected NODE.INPUT=VALUE, got {change!r}")
    node, name = find_input(graph, target, f"--set {change}")
    if isinstance(node.inputs[name], bool):
        if value.lower() not in SWITCH:
            raise InputError(f"--set {change}: expected true or false, got {value!r}")
        node.inputs[name] = SWITCH[value.lower()]
    else:
        node.inputs[name] = value


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
