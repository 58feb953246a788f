"""The command line `imagen`. Exit codes: 0 done, 1 failed while running, 2 bad input, 130 interrupted."""

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..headless.inputs import InputError
from .batch import add_batch_options, batch
from .convert import add_convert_options, convert
from .doctor import doctor
from .evaluate import add_evaluate_options, evaluate
from .finetune import add_finetune_options, finetune
from .generate import add_generate_options, generate
from .info import add_info_options, info
from .new_cascade import add_new_cascade_options, new_cascade
from .process import prepare_process
from .run import add_run_options, run
from .train import train

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that they end as those of the commands do."""

    def error(self, message: str) -> NoReturn:
        """Show the usage and raise InputError."""
        self.print_usage(sys.stderr)
        raise InputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. With --json one object is last on standard output, whatever happens.

    arguments   of the command line; None = this process's
    """
    if arguments is None:
        arguments = sys.argv[1:]
        prepare_process()
    as_json = "--json" in arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            options = parsed(arguments)
            check_environment()
            result = options.command(options)
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "interrupted; nothing half-written was left"
        return failed(INTERRUPTED, said, as_json)
    except ValueError as error:  # WorkflowError and InputError are some
        return failed(BAD_INPUT, str(error), as_json)
    except OSError as error:
        return failed(FAILED, told(error), as_json)
    except RuntimeError as error:
        return failed(FAILED, str(error), as_json)
    except Exception as error:
        traceback.print_exc()
        return failed(FAILED, f"{type(error).__name__}: {error}", as_json)
    if as_json:
        print(json.dumps(result))
    return result.get("exit", DONE)


def check_environment() -> None:
    """ValueError where the environment chooses a kernel by a name that there is not."""
    if {"IMAGEN_ATTENTION", "IMAGEN_NORM", "IMAGEN_CONVOLUTION"} & os.environ.keys():
        from ..imagen_core.settings import check_environment  # with torch, which takes seconds

        check_environment()


def told(error: OSError) -> str:
    """What an error of the system says; of a half-written file, the folder it belongs in."""
    if not (error.filename and error.strerror):
        return str(error)
    place = Path(str(error.filename))
    if place.suffix == ".writing":
        return f"cannot write in the folder {place.parent}: {error.strerror}"
    return f"{error.filename}: {error.strerror}"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; words left over by `generate` are most often an unquoted prompt."""
    parser = make_parser()
    options, left = parser.parse_known_args(arguments)
    if not left:
        return options
    hint = ""
    if arguments[0] == "generate" and not any(word.startswith("-") for word in left):
        hint = '; put the whole prompt in quotes, as in "a red apple"; for several prompts: imagen batch'
    parser.error(f"unrecognized arguments: {' '.join(left)}{hint}")


def failed(code: int, error: str, as_json: bool) -> int:
    """Say on standard error, and as JSON if that is wanted, why a command failed; the exit code.

    as_json   whether standard output gets an object
    """
    print(f"imagen: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error, "exit": code}))
    return code


def show_warning(message: Warning | str, *_place: Any) -> None:
    """Show a warning as one for people, not for programmers.

    _place    category, file and line, which are not
    """
    print(f"warning: {message}", file=sys.stderr)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="imagen", description="Imagen cascades from a shell.")
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=function)
        sub.add_argument(
            "--json",
            action="store_true",
            help="print one JSON object as the last line of standard output",
        )
        return sub

    add_generate_options(command("generate", generate, "Make images of a prompt."))
    about = "Run a saved workflow: JSON in the UI or API format, or a PNG that holds one."
    add_run_options(command("run", run, about))
    about = "Run a workflow once for each line of a file; continues where it stopped."
    add_batch_options(command("batch", batch, about))
    sub = command(
        "train", train, "Train a stage as a recipe says; continues from its last checkpoint."
    )
    sub.add_argument("recipe", type=Path, help="a TOML file, such as recipes/emoji/*.toml")
    about = "Tune a stage on a folder of images: a LoRA, or its weights."
    add_finetune_options(command("finetune", finetune, about))
    about = "Put stages and a text encoder together as a cascade."
    add_new_cascade_options(command("new-cascade", new_cascade, about))
    add_convert_options(command("convert", convert, "Write a stage's weights in another layout."))
    about = "Measure a cascade's images, or a folder of images; writes tables and a page."
    add_evaluate_options(command("evaluate", evaluate, about))
    add_info_options(command("info", info, "Show what a file or folder holds."))
    sub = command("doctor", doctor, "Check this installation and show what to fix.")
    about = (
        "instead, time each way of computing attention and group norm here and show which are used"
    )
    sub.add_argument("--kernels", action="store_true", help=about)
    return parser


class Version(argparse.Action):
    """Prints the version, which is looked up only then: that takes longer than all of the parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_given: Any) -> None:
        print(installed_version())
        parser.exit()


def installed_version() -> str:
    """What `imagen --version` prints."""
    import importlib.metadata

    try:
        return f"imagen-nodes {importlib.metadata.version('imagen-nodes')}"
    except importlib.metadata.PackageNotFoundError:
        return "imagen-nodes, not installed by pip"
