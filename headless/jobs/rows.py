"""The rows of a batch, one at a time: of JSON lines, CSV, TSV, text, parquet, or a folder of workflows."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..graph import brief
from ..inputs import InputError

KINDS = ("jsonl", "csv", "tsv", "text", "parquet", "folder")
ENDINGS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".txt": "text", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
LONGEST_CELL = 2**24  # characters
# Half the time of json.loads() for a line without spaces around it.
_decode = json.JSONDecoder().raw_decode
Wanted = Callable[[int], bool]


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

    def read(self, wanted: Wanted = lambda place: True) -> Iterator[Row]:
        """The rows; an InputError where there is no file, or none of this kind.

        wanted   asked with each row's place, from 0: one that is not wanted comes without values
        """
        readers: dict[str, Callable[[Wanted], Iterator[Row]]] = {
            "jsonl": self._json_lines, "text": self._text, "parquet": self._parquet, "folder": self._folder,
            "csv": lambda wanted: self._cells(",", wanted), "tsv": lambda wanted: self._cells("\t", wanted),
        }  # fmt: skip
        try:
            yield from readers[self.kind](wanted)
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

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and lines that hold something; lines end with \\n alone, as JSON lines have it."""
        file = self._open()
        first = file.readline().removeprefix(b"\xef\xbb\xbf").strip()
        if first:
            yield 1, first
        for number, line in enumerate(file, start=2):
            line = line.strip()
            if line:
                yield number, line

    def _json_lines(self, wanted: Wanted) -> Iterator[Row]:
        for place, (number, line) in enumerate(self._lines()):
            if not wanted(place):
                yield Row(number)
                continue
            try:
                text = line.decode()
                values, end = _decode(text)
                if end < len(text):
                    raise ValueError(f"more follows: {text[end:]:.80}")
            except UnicodeDecodeError:
                raise
            except (ValueError, RecursionError) as error:
                yield Row(number, problem=f"not JSON: {error}")
                continue
            if isinstance(values, dict):
                # By place: half the time, a million times.
                yield Row(number, values, "", None, True)
            else:
                expected = 'expected {"NODE.INPUT": value}'
                yield Row(number, problem=f"{expected}, got {line.decode():.80}")

    def _text(self, wanted: Wanted) -> Iterator[Row]:
        for place, (number, line) in enumerate(self._lines()):
            yield Row(number, {"prompt": line.decode()} if wanted(place) else {})

    def _cells(self, delimiter: str, wanted: Wanted) -> Iterator[Row]:
        csv.field_size_limit(LONGEST_CELL)
        text = io.TextIOWrapper(self._open(), "utf-8-sig", newline="")
        try:
            reader = csv.reader(text, delimiter=delimiter)
            columns = self._columns(next(reader, []))
            if len(columns) == 1 and ";" in columns[0]:
                raise InputError(
                    f"{self.path}: expected commas between the columns, got {brief(columns[0])}"
                )
            place = -1
            while True:
                problem = ""
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    cells, problem = [""], str(error)
                if not cells:
                    continue
                place += 1
                if len(cells) > len(columns):
                    problem = (
                        f"expected {len(columns)} cells, as there are columns, got {len(cells)}"
                    )
                if problem or not wanted(place):
                    yield Row(reader.line_num, problem=problem)
                    continue
                given = zip(columns, cells, strict=False)
                yield Row(reader.line_num, {column: cell or None for column, cell in given})
        finally:
            if self.copy is not None:
                text.detach()

    def _columns(self, names: list[str]) -> list[str]:
        if not names or "" in names or len(set(names)) < len(names):
            raise InputError(
                f"{self.path}: expected a first line of column names, each once, got {brief(names)}"
            )
        return names

    def _parquet(self, wanted: Wanted) -> Iterator[Row]:
        try:
            import pyarrow.parquet as parquet
            from pyarrow import ArrowException
        except ImportError as error:
            raise InputError(
                f"{self.path}: parquet needs pyarrow: pip install 'imagen-nodes[scale]'"
            ) from error
        place = 0
        try:
            with self._open() as file:
                table = parquet.ParquetFile(file)
                self._columns([str(name) for name in table.schema_arrow.names])
                for part in table.iter_batches(batch_size=1024):
                    asked = [wanted(place + i) for i in range(len(part))]
                    found = part.to_pylist() if any(asked) else [{}] * len(part)
                    for values, needed in zip(found, asked, strict=True):
                        place += 1
                        yield Row(place, plain(values) if needed else {})
        except (ArrowException, ValueError) as error:
            raise InputError(f"{self.path}: not a readable parquet file: {error}") from error

    def _folder(self, wanted: Wanted) -> Iterator[Row]:
        files = [p for p in self.path.iterdir() if p.suffix.lower() in (".json", ".png")]
        if not files:
            raise InputError(
                f"{self.path}: expected a folder of workflows, .json or .png, got none"
            )
        for number, file in enumerate(sorted(files), start=1):
            yield Row(number, {"id": file.stem}, workflow=file)


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
