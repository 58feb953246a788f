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
MANIFEST = re.compile(r"manifest.*\.jsonl")
MOST_ATTEMPTS = 3  # of a task that fails while it runs, over all runs of a batch
# How this package writes the beginning of a line; other lines are read as JSON.
QUICK = re.compile(
    rb'^\{"made_of": "([0-9a-f]{32})", "key": "([^"\\\n]+)", "state": "(done|failed)", '
    rb'"files": \[(?:"([^\]\\\n]+)")?\], "attempt": (\d+).*\}$',
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
    loose     those of the done whose files are not in archives
    left      those whose files are in archives and, of a run that was killed, still beside them
    failed    attempts by digest, of tasks that failed and are not done
    shards    names of the archives that hold files
    """

    done: Any
    keys: Any
    loose: Any
    left: Any
    failed: dict[bytes, int]
    shards: list[str]


def manifests(out: Path) -> list[Path]:
    """The manifests of a folder. Path.glob() would keep the names of all that is in it, maybe a million."""
    with os.scandir(out) as entries:
        return sorted(out / entry.name for entry in entries if MANIFEST.fullmatch(entry.name))


def read_history(out: Path) -> History:
    """What was done in a folder before. A line that was cut off by a crash counts for nothing."""
    reader = _Reader(str(out))
    for path in manifests(out):
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                block += file.readline()
                if not reader.take_block(block):
                    for line in block.split(b"\n"):
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

    def take_block(self, block: bytes) -> bool:
        """Take lines as this package writes them, in less time than one by one; whether all were such."""
        found = QUICK.findall(block) if block.isascii() else []
        if len(found) < block.count(b"\n") or not block.endswith(b"}\n"):
            return False
        made_of, keys, states, files, _ = zip(*found, strict=True)
        if b"failed" in states or not all(files) or any(b'", "' in each for each in files):
            for made_of, key, state, names, attempt in found:
                each = names.decode().split('", "') if names else ()
                self._note(unhexlify(made_of), key.decode(), state == b"done", each, int(attempt))
            return True
        if self.failed:
            for digest in map(unhexlify, made_of):
                self.failed.pop(digest, None)
        self.keys.extend(map(number_of, b"\n".join(keys).decode().split("\n")))
        self.digests += unhexlify(b"".join(made_of))
        names = b"\n".join(files).decode().split("\n")
        self.present.extend(map(self._is_there, names))
        return True

    def take(self, line: bytes) -> None:
        """Take a line of any kind."""
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
        present = newest & np.frombuffer(self.present, bool)
        packed = newest & among(digests, pairs(self.packed))
        loose, left = digests[present & ~packed], digests[present & packed]
        known = keys[order][newest[order]]
        return History(digests[present | packed], known, loose, left, self.failed, self.shards)


def is_there(path: str) -> bool:
    """Whether there is a file or folder; quicker than pathlib, as there may be a million."""
    try:
        return os.access(path, os.F_OK)
    except ValueError:  # a zero byte
        return False


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


def records(out: Path) -> Iterator[dict[str, Any]]:
    """The newest line of each key, in the order in which they were written."""
    newest = _newest(out)
    for place, record in enumerate(_all_records(out)):
        if newest.get(number_of(record["key"])) == place:
            yield record


def records_of(manifest: Path, digests: Any) -> list[dict[str, Any]]:
    """The newest lines of a few tasks that one manifest has; no others are decoded.

    digests   of the tasks, n x 2 numbers
    """
    wanted = {each.tobytes().hex().encode() for each in digests}
    found: dict[str, dict[str, Any]] = {}
    if wanted and manifest.is_file():
        with manifest.open("rb") as file:
            for line in file:
                own = line.removeprefix(b'{"made_of": "')[:32] in wanted
                record = read_record(line) if own else None
                if record is not None and record["state"] == DONE:
                    found[record["made_of"]] = record
    return list(found.values())


def superseded(out: Path) -> set[str]:
    """Files of tasks that were made anew, from another row or workflow under the same key, and not again."""
    newest = _newest(out)
    old: set[str] = set()
    for place, record in enumerate(_all_records(out)):
        if newest.get(number_of(record["key"]), place) != place:
            old.update(record["files"])
    for record in records(out) if old else ():
        old.difference_update(record["files"])
    return old


def _newest(out: Path) -> dict[int, int]:
    """The place of the newest line of each key, by number, which takes less memory than by key."""
    return {number_of(record["key"]): place for place, record in enumerate(_all_records(out))}


def _all_records(out: Path) -> Iterator[dict[str, Any]]:
    for path in manifests(out):
        with path.open("rb") as file:
            for line in file:
                record = read_record(line)
                if record is not None and "packed" not in record:
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
