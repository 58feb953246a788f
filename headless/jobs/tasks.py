"""What a batch is to make: of each row, or of each repeat of a row, a task with a key, a seed and a graph.

A task's key is the row's id or a digest of what it holds, so that neither its place nor other rows matter.
What it is made of (row, workflow and seed) has a digest of its own: so a manifest knows that it is done.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..formats.queueing import Moment
from ..formats.typed_texts import NOT_IN_FILE_NAMES
from ..formats.workflow import load_draft
from ..graph import Graph, Node, brief, cut, finite, listed, to_api
from ..inputs import SEEDS, InputError, Place, find_targets, nearly
from .cells import Cells, typed
from .lines import all_encoded, encoded

if TYPE_CHECKING:
    from ..formats.queueing import Draft
    from ..registry import Registry
    from .rows import Row

MOST_KEY = 100  # characters of an id that stand in a file's name
SAFE_KEY = re.compile(rf"\w[\w.=@+-]{{0,{MOST_KEY - 1}}}", re.ASCII)


class Task(NamedTuple):
    """One run of a workflow.

    row       of the file; its values may be left out where only the digests count
    repeat    from 1, of the row
    key       names it and draws its chances
    digest    sixteen bytes for all that makes its pictures
    """

    row: Row
    repeat: int
    key: str
    digest: bytes

    @property
    def made_of(self) -> str:
        """The digest as manifests have it."""
        return self.digest.hex()


@dataclass(frozen=True)
class Choices:
    """What the command line says of all rows.

    seed      base of the seeds that rows do not give; None = the workflow's own
    id        column of the keys; a row without it is keyed by what it holds
    repeats   runs of each row
    changes   "NODE.INPUT=VALUE" of the workflow, as --set takes them
    carried   columns that set nothing, whatever they are called
    """

    seed: int | None = 0
    id: str = "id"
    repeats: int = 1
    changes: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()


class Job:
    """A workflow and how rows change it.

    workflow   a file; None where each row names its own
    registry   the node classes
    """

    def __init__(self, workflow: Path | None, registry: Registry, choices: Choices = Choices()):
        self.registry, self.choices = registry, choices
        self.targets: dict[tuple[str, ...], dict[str, list[Place]]] = {}
        self.draft = None if workflow is None else self._load(workflow)
        self.tests: dict[tuple[str, ...], list[tuple[str, Callable[[Any], bool]]]] = {}
        self.broken: dict[tuple[str, ...], list[str]] = {}
        self.cells = Cells(self.draft.graph if self.draft else {}, registry)
        origin = b"%d " % choices.seed if choices.seed is not None else b"keep "
        origin += b"" if self.draft is None else digest_of(self.draft)
        self.origin = origin

    def _load(self, workflow: Path) -> Draft:
        from ..inputs import set_input

        draft, _ = load_draft(workflow, self.registry)
        for change in self.choices.changes:
            set_input(draft, change)
        return draft

    def tasks(self, row: Row) -> list[Task]:
        """The tasks of a row; an InputError or WorkflowError where it cannot be used."""
        return [Task(row, repeat, *each) for repeat, each in enumerate(self.digests(row), start=1)]

    def digests(self, row: Row) -> list[tuple[str, bytes]]:
        """Key and digest of each task of a row; raises as `tasks`."""
        if row.problem:
            raise InputError(f"line {row.number}: {row.problem}")
        origin = self.origin
        if row.workflow is not None:
            origin += blake2b(row.workflow.read_bytes(), digest_size=16).digest()
        elif tuple(row.values) not in self.targets:
            self._find_targets(row)
        return list(zip(*self._digests([row], [encoded(row.values)], origin), strict=True))

    def all_digests(self, rows: list[Row]) -> tuple[list[str], list[bytes]]:
        """Keys and digests of the tasks of rows that `fit`: as `digests` has them, in less time."""
        return self._digests(rows, all_encoded([row.values for row in rows]), self.origin)

    def _digests(
        self, rows: list[Row], contents: list[bytes], origin: bytes
    ) -> tuple[list[str], list[bytes]]:
        """Keys and digests of the tasks of some rows.

        contents   their values, encoded
        origin     of what they change
        """
        keys, repeats = list(map(self._key, rows, contents)), self.choices.repeats
        if repeats > 1:
            keys = [f"{key}-{n}" for key in keys for n in range(1, repeats + 1)]
            contents = [content for content in contents for _ in range(repeats)]
        # A key has no line breaks.
        made_of = [
            b"%b%b\n%b" % (origin, key.encode(), content)
            for key, content in zip(keys, contents, strict=True)
        ]
        return keys, [blake2b(each, digest_size=16).digest() for each in made_of]

    def _key(self, row: Row, content: bytes) -> str:
        """A row's id as a file may be called, or twenty digits of what the row holds."""
        given = row.values.get(self.choices.id)
        if type(given) is str and SAFE_KEY.fullmatch(given):
            return given
        if given is None:
            return blake2b(content, digest_size=10).hexdigest()
        if not isinstance(given, (str, int)) or isinstance(given, bool) or given == "":
            raise InputError(
                f"line {row.number}: {self.choices.id}: expected text or a whole number, got {brief(given)}"
            )
        return file_key(str(given))

    # --- what a row changes ----------------------------------------------------------------------

    def _find_targets(self, row: Row) -> None:
        """Find what each column of a row sets, and remember it for rows with the same columns."""
        assert self.draft is not None
        where, carried = f"line {row.number}", self.choices.carried
        found = {
            column: [] if column in carried else find_targets(self.draft.graph, column, where)
            for column in row.values
        }
        inputs = dict.fromkeys(n for node in self.draft.graph.values() for n in node.widgets)
        others = [column for column in found if column != self.choices.id]
        given = {name for places in found.values() for _, name in places}
        free = [name for name in inputs if name not in given]
        linked = {name for node in self.draft.graph.values() for name in node.inputs}
        for column in others:
            known = found[column] or column in carried or column in linked
            near = "" if known else nearly(column, free)
            if near:
                raise InputError(
                    f"{where}: column {brief(column)} sets nothing; expected {near!r}, which the workflow "
                    f"has, or --carry {cut(column, 80)} to carry the column along"
                )
        if others and not given:
            raise InputError(
                f"{where}: expected a column that one of the workflow's inputs is called, "
                f"got {listed(brief(c) for c in others)}; the workflow has {listed(inputs)}"
            )
        self.targets[tuple(row.values)] = found

    def faults(self, row: Row) -> list[str]:
        """Why a row cannot run, as far as that is known before it does; [] = it can.

        row   `tasks` has seen it
        """
        if row.workflow is not None:
            return []
        columns, values = tuple(row.values), row.values
        if columns not in self.tests:
            places = self.targets[columns].items()
            self.tests[columns] = [
                (c, self.cells.test(place)) for c, each in places for place in each
            ]
        found = []
        for column, test in self.tests[columns]:
            if not test(values[column]):
                found = self._cell_faults(row)
                break
        if not found and columns not in self.broken:
            self.broken[columns] = self._workflow_faults(row)
        return found or self.broken[columns]

    def fit(self, rows: list[Row]) -> bool:
        """Whether all of some rows can run, seen quickly; where it says no, `faults` says of each why.

        It says yes only of rows with the columns of one that had no fault.
        """
        columns, values = tuple(rows[0].values), [row.values for row in rows]
        if self.broken.get(columns) != [] or any(row.problem for row in rows):
            return False
        if set(map(tuple, values)) != {columns}:
            return False
        return all(all(map(test, [v[c] for v in values])) for c, test in self.tests[columns])

    def _cell_faults(self, row: Row) -> list[str]:
        faults = ((c, self.cells.fault(place, value)) for c, place, value in self._changes(row))
        return [f"column {brief(column)}: {fault}" for column, fault in faults if fault]

    def _workflow_faults(self, row: Row) -> list[str]:
        """What is wrong with the workflow as rows with the same columns leave it, whatever they hold."""
        from ..engine.validate import check

        changed = {place for _, place, _ in self._changes(row)}
        found = []
        try:
            problems = check(self.graph(self.tasks(row)[0]), self.registry).problems
        except Exception:  # it will fail in its turn, alone
            return []
        for problem in problems:
            place = (problem.node, problem.extra_info.get("input_name", ""))
            if place not in changed and not self.cells.is_uploaded(place):
                found.append(f"the workflow: {problem.line}")
        return found

    def _changes(self, row: Row) -> Iterator[tuple[str, Place, Any]]:
        """Column, input and value of all that a row sets; an empty cell sets nothing."""
        for column, places in self.targets[tuple(row.values)].items():
            value = row.values[column]
            if value is not None or row.has_null:
                for place in places:
                    yield column, place, value

    def shares_evaluations(self) -> bool:
        """Whether a node of the workflow can take the calls of several tasks at once."""
        if self.draft is None:
            return True
        classes = (self.registry.get(node.class_type) for node in self.draft.graph.values())
        return any(hasattr(cls, "RUN_MANY") for cls in classes)

    def carried(self, row: Row) -> list[str]:
        """The columns of a row that set nothing: they go into the manifest alone."""
        return [c for c, places in self.targets.get(tuple(row.values), {}).items() if not places]

    def graph(self, task: Task) -> Graph:
        """The graph of a task as it is queued, its random choices drawn by its key."""
        row = task.row
        draft = self._load(row.workflow) if row.workflow else self.draft
        assert draft is not None
        changed = draft.copy()
        given = {} if row.workflow else {place: v for _, place, v in self._changes(row)}
        if self.choices.seed is not None:
            for node in changed.graph.values():
                for name in SEEDS:
                    if (node.id, name) not in given and is_seed(node, name):
                        changed.set(node, name, seed_of(self.choices.seed, task.key))
        for (node_id, name), value in given.items():
            node = changed.graph[node_id]
            changed.set(node, name, typed(node, name, value))
        return changed.queued(self.registry, Moment(random.Random(task.key)))


def is_seed(node: Node, name: str) -> bool:
    """Whether a node has a seed that a person could type, given or left out."""
    value = node.inputs.get(name, 0 if name in node.widgets else None)
    return isinstance(value, int) and not isinstance(value, bool)


def digest_of(draft: Draft) -> bytes:
    """Sixteen bytes for a workflow before it is queued, whatever its file looks like."""
    return blake2b(encoded(finite(to_api(draft.graph))), digest_size=16).digest()


def seed_of(base: int, key: str) -> int:
    """A seed for a key, below 2**48 so that every JSON reader keeps it."""
    return int.from_bytes(
        blake2b(f"{base}:{key}".encode("utf-8", "replace"), digest_size=6).digest(), "big"
    )


def file_key(text: str) -> str:
    """An id as a file's name may hold it; one that is changed for that keeps apart by a digest."""
    if SAFE_KEY.fullmatch(text):
        return text
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()
    plain = NOT_IN_FILE_NAMES.sub("_", text.encode("utf-8", "replace").decode())
    return f"{plain.strip('. ')[: MOST_KEY // 4] or 'row'}-{digest}"
