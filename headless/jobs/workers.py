"""Who runs the tasks of a batch: this process, ComfyUI servers, or processes that Ray starts (cluster.py).

A worker takes a group of tasks and gives an outcome for each. It writes into a folder of its own; what
belongs to the batch is moved out of there by `Output`.
"""

from __future__ import annotations

import contextvars
import ctypes
import itertools
import os
import queue
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..comfy_nodes.folders import Folders, folders
from ..files import durable, no_room
from ..graph import Graph, Link, WorkflowError
from ..inputs import SEEDS, InputError
from .tasks import Job, Task

if TYPE_CHECKING:
    from ..registry import Registry
    from ..remote import Server

TIDY = 512  # tasks after which freed memory goes back to the system
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


@dataclass
class Staged:
    """A picture that a task made.

    name      as the workflow saved it, below the folder of the task
    content   the file, or its bytes where they come from another computer
    """

    name: str
    content: Path | bytes


@dataclass
class Outcome:
    """What became of a task.

    files     that it made
    error     why it failed; "" = it did not
    final     it would fail each time
    seconds   that it took, of a group its part; by node in `nodes`
    prompt    as it was drawn; the first of the workflow's
    seed      the first of the workflow's
    broken    the disk of the worker takes no more
    """

    task: Task
    files: list[Staged] = field(default_factory=list)
    error: str = ""
    final: bool = False
    seconds: float = 0.0
    nodes: dict[str, float] = field(default_factory=dict)
    prompt: str | None = None
    seed: int | None = None
    broken: OSError | None = None

    @property
    def short_of_memory(self) -> bool:
        """Whether it may succeed where more memory is free."""
        return any(words in self.error.lower() for words in NO_MEMORY)


Groups = Iterator[list[Task]]


class Pool(Protocol):
    """One or more workers."""

    def outcomes(self, groups: Groups) -> Iterator[list[Outcome]]:
        """The outcomes of each group, in any order; a group is taken when somebody is free for it."""
        ...


class Here:
    """Runs tasks in this process, the tasks of a group side by side, so that they share evaluations.

    scratch   an empty folder for what is being made
    inputs    folder of pictures to load
    use       tells the nodes where pictures come from and go to
    """

    def __init__(self, job: Job, scratch: Path, inputs: Path, use: Callable[[Folders], None]):
        from ..engine.execute import Session

        self.job, self.scratch, self.inputs, self.use = job, scratch, inputs, use
        self.session = Session(job.registry)
        self.folders: deque[Path] = deque()  # used, the oldest first
        self.numbers = itertools.count()
        self.untidied = 0  # tasks

    def outcomes(self, groups: Groups) -> Iterator[list[Outcome]]:
        """The outcomes of each group in order."""
        for group in groups:
            yield self.run(group)

    def run(self, group: list[Task]) -> list[Outcome]:
        """The outcomes of a group; its files are to be taken out of the empty folder."""
        from ..engine.together import Part, run_together

        started = time.monotonic()
        self.untidied += len(group)
        if self.untidied >= TIDY:
            self.untidied = 0
            give_back_freed_memory()
        outcomes = [Outcome(task) for task in group]
        parts: dict[int, Part] = {}
        for i, outcome in enumerate(outcomes):
            folder = self._folder()
            context = contextvars.copy_context()
            context.run(durable.set, False)
            context.run(self.use, Folders(self.inputs, folder, folder / "temp"))
            graph, outputs = context.run(self._ready, outcome)
            if graph is not None:
                parts[i] = Part(graph, outputs, context)
        self.session.forget_outputs()
        reports = run_together(self.session, list(parts.values()))
        seconds = (time.monotonic() - started) / len(group)
        for (i, part), report in zip(parts.items(), reports, strict=True):
            outcomes[i].seconds = seconds
            folder = part.context[folders].output
            self.folders.append(folder)
            if isinstance(report, Exception):
                fail(outcomes[i], report)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                continue
            nodes = {
                str(part.graph[n].title): round(s, 4)
                for n, s in report.seconds.items()
                if n in part.graph
            }
            outcomes[i].nodes = nodes
            outcomes[i].files = staged(folder, report.shown)
        return outcomes

    def _folder(self) -> Path:
        """An empty folder: one whose files were taken out, else a new one, as removing them takes long."""
        if self.folders and not any(files for _, _, files in os.walk(self.folders[0])):
            return self.folders.popleft()
        folder = self.scratch / str(next(self.numbers))
        folder.mkdir()
        return folder

    def _ready(self, outcome: Outcome) -> tuple[Graph | None, list[str]]:
        """The graph of a task, checked, and its output nodes; None where it cannot run."""
        from ..engine.validate import validate

        try:
            graph = self.job.graph(outcome.task)
            outputs = validate(graph, self.job.registry)
        except Exception as error:  # a task must never end a batch
            fail(outcome, error)
            return None, []
        tell(outcome, graph)
        return graph, outputs


def give_back_freed_memory() -> None:
    """Hand all freed memory to the system, where the C library is glibc; elsewhere nothing.

    Over thousands of tasks small pieces that stay part it, and large tensors take new memory beside it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def tell(outcome: Outcome, graph: Graph) -> None:
    """Write down the prompt and the seed of a graph as it runs."""
    for node in graph.values():
        prompt, seeds = node.inputs.get("prompt"), [node.inputs.get(name) for name in SEEDS]
        if outcome.prompt is None and isinstance(prompt, str):
            outcome.prompt = prompt
        for seed in seeds:
            if (
                outcome.seed is None
                and isinstance(seed, int)
                and not isinstance(seed, (bool, Link))
            ):
                outcome.seed = seed


def fail(outcome: Outcome, error: Exception) -> None:
    """Write down why a task failed, and whether it would fail each time."""
    outcome.broken = no_room(error)
    outcome.final = isinstance(error, (WorkflowError, InputError))
    known = isinstance(error, (OSError, RuntimeError, ValueError)) and str(error)
    outcome.error = str(error) if known else f"{type(error).__name__}: {error}"


def staged(folder: Path, shown: dict[str, dict[str, list[Any]]]) -> list[Staged]:
    """The pictures that output nodes saved below a folder; where they saved none, those only looked at."""
    from ..comfy_nodes.save import saved_files

    files = saved_files(folder, shown)
    saved = [file for file in files if folder / "temp" not in file.parents]
    if saved:
        shutil.rmtree(folder / "temp", ignore_errors=True)
    return [Staged(file.relative_to(folder).as_posix(), file) for file in saved or files]


class Servers:
    """Runs tasks on ComfyUI servers, one at a time on each.

    scratch   an empty folder for what is fetched
    inputs    folder of pictures, which are uploaded where a workflow names them
    """

    def __init__(self, job: Job, scratch: Path, inputs: Path, servers: list[Server]):
        self.job, self.scratch, self.inputs, self.servers = job, scratch, inputs, servers

    def outcomes(self, groups: Groups) -> Iterator[list[Outcome]]:
        """The outcomes of each task as they come in; a ConnectionError where no server is left.

        What a server had in hand when it went away is given to the others once they have done the rest.
        """
        left = list(enumerate(self.servers))
        while left:
            lost: list[tuple[int, list[Task], ConnectionError]] = []
            yield from self._round(groups, left, lost)
            if not lost:
                return
            gone = [number for number, _, _ in lost]
            left = [(number, server) for number, server in left if number not in gone]
            if not left:
                raise lost[-1][2]
            groups = iter([tasks for _, tasks, _ in lost])

    def _round(
        self,
        groups: Groups,
        servers: list[tuple[int, Server]],
        lost: list[tuple[int, list[Task], ConnectionError]],
    ) -> Iterator[list[Outcome]]:
        """The outcomes of each task as they come in.

        lost   gets the servers that go away, by number, with the tasks they had in hand
        """
        lock, done, stopped = threading.Lock(), queue.Queue(), threading.Event()

        def serve(number: int, server: Server) -> None:
            tasks: list[Task] = []
            try:
                while not stopped.is_set():
                    with lock:
                        tasks = next(groups, [])
                    if not tasks:
                        break
                    while tasks and not stopped.is_set():
                        done.put([self._run(server, tasks[0], number)])
                        tasks = tasks[1:]
            except ConnectionError as error:
                if len(servers) > 1:
                    print(f"{error}; the other servers go on", file=sys.stderr)
                lost.append((number, tasks, error))
            except BaseException as error:
                done.put(error)
            done.put(None)

        for each in servers:
            threading.Thread(target=serve, args=each, daemon=True).start()
        try:
            at_work = len(servers)
            while at_work:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    at_work -= 1
                else:
                    yield found
        finally:
            stopped.set()

    def _run(self, server: Server, task: Task, number: int) -> Outcome:
        from ..engine.progress import Bar

        outcome, started = Outcome(task), time.monotonic()
        folder = self.scratch / f"{number}-{task.made_of}"
        try:
            graph = self.job.graph(task)
            tell(outcome, graph)
            server.upload_inputs(graph, self.inputs)
            files = server.run(graph, None, folder, lambda node: Bar(node, None))
            outcome.files = [Staged(file.relative_to(folder).as_posix(), file) for file in files]
        except ConnectionError:
            raise
        except Exception as error:
            fail(outcome, error)
        outcome.seconds = time.monotonic() - started
        return outcome


def servers_of(addresses: list[str]) -> tuple[list[Server], Registry]:
    """ComfyUI servers, and the node classes of the first: all must have the same."""
    from ..remote import Server

    servers = [Server(address) for address in addresses]
    return servers, servers[0].registry()
