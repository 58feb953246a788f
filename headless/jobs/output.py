"""Where a batch's pictures go: files by a template, an imagefolder with metadata, WebDataset archives."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...files import replacing
from ..comfy_nodes.folders import inside
from ..files import shortened, sync_all
from ..formats.typed_texts import NOT_IN_FILE_NAMES
from ..graph import brief, finite, listed
from ..inputs import InputError
from . import manifest
from .digests import holds
from .rows import Row
from .tasks import Task
from .workers import Outcome, fail

FORMATS = ("files", "imagefolder", "webdataset")
FIELD = re.compile(r"\{([^{}:]+)(?::\.(\d{1,3}))?\}")
NAMES = {"files": "{key}/{file}", "imagefolder": "{key}", "webdataset": "unpacked/{key}/{file}"}
LONGEST_PART = 120  # bytes of a folder's name or of a file's without its ending


@dataclass(frozen=True)
class Layout:
    """How the output folder is laid out.

    format       one of FORMATS
    name         template of the files' names: {key}, {file}, any column; {key:.2} is its first two characters
    shard_size   pictures of a WebDataset archive
    columns      that the template names
    """

    format: str = "files"
    name: str = ""
    shard_size: int = 1000
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        name = self.name or NAMES[self.format]
        object.__setattr__(self, "name", name)
        columns = {column for column, _ in FIELD.findall(name)} - {"key", "file"}
        object.__setattr__(self, "columns", tuple(sorted(columns)))
        if self.format == "webdataset" and self.name != NAMES["webdataset"]:
            raise InputError("--name: webdataset names its files by their keys; leave it out")
        if not any(found[1] == "key" and not found[2] for found in FIELD.finditer(name)):
            raise InputError(
                f"--name: expected {{key}} in it, so that no two rows share a file, got {name!r:.80}"
            )
        path = PurePosixPath(FIELD.sub("x", name))
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"--name: expected names inside the folder of -o, got {name!r:.80}")
        if self.shard_size < 1:
            raise InputError(f"--shard-size: expected at least 1, got {self.shard_size}")

    def faults(self, row: Row) -> list[str]:
        """Why the files of a row can have no names; [] = they can."""
        lacks = [name for name in self.columns if row.values.get(name) is None]
        known = listed(brief(name) for name in row.values)
        return [f"--name: the row has no value for {name!r:.80}; it has {known}" for name in lacks]

    def path(self, task: Task, file: str, place: int) -> str:
        """The name of a task's file below the output folder.

        file    as the workflow saved it
        place   from 1, among the files of the task
        """

        if faults := self.faults(task.row):
            raise InputError("; ".join(faults))

        def field(found: re.Match[str]) -> str:
            name, most = found[1], found[2]
            if name == "file":
                return found[0]
            value = str(task.key if name == "key" else task.row.values[name])
            return part_of_name(value[: int(most)] if most else value)

        filled = FIELD.sub(field, self.name)
        if "{file}" in filled:
            return filled.replace("{file}", file)
        path = PurePosixPath(filled)
        number = f"-{place}" if place > 1 else ""
        return str(path.with_name(path.name + number + PurePosixPath(file).suffix))


def part_of_name(text: str) -> str:
    """A value as one part of a path: it leads nowhere else, and is no hidden file."""
    text = NOT_IN_FILE_NAMES.sub("_", text.encode("utf-8", "replace").decode()).strip(" ")
    text = shortened(text, LONGEST_PART)
    return f"_{text[1:]}" if text.startswith(".") else text or "_"


class Output:
    """The output folder of a batch.

    out      the folder
    layout   of it
    share    of the tasks, whose manifest this process writes
    history  of the folder
    """

    def __init__(self, out: Path, layout: Layout, share: manifest.Share, history: manifest.History):
        self.out, self.layout, self.share = out, layout, share
        self.shards, self.known, self.replaces = set(history.shards), history.keys, False
        self.manifest = out / share.name
        self.loose: list[dict[str, Any]] = []
        self.pictures = 0

    def commit(self, outcomes: list[Outcome], attempts: dict[str, int]) -> None:
        """Put a group's pictures in their places and record the group; nothing is recorded before it is safe.

        attempts   of tasks that failed, this time counted, by digest
        """
        found, moves, folders = [], [], set()
        for outcome in outcomes:
            names = self._names(outcome)
            self.replaces |= bool(names) and holds(self.known, outcome.task.key)
            record = self._record(outcome, attempts.get(outcome.task.made_of, 1))
            for file, name in zip(outcome.files, names, strict=True):
                content = (
                    file.content if isinstance(file.content, bytes) else file.content.read_bytes()
                )
                record["sha256"].append(hashlib.sha256(content).hexdigest())
                record["files"].append(name)
                moves.append((file.content, inside(self.out, name)))
            found.append(record)
            self.pictures += len(outcome.files)
        sync_all([content for content, _ in moves if isinstance(content, Path)])
        for content, path in moves:
            self._move(content, path, folders)
        sync_all(sorted(folders, key=lambda folder: -len(folder.parts)))
        manifest.append(self.manifest, found)
        if self.layout.format == "webdataset":
            self.loose += [record for record in found if record["state"] == manifest.DONE]
            while sum(len(record["files"]) for record in self.loose) >= self.layout.shard_size:
                self._pack()

    def _names(self, outcome: Outcome) -> list[str]:
        """The names of an outcome's files; it fails where its row has no such names."""
        try:
            files = enumerate(outcome.files, start=1)
            return [self.layout.path(outcome.task, file.name, place) for place, file in files]
        except InputError as error:
            fail(outcome, error)
            outcome.files = []
            return []

    def _record(self, outcome: Outcome, attempt: int) -> dict[str, Any]:
        task, failed = outcome.task, bool(outcome.error)
        record = {
            "made_of": task.made_of,
            "key": task.key,
            "state": manifest.FAILED if failed else manifest.DONE,
            "files": [],
            "attempt": manifest.MOST_ATTEMPTS if failed and outcome.final else attempt,
            "line": task.row.number,
            "prompt": outcome.prompt,
            "seed": outcome.seed,
            "values": task.row.values,
            "sha256": [],
            "seconds": round(outcome.seconds, 4),
            "nodes": outcome.nodes,
        }
        return {**record, "error": outcome.error} if failed else record

    @staticmethod
    def _move(content: Path | bytes, path: Path, folders: set[Path]) -> None:
        """Put a file where it belongs. The folders that change are added to `folders`."""
        new = path.parent
        while not new.is_dir():
            folders.add(new.parent)
            new = new.parent
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        else:
            os.replace(content, path)
            folders.add(path.parent)

    # --- archives --------------------------------------------------------------------------------

    def _pack(self) -> None:
        """Put pictures into the next archive, record that, and only then remove them from the folder."""
        count, pictures = 0, 0
        while count < len(self.loose) and pictures < self.layout.shard_size:
            pictures += len(self.loose[count]["files"])
            count += 1
        records, self.loose = self.loose[:count], self.loose[count:]
        parts = "" if self.share.parts == 1 else f"{self.share.part}-"
        number = 0
        while (name := f"shard-{parts}{number:06}.tar") in self.shards:
            number += 1
        with replacing(self.out / name) as temporary, tarfile.open(temporary, "w") as archive:
            for record in records:
                for member, data in members(self.out, record):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
        self.shards.add(name)
        manifest.append(
            self.manifest, [{"packed": name, "tasks": [record["made_of"] for record in records]}]
        )
        self._remove_loose(records)

    def _remove_loose(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            for name in record["files"]:
                path = self.out / name
                path.unlink(missing_ok=True)
                try:
                    path.parent.rmdir()
                except OSError:
                    continue

    def find_loose(self, history: manifest.History) -> None:
        """Take up what an earlier run left unpacked, and remove what it left beside its archive."""
        if self.layout.format == "webdataset":
            self._remove_loose(manifest.records_of(self.manifest, history.left))
            self.loose = manifest.records_of(self.manifest, history.loose)

    # --- at the end ------------------------------------------------------------------------------

    def finish(self) -> None:
        """Remove pictures that newer ones of the same key replace, and write what is made of the manifest."""
        while self.loose and self.layout.format == "webdataset":
            self._pack()
        for name in manifest.superseded(self.out) if self.replaces else ():
            inside(self.out, name).unlink(missing_ok=True)
        if self.layout.format == "imagefolder":
            with (
                replacing(self.out / "metadata.jsonl") as temporary,
                temporary.open("w", encoding="utf-8") as file,
            ):
                for line in self._metadata():
                    file.write(json.dumps(finite(line)) + "\n")
        if self.pictures:
            manifest.write_parquet(self.out)

    def _metadata(self) -> Iterator[dict[str, Any]]:
        """A line for each picture, as `datasets` reads them beside an imagefolder."""
        for record in manifest.records(self.out):
            if record["state"] != manifest.DONE:
                continue
            own = {name: record[name] for name in ("key", "prompt", "seed")}
            for name in record["files"]:
                yield {"file_name": name, **own, **record["values"]}


def members(out: Path, record: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a task's pictures in an archive: key.png, key.txt, key.json.

    A reader takes all up to the first dot as the key, so that a key's own dots become underscores.
    """
    key = record["key"]
    if "." in key:
        key = f"{key.replace('.', '_')}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    told = {name: record[name] for name in ("key", "prompt", "seed", "values")}
    for place, name in enumerate(record["files"], start=1):
        own = key if place == 1 else f"{key}-{place}"
        yield own + PurePosixPath(name).suffix, (out / name).read_bytes()
        yield f"{own}.txt", (record["prompt"] or "").encode("utf-8", "replace")
        yield f"{own}.json", json.dumps(finite(told)).encode()
