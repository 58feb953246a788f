"""What a batch has done: one JSON line for each task in manifest.jsonl, and locks on the folder of pictures.

Lines are only ever added. Several processes, each with its share of the tasks, add to files of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from array import array
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...files import lock, replacing
from ..graph import finite
from ..inputs import InputError
from .digests import among, number_of, pairs

DONE, FAILED = "done", "failed"
MANIFESTS = "manifest*.jsonl"
MOST_ATTEMPTS = 3  # of a task that fails while it runs, over all runs of a batch
# How this package writes the beginning of a line, of a task with one file; other lines are read as JSON.
QUICK = re.compile(
    rb'^\{"made_of": "([0-9a-f]{32})", "key": "([^"\\\n]+)", "state": "(done|failed)", '
    rb'"files": \[(?:"([^"\\\n]+)")?\], "attempt": (\d+).*\}$',
    re.MULTILINE,
)
BLOCK = 2**16  # bytes of lines that are read at once


@dataclass(frozen=True)
class Share:
    """Which part of the tasks a process makes.

    part, parts   1 of 1 = all
    """

    part: int = 1
    parts: int = 1

    @staticmethod
    def of(text: str) -> Share:
        """The share that "2/8" means; InputError where it means none."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--shard: expected I/N, such as 1/8 to 8/8, got {text!r:.80}")
        return Share(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """What the manifest of the share is called."""
        return (
            "manifest.jsonl" if self.parts == 1 else f"manifest-{self.part}-of-{self.parts}.jsonl"
        )


@dataclass
class History:
    """What the manifests of a folder tell.

    done      digests of tasks whose files are there, n x 2 numbers; of tasks with one key the newest alone,
              since its pictures took the places of the others'
    keys      numbers of all keys with pictures, sorted
    failed    attempts by digest, of tasks that failed and are not done
    shards    names of the archives that hold files
    """

    done: Any
    keys: Any
    failed: dict[bytes, int]
    shards: list[str]


def read_history(out: Path) -> History:
    """What was done in a folder before. A line that was cut off by a crash counts for nothing."""
    reader = _Reader(str(out))
    for path in sorted(out.glob(MANIFESTS)):
        with path.open("rb") as file:
            while lines := file.readlines(BLOCK):
                if not reader.take_done(lines):
                    for line in lines:
                        reader.take(line)
    return reader.history()


class _Reader:
    """Reads lines into tables: numbers of keys, what their tasks are made of, whether the files are there."""

    def __init__(self, out: str):
        self.out = out
        self.keys, self.digests, self.present = array("Q"), bytearray(), bytearray()
        self.packed = bytearray()
        self.failed: dict[bytes, int] = {}
        self.shards: list[str] = []
        self.folder: str | None = None
        self.listed: set[str] | None = None

    def take_done(self, lines: list[bytes]) -> bool:
        """Take lines that all are of done tasks with one file, in half the time; whether they were."""
        found = QUICK.findall(b"".join(lines))
        made_of, keys, states, files, _ = zip(*found, strict=True) if found else [()] * 5
        if not (states.count(b"done") == len(lines) and all(files) and lines[-1].endswith(b"\n")):
            return False
        if self.failed:
            for digest in map(unhexlify, made_of):
                self.failed.pop(digest, None)
        self.keys.extend(map(number_of, b"\n".join(keys).decode().split("\n")))
        self.digests += unhexlify(b"".join(made_of))
        names = b"\n".join(files).decode("utf-8", "replace").split("\n")
        self.present.extend(map(self._is_there, names))
        return True

    def take(self, line: bytes) -> None:
        found = QUICK.match(line)
        if found and line.endswith(b"}\n"):
            made_of, key, state, file, attempt = found.groups()
            files = (file.decode("utf-8", "replace"),) if file else ()
            self._note(unhexlify(made_of), key.decode(), state == b"done", files, int(attempt))
            return
        record = read_record(line)
        if record is None:
            return
        if "packed" in record:
            self.shards.append(record["packed"])
            if os.path.isfile(f"{self.out}/{record['packed']}"):
                self.packed += b"".join(bytes.fromhex(each) for each in record["tasks"])
            return
        digest, done = bytes.fromhex(record["made_of"]), record["state"] == DONE
        self._note(digest, record["key"], done, record["files"], record["attempt"])

    def _note(
        self, digest: bytes, key: str, done: bool, files: Iterable[str], attempt: int
    ) -> None:
        if not done:
            self.failed[digest] = max(attempt, self.failed.get(digest, 0))
            return
        self.failed.pop(digest, None)
        self.keys.append(number_of(key))
        self.digests += digest
        there = True
        for name in files:
            there = there and self._is_there(name)
        self.present.append(there)

    def _is_there(self, name: str) -> bool:
        """Whether a picture is there; where a second one of a folder follows, the folder is listed."""
        folder, _, file = name.rpartition("/")
        if folder != self.folder:
            self.folder, self.listed = folder, None
        elif self.listed is None:
            try:
                self.listed = set(os.listdir(f"{self.out}/{folder}"))
            except (OSError, ValueError):
                self.listed = set()
        return is_there(f"{self.out}/{name}") if self.listed is None else file in self.listed

    def history(self) -> History:
        import numpy as np

        keys = np.array(self.keys, np.uint64)
        order = np.argsort(keys, kind="stable")
        newest = np.ones(len(keys), bool)
        newest[order[:-1]] = keys[order[1:]] != keys[order[:-1]]
        digests = pairs(self.digests)
        done = newest & (np.frombuffer(self.present, bool) | among(digests, pairs(self.packed)))
        return History(digests[done], keys[order][newest[order]], self.failed, self.shards)


def is_there(path: str) -> bool:
    """Whether there is a file or folder; quicker than pathlib, as there may be a million."""
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def read_record(line: bytes) -> dict[str, Any] | None:
    """A line of a manifest; None where it is damaged, or another program's."""
    try:
        record = json.loads(line)
        if "packed" in record:
            names = [record["packed"], *record["tasks"]]
            return (
                record
                if all(isinstance(n, str) and bytes.fromhex(n or "") for n in names[1:])
                else None
            )
        whole = (
            len(bytes.fromhex(record["made_of"])) == 16
            and record["state"] in (DONE, FAILED)
            and isinstance(record["attempt"], int)
            and all(isinstance(each, str) for each in record["files"])
            and isinstance(record["key"], str)
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record if whole else None


def records(out: Path, name: str = MANIFESTS) -> Iterator[dict[str, Any]]:
    """The newest line of each key, in the order in which they were written.

    name   of one manifest, or a pattern of several
    """
    newest = {record["key"]: place for place, record in enumerate(_all_records(out, name))}
    for place, record in enumerate(_all_records(out, name)):
        if newest.get(record["key"]) == place:
            yield record


def packed(path: Path) -> set[str]:
    """Of one manifest the tasks whose pictures are in archives."""
    if not path.is_file():
        return set()
    found: set[str] = set()
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b'{"packed"'):
                found.update((read_record(line) or {"tasks": ()})["tasks"])
    return found


def superseded(out: Path) -> set[str]:
    """Files of tasks that were made anew, from another row or workflow under the same key, and not again."""
    newest = {record["key"]: set(record["files"]) for record in records(out)}
    old: set[str] = set()
    for record in _all_records(out):
        old |= set(record["files"]) - newest[record["key"]]
    return old.difference(*newest.values()) if old else old


def _all_records(out: Path, name: str = MANIFESTS) -> Iterator[dict[str, Any]]:
    for path in sorted(out.glob(name)):
        with path.open("rb") as file:
            for line in file:
                record = read_record(line)
                if (
                    record is not None
                    and "packed" not in record
                    and isinstance(record.get("key"), str)
                ):
                    yield record


def append(manifest: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Add records, on the disk when this returns; what stands before them stays, whatever happens."""
    text = "".join(json.dumps(finite(line)) + "\n" for line in lines).encode()
    # Unbuffered: what a full disk did not take would be written once more by truncate() and close().
    with manifest.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        cut_off = file.read(1) not in (b"", b"\n")
        left = memoryview((b"\n" if cut_off else b"") + text)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def write_parquet(out: Path) -> Path | None:
    """The manifest as a table, where pyarrow is; its name. It is made anew from the lines each time."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        return None
    path = out / "manifest.parquet"
    texts = ("made_of", "state", "key", "prompt", "error", "values", "nodes")
    columns = {name: pyarrow.string() for name in texts} | {
        "line": pyarrow.int64(), "seed": pyarrow.uint64(), "seconds": pyarrow.float64(),
        "files": pyarrow.list_(pyarrow.string()), "sha256": pyarrow.list_(pyarrow.string()),
    }  # fmt: skip
    schema = pyarrow.schema(list(columns.items()))
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        part: list[dict[str, Any]] = []

        def flush() -> None:
            writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))
            part.clear()

        for record in records(out):
            texted = {name: json.dumps(record.get(name)) for name in ("values", "nodes")}
            part.append({**record, **texted})
            if len(part) == 4096:
                flush()
        flush()
    return path


@contextlib.contextmanager
def locked(out: Path, share: Share) -> Iterator[None]:
    """The folder of pictures for this share alone; an InputError at once where another process has it.

    Shares of one division may run at once, on one disk also from several computers.
    """
    with contextlib.ExitStack() as held:
        whole = held.enter_context((out / ".imagen.lock").open("ab+"))
        alone = lock(whole, share.parts == 1)
        if not alone:
            raise InputError(
                f"{out}: another imagen batch works in this folder; wait for it, or give each process its "
                f"share with --shard 1/2, --shard 2/2"
            )
        if share.parts > 1:
            _agree(whole, out, share)
            own = held.enter_context((out / f".imagen-{share.part}.lock").open("ab+"))
            if not lock(own, True):
                raise InputError(
                    f"{out}: another imagen batch works on --shard {share.part}/{share.parts} in this folder"
                )
        yield


def _agree(whole: BinaryIO, out: Path, share: Share) -> None:
    """Write down into how many parts the tasks are divided, or see that others have divided them so."""
    if lock(whole, True):  # nobody else is there
        whole.truncate(0)
        whole.write(str(share.parts).encode())
        whole.flush()
        lock(whole, False)
        return
    lock(whole, False)  # what was tried has given it up
    whole.seek(0)
    parts = whole.read(16).decode("ascii", "replace")
    if parts != str(share.parts):
        raise InputError(
            f"{out}: others work in this folder on shares of {parts}: expected --shard I/{parts}, got "
            f"--shard {share.part}/{share.parts}"
        )
