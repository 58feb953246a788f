"""`imagen batch`: one workflow run once for each row of a file, models loaded once, resumable.

The rows are read twice: once to find what is wrong with them and what is done already, then to run the rest.
So memory does not grow with them, but for some bytes a row.
"""

from __future__ import annotations

import itertools
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..files import NO_SPACE
from ..graph import WorkflowError, brief, listed
from ..inputs import InputError
from .digests import among, number_of, pairs, repeated, share_of
from .manifest import MOST_ATTEMPTS, History, Share
from .rows import Row, Rows
from .tasks import Choices, Job, Task
from .workers import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from .output import Layout, Output
    from .workers import Pool

MOST_PROBLEMS = 100  # that an error spells out
MEMORY_ATTEMPTS = 3  # of a task that memory did not suffice for, in one run
MAKE, HAVE, UNFIT = 1, 2, 3
# Seconds and tasks between two commits: to sync a disk takes a while.
COMMIT, MOST_WAITING = 1.0, 256
SILENCE = 30.0  # seconds between two lines of a log


@dataclass
class Scan:
    """What the rows ask for, a task after the other.

    parts     into which they are divided
    digests   of what the tasks are made of, sixteen bytes each
    keys      numbers of their keys
    shares    which share each belongs to, from 0; empty where there is one
    numbers   of their rows
    unfit     1 for each whose row cannot run, else 0
    columns   of the first row: those that set inputs, those that are carried along
    """

    parts: int = 1
    digests: bytearray = field(default_factory=bytearray)
    keys: array[int] = field(default_factory=lambda: array("Q"))
    shares: array[int] = field(default_factory=lambda: array("L"))
    numbers: array[int] = field(default_factory=lambda: array("L"))
    unfit: bytearray = field(default_factory=bytearray)
    columns: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))

    def add(
        self, numbers: list[int], keys: list[str], digests: list[bytes], unfit: bool = False
    ) -> None:
        """Note tasks.

        numbers   of their rows
        unfit     whether they cannot run
        """
        self.digests += b"".join(digests)
        self.keys.extend(map(number_of, keys))
        self.numbers.extend(numbers)
        self.unfit += bytes([unfit]) * len(keys)
        if self.parts > 1:
            self.shares.extend(share_of(key, self.parts) for key in keys)

    def takes(self, rows: list[Row], job: Job, layout: Layout) -> bool:
        """Note the tasks of rows that can run, all at once; False where they must be looked at one by one."""
        if not job.fit(rows) or (layout.columns and any(map(layout.faults, rows))):
            return False
        try:
            keys, digests = job.all_digests(rows)
        except (InputError, RecursionError):  # one of them, which is to be named
            return False
        repeats = range(job.choices.repeats)
        self.add([row.number for row in rows for _ in repeats], keys, digests)
        return True


def scan(rows: Rows, job: Job, layout: Layout, parts: int = 1) -> Scan:
    """What the rows ask for; a WorkflowError that lists all that is wrong with them.

    layout  of what they make
    parts   into which they are divided
    """
    found, problems = Scan(parts), []
    unfit: list[str] = []
    strange: set[tuple[str, ...]] = set()  # columns that are at fault, told once
    for _, block in rows.blocks():
        if found.takes(block, job, layout):
            continue
        for row in block:
            columns = tuple(row.values)
            if columns in strange and not row.problem:
                continue
            try:
                tasks = job.digests(row)
            except (InputError, WorkflowError) as error:
                problems.append(f"{rows.path}: {error}")
                if not row.problem and row.workflow is None and columns not in job.targets:
                    strange.add(columns)
                continue
            if not found.numbers and row.workflow is None:
                carried = job.carried(row)
                found.columns = [c for c in row.values if c not in carried], carried
            faults = job.faults(row) or layout.faults(row)
            if faults and len(unfit) < MOST_PROBLEMS:
                unfit.append(f"{rows.path}: line {row.number}: {'; '.join(faults)}")
            for key, digest in tasks:
                found.add([row.number], [key], [digest], bool(faults))
        if len(problems) > MOST_PROBLEMS:
            break
    if problems or (unfit and all(found.unfit)):
        raise WorkflowError([*problems, *unfit][:MOST_PROBLEMS])
    own, known = job.choices.id, set(itertools.chain(*job.targets))
    for option, names in (("--id", {own} - {Choices.id}), ("--carry", set(job.choices.carried))):
        if job.targets and not known >= names:
            listing = listed(brief(name) for name in sorted(known))
            raise InputError(
                f"{option}: expected a column of {rows.path}, {listing}, got {brief(min(names - known))}"
            )
    if equal := two_of_a_key(found):
        one, other = equal
        values = next(row.values for row in rows.read() if row.number == other)
        raise InputError(
            f"{rows.path}: lines {one} and {other} have the id {brief(values.get(own))} but differ; "
            f"expected an id of its own for each row, or --id and a column that holds such"
        )
    return found


@dataclass
class Plan:
    """What is to be done.

    wanted   for each task in order: MAKE, HAVE (done, or failed for good), UNFIT (its row cannot run), or 0 =
             not of this share
    counts   tasks of this share: done before, failed before for good, repeated rows
    """

    wanted: bytearray
    counts: dict[str, int]

    @property
    def todo(self) -> int:
        """How many tasks this run makes."""
        return self.wanted.count(MAKE)


def make_plan(found: Scan, share: Share, history: History, again: bool = False) -> Plan:
    """Which tasks this run makes.

    history   of the folder
    again     whether to make what failed for good, too
    """
    import numpy as np

    halves = pairs(found.digests)
    mine = ~repeated(halves)
    counts = {"repeated": int((~mine).sum())}
    if share.parts > 1:
        mine &= np.array(found.shares) == share.part - 1
    done = mine & among(halves, history.done)
    final = b"".join(d for d, n in history.failed.items() if n >= MOST_ATTEMPTS and not again)
    failed = mine & ~done & among(halves, pairs(final))
    counts |= {"skipped": int(done.sum()), "failed": int(failed.sum())}
    new = np.where(np.frombuffer(found.unfit, np.uint8), UNFIT, MAKE)
    wanted = np.where(mine, np.where(done | failed, HAVE, new), 0).astype(np.uint8)
    return Plan(bytearray(wanted.tobytes()), counts)


def two_of_a_key(found: Scan) -> tuple[int, int] | None:
    """The lines of two rows that differ but have one key; None = there are no such."""
    import numpy as np

    first = ~repeated(pairs(found.digests))
    keys, numbers = np.array(found.keys)[first], np.array(found.numbers)[first]
    order = np.argsort(keys, kind="stable")
    equal = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    if not len(equal):
        return None
    one, other = sorted(int(numbers[order[equal[0] + i]]) for i in (0, 1))
    return one, other


def planned_tasks(rows: Rows, job: Job, plan: Plan, mark: int) -> Iterator[tuple[int, Task]]:
    """The tasks that the plan marks, in order, each with its place among those of this share.

    mark   MAKE or UNFIT
    """
    repeats, wanted = job.choices.repeats, plan.wanted

    def asked(first: int, end: int) -> bool:
        return wanted.find(mark, first * repeats, end * repeats) >= 0

    seen = others = 0  # tasks before; of these such of other shares
    last = wanted.rfind(mark)
    for first, block in rows.blocks(asked) if last >= 0 else ():
        for start, row in enumerate(block, first):
            if not asked(start, start + 1):
                continue
            for repeat, task in enumerate(job.tasks(row)):
                place = start * repeats + repeat
                if wanted[place] == mark:
                    others += wanted.count(0, seen, place)
                    seen = place
                    yield place - others, task
        if (first + len(block)) * repeats > last:
            return


def grouped(tasks: Iterator[tuple[int, Task]], size: int) -> Iterator[list[Task]]:
    """The tasks in groups, which depend on their places alone: a batch that goes on makes the same groups."""
    for _, group in itertools.groupby(tasks, key=lambda task: task[0] // size):
        yield [task for _, task in group]


@dataclass
class Batch:
    """A batch as it runs.

    output    takes what is made
    attempts  of tasks that failed before, by digest
    meter     tells people how far it is
    """

    output: Output
    attempts: dict[str, int]
    meter: Meter
    done: int = 0
    failed: int = 0
    waiting: list[Outcome] = field(default_factory=list)
    committed: float = field(default_factory=time.monotonic)

    def refuse(self, tasks: Iterator[tuple[int, Task]], faults: Callable[[Row], list[str]]) -> None:
        """Record tasks whose rows cannot run as failed for good, and say so, before others run.

        tasks    with their places
        faults   of a row
        """
        for _, task in tasks:
            error = "; ".join(faults(task.row))
            self.waiting.append(Outcome(task, error=error, final=True))
            if len(self.waiting) >= MOST_WAITING:
                self._commit()
        self._commit()

    def run(self, pool: Pool, groups: Iterator[list[Task]]) -> None:
        """Make all groups; what was short of memory is tried again at the end, one task at a time."""
        for attempt in range(1, MEMORY_ATTEMPTS + 1):
            later: list[Task] = []
            try:
                for outcomes in pool.outcomes(groups):
                    self._take(outcomes, later if attempt < MEMORY_ATTEMPTS else None)
            finally:  # of an interrupted batch, what is whole
                self._commit()
            groups = iter([[task] for task in later])
            if not later:
                return
            self.meter.say(f"{len(later)} were short of memory; they are tried again one by one")

    def finish(self) -> None:
        """Write what stands beside the images; what is recorded stays, whatever happens."""
        try:
            self.output.finish()
        except OSError as error:
            raise full(self.output.out, error) from error

    def _take(self, outcomes: list[Outcome], later: list[Task] | None) -> None:
        """Keep what a group made; raise OSError where the disk takes no more.

        later   gets the tasks that are to be tried again; None = none are
        """
        broken = [outcome.broken for outcome in outcomes if outcome.broken is not None]
        if broken:
            raise full(self.output.out, broken[0])
        kept: list[Outcome] = []
        for outcome in outcomes:
            if outcome.error and later is not None and outcome.short_of_memory:
                later.append(outcome.task)
                continue
            kept.append(outcome)
            if outcome.error:
                digest = outcome.task.made_of
                self.attempts[digest] = self.attempts.get(digest, 0) + 1
        self.waiting += kept
        if time.monotonic() - self.committed >= COMMIT or len(self.waiting) >= MOST_WAITING:
            self._commit()

    def _commit(self) -> None:
        """Make what is whole safe, and say so."""
        kept, self.waiting = self.waiting, []
        if not kept:
            return
        try:
            self.output.commit(kept, self.attempts)
        except OSError as error:
            raise full(self.output.out, error) from error
        self.committed = time.monotonic()
        for outcome in kept:
            self.done += not outcome.error
            self.failed += bool(outcome.error)
            if outcome.error and self.failed <= MOST_PROBLEMS:
                self.meter.say(f"line {outcome.task.row.number}: {outcome.error}")
            elif outcome.error and self.failed == MOST_PROBLEMS + 1:
                self.meter.say(f"further failures are listed only in {self.output.manifest}")
        self.meter.show(self.done, self.failed, self.output.pictures)


def full(out: Path, error: OSError) -> OSError:
    """The error that ends a batch which can write no more.

    out   its folder
    """
    first = "make room" if error.errno in NO_SPACE else "mend that"
    said = error.strerror or str(error)
    return OSError(f"{out}: cannot be written to: {said}; {first}, then start the same batch again")


class Meter:
    """Tells on standard error how far a batch is: in one line of a terminal, elsewhere now and then.

    tasks    to be made
    stream   to write to
    """

    def __init__(self, tasks: int, stream: Any = None):
        self.tasks, self.stream = tasks, stream or sys.stderr
        self.started = self.told = time.monotonic()
        self.terminal = self.stream.isatty()
        self.width = 0

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._clear()
        print(text, file=self.stream)

    def show(self, done: int, failed: int, pictures: int) -> None:
        """Say how far it is, unless that was said a moment ago."""
        now = time.monotonic()
        if now - self.told < (0.2 if self.terminal else SILENCE):
            return
        self.told = now
        rate = pictures / (now - self.started)
        left = (self.tasks - done - failed) * (now - self.started) / max(1, done + failed)
        text = f"{done + failed} of {self.tasks}, {failed} failed, {rate:.3g} images/s"
        text += f", {duration(left)} left"
        if not self.terminal:
            print(text, file=self.stream, flush=True)
            return
        self._clear()
        print(text, end="", file=self.stream, flush=True)
        self.width = len(text)

    def _clear(self) -> None:
        if self.width:
            print("\r" + " " * self.width + "\r", end="", file=self.stream)
            self.width = 0

    def close(self, pictures: int) -> dict[str, float]:
        """The speed of the whole."""
        self._clear()
        seconds = time.monotonic() - self.started
        return {
            "pictures": pictures,
            "seconds": round(seconds, 2),
            "per_second": round(pictures / max(seconds, 1e-9), 3),
        }


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def about(found: Scan, plan: Plan) -> list[str]:
    """What people are told before a batch begins."""
    if not found.numbers:
        return ["there are no rows"]
    setting, carried = found.columns
    said = [f"set inputs: {', '.join(setting)}"] if setting else []
    said += [f"are carried along: {', '.join(carried)}"] if carried else []
    lines = ["columns that " + "; columns that ".join(said)] if said else []
    if plan.counts["repeated"]:
        lines.append(f"{plan.counts['repeated']} rows repeat earlier ones; each is made once")
    unfit = plan.wanted.count(UNFIT)
    if unfit:
        lines.append(
            f"{unfit} cannot run, and count as failed; mend their rows, then start the same batch again"
        )
    return [*lines, f"{plan.todo} to make, {plan.counts['skipped']} done before"]
