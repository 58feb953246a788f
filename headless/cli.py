"""The command line `imagen`. Exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .batch import add_batch_options, batch
from .convert import add_convert_options, convert
from .generate import add_generate_options, generate
from .graph import WorkflowError
from .run import InputError, add_run_options, run

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code.

    arguments   of the command line; None = this process's
    """
    options = make_parser().parse_args(arguments)
    try:
        result = options.command(options)
    except KeyboardInterrupt:
        print("interrupted; nothing half-written was left", file=sys.stderr)
        return INTERRUPTED
    except (WorkflowError, InputError) as error:
        print(f"imagen: {error}", file=sys.stderr)
        return BAD_INPUT
    except (OSError, RuntimeError, ValueError) as error:
        print(f"imagen: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ValueError) else FAILED
    if options.json:
        print(json.dumps(result))
    return result.get("exit", DONE)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="imagen", description="Imagen cascades from a shell.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=function)
        sub.add_argument("--json", action="store_true", help="one JSON object last on stdout")
        return sub

    add_generate_options(command("generate", generate, "Make pictures of a prompt."))
    about = "Run a saved workflow: UI or API format, or a PNG that carries one."
    add_run_options(command("run", run, about))
    about = "Run a workflow once for each line of a file; goes on where it stopped."
    add_batch_options(command("batch", batch, about))
    sub = command("train", train, "Train a stage by a recipe; goes on from its last checkpoint.")
    sub.add_argument("recipe", type=Path)
    add_convert_options(command("convert", convert, "Write a stage's weights in another layout."))
    sub = command("info", info, "Say what a file or folder is.")
    sub.add_argument("path", type=Path)
    command("doctor", doctor, "Check this installation and say what to fix.")
    return parser


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Follow a training recipe.

    options   of the command line
    """
    try:
        from ..imagen_core.training.loop import train as follow
        from ..imagen_core.training.recipe import load_recipe
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"training needs {error.name}: pip install imagen-nodes[train]"
        ) from error

    return {"stage": str(follow(load_recipe(options.recipe)))}


def info(options: argparse.Namespace) -> dict[str, Any]:
    """Say what a file or folder is.

    options   of the command line
    """
    from .describe import describe

    found = describe(options.path)
    if not options.json:
        for key, value in found.items():
            print(f"{key}: {value}")
    return found


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """Check this installation.

    options   of the command line
    """
    from .describe import examine

    found = examine()
    if not options.json:
        for line in found["checks"]:
            print(f"{'ok  ' if line['ok'] else 'FIX '} {line['what']}: {line['found']}")
    return {**found, "exit": DONE if all(line["ok"] for line in found["checks"]) else FAILED}
