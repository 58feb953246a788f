"""The rows of a batch, some at a time: of JSON lines, CSV, TSV, text, parquet, or a folder of workflows."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..graph import brief
from ..inputs import InputError
from .lines import all_decoded, decode

KINDS = ("jsonl", "csv", "tsv", "text", "parquet", "folder")
ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".txt": "text", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
LONGEST_CELL = 2**24  # characters
BLOCK, MANY = 2**14, 256  # bytes of lines, or rows of a table, that are read at once
Wanted = Callable[[int, int], bool]


class Row(NamedTuple):
    """One row.

    number     from 1, of the file: its line, or where lines do not count, its place
    values     by column
    problem    why it cannot be read; "" = nothing
    workflow   a file to run in place of the batch's own
    has_null   None is a value, as JSON has it, not a cell without one
    """

    number: int
    values: dict[str, Any] = {}
    problem: str = ""
    workflow: Path | None = None
    has_null: bool = False


Lines = list[tuple[int, bytes]]  # each with its number
Blocks = Iterator[tuple[int, Callable[[], list[Row]]]]  # how many rows, and what makes them


class Rows:
    """The rows of a file, a folder or a stream, to be read several times.

    path   "-" is standard input
    kind   one of KINDS; None = by the name's ending, of standard input by its first character
    """

    def __init__(self, path: Path, kind: str | None = None):
        self.path, self.copy = path, None
        if str(path) == "-":
            self.copy = spooled(sys.stdin.buffer)
            kind = kind or ("jsonl" if first_character(self.copy) in b"{[" else "text")
        elif kind is None:
            kind = "folder" if path.is_dir() else ENDINGS.get(path.suffix.lower())
        if kind is None:
            raise InputError(
                f"{path}: expected a name that ends in {', '.join(ENDINGS)}, or a folder of workflows; "
                f"say what it is with --rows {'|'.join(KINDS[:-1])}"
            )
        self.kind = kind

    def read(self) -> Iterator[Row]:
        """The rows one by one; errors as `blocks`."""
        for _, rows in self.blocks():
            yield from rows

    def blocks(self, wanted: Wanted = lambda first, end: True) -> Iterator[tuple[int, list[Row]]]:
        """The rows, some at a time, and the place of the first; an InputError where there is no such file.

        wanted   asked, for rows of places from 0, whether one of them is; if not, they are left out
        """
        readers: dict[str, Callable[[], Blocks]] = {
            "jsonl": lambda: self._lines(json_rows), "text": lambda: self._lines(text_rows),
            "csv": lambda: self._cells(","), "tsv": lambda: self._cells("\t"),
            "parquet": self._parquet, "folder": self._folder,
        }  # fmt: skip
        first = 0
        try:
            for count, rows in readers[self.kind]():
                if wanted(first, first + count):
                    yield first, rows()
                first += count
        except OSError as error:
            raise InputError(f"{self.path}: not a readable file: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: expected text in UTF-8, got {error}; save it as UTF-8"
            ) from error

    def _open(self) -> BinaryIO:
        if self.copy is not None:
            self.copy.seek(0)
            return self.copy
        return self.path.open("rb")

    def _lines(self, rows: Callable[[Lines], list[Row]]) -> Blocks:
        """Lines that hold something; they end with \\n alone, as JSON lines have it."""
        file, number = self._open(), 1
        while lines := file.readlines(BLOCK):
            if number == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            stripped = enumerate(map(bytes.strip, lines), start=number)
            found = [(each, line) for each, line in stripped if line]
            number += len(lines)
            if found:
                yield len(found), partial(rows, found)

    def _cells(self, delimiter: str) -> Blocks:
        csv.field_size_limit(LONGEST_CELL)
        text = io.TextIOWrapper(self._open(), "utf-8-sig", newline="")
        try:
            reader = csv.reader(text, delimiter=delimiter)
            columns = self._columns(next(reader, []))
            if len(columns) == 1 and ";" in columns[0]:
                raise InputError(
                    f"{self.path}: expected commas between the columns, got {brief(columns[0])}"
                )
            found, size = [], 0
            for each in numbered_cells(reader):
                found.append(each)
                size += 1 + sum(map(len, each[1]))
                if size >= BLOCK:
                    yield len(found), partial(cell_rows, columns, found)
                    found, size = [], 0
            if found:
                yield len(found), partial(cell_rows, columns, found)
        finally:
            if self.copy is not None:
                text.detach()

    def _columns(self, names: list[str]) -> list[str]:
        if not names or "" in names or len(set(names)) < len(names):
            raise InputError(
                f"{self.path}: expected a first line of column names, each once, got {brief(names)}"
            )
        return names

    def _parquet(self) -> Blocks:
        try:
            import pyarrow.parquet as parquet
            from pyarrow import ArrowException
        except ImportError as error:
            raise InputError(
                f"{self.path}: parquet needs pyarrow: pip install 'imagen-nodes[scale]'"
            ) from error
        number = 1

        @contextmanager
        def readable() -> Iterator[None]:
            try:
                yield
            except InputError:
                raise
            except (ArrowException, ValueError) as error:
                text = f"{self.path}: not a readable parquet file: {error}"
                raise InputError(text) from error

        with readable(), self._open() as file:
            table = parquet.ParquetFile(file)
            self._columns([str(name) for name in table.schema_arrow.names])
            for part in table.iter_batches(batch_size=MANY):
                yield len(part), readable()(partial(table_rows, part, number))
                number += len(part)

    def _folder(self) -> Blocks:
        files = [p for p in self.path.iterdir() if p.suffix.lower() in (".json", ".png")]
        if not files:
            raise InputError(
                f"{self.path}: expected a folder of workflows, .json or .png, got none"
            )
        files.sort()
        yield (
            len(files),
            lambda: [
                Row(n, {"id": file.stem}, workflow=file) for n, file in enumerate(files, start=1)
            ],
        )


def json_rows(lines: Lines) -> list[Row]:
    """The rows of numbered JSON lines: decoded at once where each is an object, else one by one."""
    values = all_decoded([line for _, line in lines])
    if values is None:
        return [json_row(number, line) for number, line in lines]
    # By place: half the time, a million times.
    return [Row(number, v, "", None, True) for (number, _), v in zip(lines, values, strict=True)]


def json_row(number: int, line: bytes) -> Row:
    """The row of a JSON line."""
    text = line.decode()
    try:
        values, end = decode(text)
        if end < len(text):
            raise ValueError(f"more follows: {text[end:]:.80}")
    except (ValueError, RecursionError) as error:
        return Row(number, problem=f"not JSON: {error}")
    if isinstance(values, dict):
        return Row(number, values, has_null=True)
    return Row(number, problem=f'expected {{"NODE.INPUT": value}}, got {text:.80}')


def text_rows(lines: Lines) -> list[Row]:
    """The rows of numbered prompts."""
    return [Row(number, {"prompt": line.decode()}) for number, line in lines]


def numbered_cells(reader: Any) -> Iterator[tuple[int, list[str], str]]:
    """The rows of a CSV reader that hold something: line, cells, and why it cannot be read."""
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, [], str(error)
            continue
        if cells:
            yield reader.line_num, cells, ""


def cell_rows(columns: list[str], found: list[tuple[int, list[str], str]]) -> list[Row]:
    """The rows of numbered cells, of which an empty one is None."""
    rows = []
    for number, cells, problem in found:
        if len(cells) > len(columns):
            problem = f"expected {len(columns)} cells, as there are columns, got {len(cells)}"
        given = (
            {} if problem else {c: cell or None for c, cell in zip(columns, cells, strict=False)}
        )
        rows.append(Row(number, given, problem))
    return rows


def table_rows(part: Any, number: int) -> list[Row]:
    """The rows of a part of a parquet table.

    number   of the first
    """
    return [Row(n, plain(values)) for n, values in enumerate(part.to_pylist(), start=number)]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Cells as JSON has them; what it does not have, such as dates, as text.

    values   by column
    """

    def one(value: Any) -> Any:
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        if isinstance(value, (list, tuple)):
            return [one(each) for each in value]
        if isinstance(value, dict):
            return {str(key): one(each) for key, each in value.items()}
        return str(value)

    return {column: one(value) for column, value in values.items()}


def spooled(stream: BinaryIO) -> BinaryIO:
    """A stream's bytes where they can be read again."""
    copy: Any = tempfile.TemporaryFile()  # noqa: SIM115 - kept open as long as the rows are read
    shutil.copyfileobj(stream, copy)
    return copy


def first_character(file: BinaryIO) -> bytes:
    """The first byte of a file that is no space; empty where there is none."""
    file.seek(0)
    return file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
