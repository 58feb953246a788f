"""`imagen batch`: a workflow run once for each row of a file."""

from __future__ import annotations

import argparse
import contextvars
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..headless.inputs import InputError
from .run import add_input_option, input_folder, require_writable

if TYPE_CHECKING:
    from ..headless.jobs.batch import Batch
    from ..headless.jobs.tasks import Job
    from ..headless.jobs.workers import Pool

AT_ONCE = 16
KINDS = ("jsonl", "csv", "tsv", "text", "parquet")
FORMATS = ("files", "imagefolder", "webdataset")
KEEP = "keep"
STOPPED = "interrupted; nothing half-written was left; the same command makes the rest"


def add_batch_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen batch`."""

    add = sub.add_argument
    about = (
        "rows: JSON lines, .csv, .tsv, .txt (a prompt a line), .parquet, a folder of workflows, or - for "
        "standard input; a column sets the input that it names (prompt, seed, NODE.INPUT), others go into "
        "the manifest alone"
    )
    add("prompts", type=Path, metavar="PROMPTS", help=about)
    about = "the workflow to run for each row; not with a folder of workflows"
    add("--workflow", type=Path, help=about)
    about = "folder for the images, and for manifest.jsonl, which records what is done"
    add("-o", "--out", type=Path, required=True, help=about)
    add_input_option(sub)
    about = "change an input for all rows; as for `imagen run`; repeatable"
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help=about)
    about = "what the rows are; default: by the name's ending"
    add("--rows", choices=KINDS, help=about)
    about = "column that names the rows; a row without it gets a hash of its content; default: %(default)s"
    add("--id", default="id", metavar="COLUMN", help=about)
    about = "do not set an input from this column, even if its name is like an input's; repeatable"
    add("--carry", action="append", default=[], metavar="COLUMN", help=about)
    about = (
        "number from which each row's own seed is made; keep = the workflow's seed for all rows; a column "
        "named seed overrides it; default: %(default)s"
    )
    add("--seed", type=base_seed, default=0, metavar="N|keep", help=about)
    about = "how often to run each row, each time with another seed; default: %(default)s"
    add("--repeat", type=int, default=1, metavar="N", help=about)
    about = "rows to compute together as one batch; 1 = one by one; default: %(default)s"
    add("--at-once", type=int, default=AT_ONCE, metavar="N", help=about)
    about = "make only the I-th of N shares of the rows, so that several processes can work in one folder"
    add("--shard", default="1/1", metavar="I/N", help=about)
    about = "also run rows again that failed before and would be left out"
    add("--retry-failed", action="store_true", help=about)
    add_layout_options(sub)
    about = "auto (an NVIDIA or AMD GPU where there is one), cpu, cuda, cuda:1, mps, …; default: %(default)s"
    add("--device", default="auto", metavar="NAME", help=about)
    about = (
        "run on a Ray cluster, or, without an address, on processes started here, one a GPU or core"
    )
    add("--ray", nargs="?", const="", metavar="ADDRESS", help=about)
    about = (
        "processes on the cluster; default: one for each GPU, or for each core where there is none"
    )
    add("--workers", type=int, default=0, metavar="N", help=about)
    about = "run on these ComfyUI servers instead, one row at a time on each; repeatable"
    add("--comfy", action="append", default=[], metavar="URL", help=about)


def add_layout_options(sub: argparse.ArgumentParser) -> None:
    """The options that say how the output folder is laid out."""
    add = sub.add_argument
    about = "imagefolder: with the metadata that `datasets` reads; webdataset: archives; default: %(default)s"
    add("--format", choices=FORMATS, default="files", help=about)
    about = (
        "names of the images: {key}, {file} and columns, such as {label}/{key}; {key:.2} = its first two "
        "characters; default: {key}/{file}, of an imagefolder {key}"
    )
    add("--name", default="", metavar="TEMPLATE", help=about)
    about = "images in each WebDataset archive; default: %(default)s"
    add("--shard-size", type=int, default=1000, metavar="N", help=about)


def base_seed(text: str) -> int | None:
    """The base of seeds, None for "keep"."""
    if text == KEEP:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a whole number or {KEEP}, got {text!r}"
        ) from error


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """Run a workflow for every row that is not done; exit code 1 if any failed."""
    from ..headless.comfy_nodes.folders import Folders
    from ..headless.files import remove_leftovers, scratch_folder
    from ..headless.jobs import batch as jobs
    from ..headless.jobs.manifest import Share, locked, read_history
    from ..headless.jobs.output import Layout, Output
    from ..headless.jobs.rows import Rows
    from ..headless.registry import declared_once
    from .node_classes import use_folders

    layout = Layout(options.format, options.name, options.shard_size)
    share = Share.of(options.shard)
    for name in ("repeat", "at_once"):
        if getattr(options, name) < 1:
            raise InputError(
                f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}"
            )
    rows = Rows(options.prompts, options.rows)
    job, make_pool = prepared(options, rows.kind == "folder")
    require_writable(options.out)
    with declared_once():
        places = contextvars.copy_context()
    # What the rows name is looked for where it will be loaded from.
    places.run(use_folders, Folders(input_folder(options), options.out, options.out / "temp"))
    found = places.run(jobs.scan, rows, job, layout, share.parts)
    options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out, share):
        remove_leftovers(options.out)
        history = read_history(options.out)
        plan = jobs.make_plan(found, share, history, options.retry_failed)
        output = Output(options.out, layout, share, history)
        output.find_loose(history)
        meter = jobs.Meter(plan.todo)
        for line in jobs.about(found, plan):
            meter.say(line)
        attempts = {digest.hex(): count for digest, count in history.failed.items()}
        running = jobs.Batch(output, attempts, meter)
        at_once = options.at_once if job.shares_evaluations() else 1
        unfit = jobs.planned_tasks(rows, job, plan, jobs.UNFIT)
        places.run(running.refuse, unfit, lambda row: job.faults(row) or layout.faults(row))
        groups = jobs.grouped(jobs.planned_tasks(rows, job, plan, jobs.MAKE), at_once)
        if plan.todo:
            try:
                with scratch_folder(options.out) as scratch, declared_once():
                    running.run(make_pool(scratch), groups)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(STOPPED) from None
        running.finish()
    return summary(running, plan.counts)


def prepared(options: argparse.Namespace, of_folder: bool) -> tuple[Job, Callable[[Path], Pool]]:
    """The job, and what makes its workers, given an empty folder for what is being made.

    of_folder   whether each row is a workflow of its own
    """
    from ..headless.jobs.tasks import Choices, Job
    from ..headless.jobs.workers import Here, Servers, servers_of
    from .node_classes import default_registry, use_folders

    if of_folder == bool(options.workflow):
        raise InputError(
            "--workflow: expected none beside a folder of workflows"
            if of_folder
            else "--workflow: expected the workflow to run for each row"
        )
    seed, own, carried = options.seed, tuple(options.set), tuple(options.carry)
    choices = Choices(seed, options.id, options.repeat, own, carried)
    inputs = input_folder(options)
    if options.comfy:
        servers, registry = servers_of(options.comfy)
        job = Job(options.workflow, registry, choices)
        return job, lambda scratch: Servers(job, scratch, inputs, servers)
    if options.ray is not None:
        from ..headless.jobs.cluster import Cluster, Setup

        text = (
            options.workflow.read_bytes()
            if options.workflow and options.workflow.is_file()
            else None
        )
        use = (default_registry, use_folders, choose_device)
        setup = Setup(text, choices, inputs.absolute(), options.device, *use)
        job = Job(options.workflow, default_registry(), choices)
        return job, lambda scratch: Cluster(options.ray or None, setup, options.workers)
    choose_device(options.device)
    job = Job(options.workflow, default_registry(), choices)
    return job, lambda scratch: Here(job, scratch, inputs, use_folders)


def choose_device(name: str) -> None:
    """From now on the networks run on a device, as --device names it."""
    from ..nodes import host
    from .generate import chosen_device

    host.chosen_device.set(chosen_device(name))


def summary(running: Batch, counts: dict[str, int]) -> dict[str, Any]:
    """What a batch did, told on standard error and returned.

    counts   of the plan
    """
    speed = running.meter.close(running.output.pictures)
    failed = running.failed + counts["failed"]
    told = {"done": running.done, "failed": failed, "skipped": counts["skipped"]}
    line = "{done} done, {failed} failed, {skipped} done before".format(**told)
    if counts["failed"]:
        line += (
            f"; {counts['failed']} failed in earlier runs: see the manifest, or use --retry-failed"
        )
    if speed["pictures"]:
        line += "; {pictures} images in {seconds} s, {per_second} a second".format(**speed)
    print(line, file=sys.stderr)
    manifest = str(running.output.manifest)
    return {**told, "manifest": manifest, "speed": speed, "exit": 1 if failed else 0}
