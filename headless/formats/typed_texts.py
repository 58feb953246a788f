"""What the frontend does to texts while it queues a workflow: choices in prompts, names in file names.

A prompt loses its comments, and of {a|b} takes one; %Node.widget% and %date:…% in the name of a file that
is saved are filled in.
"""

import random
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

COMMENT = re.compile(r"//[^\n\r\u2028\u2029]*|/\*")
TOKEN = re.compile(r"\\.?|[{}|]|[^\\{}|]+", re.DOTALL)
SPECIAL = re.compile(r"[{}|]")
NAMED = re.compile("%([^%]+)%")
DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
NOT_IN_FILE_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def choose(text: str, chance: random.Random) -> str:
    r"""A prompt without its comments, one of each {a|b} taken, and \{, \| and \} made plain.

    text     choices may be nested; an open { reaches to the end
    chance   draws the choices

    The time grows with the length alone, whatever is nested.
    """
    tokens = TOKEN.findall(without_comments(text))
    blocks = read_blocks(tokens)
    written, around = Unescaped(), []
    position, end = 0, len(tokens)
    while True:
        while position < end:
            token = tokens[position]
            if token == "{":
                options, after = blocks[position]
                around.append((after, end))
                written.open()
                position, end = chance.choice(options)
                continue
            written.add(token)
            position += 1
        if not around:
            return written.text()
        position, end = around.pop()
        written.close()


def without_comments(text: str) -> str:
    """A prompt without // to the end of the line, and without /* to */.

    text   a /* that is not closed stays
    """
    parts, position, last = [], 0, text.rfind("*/")
    while found := COMMENT.search(text, position):
        start, end = found.span()
        if found[0] == "/*":
            if last < end:
                end = start + 1
                parts.append(text[position:end])
                position = end
                continue
            end = text.index("*/", end) + 2
        parts.append(text[position:start])
        position = end
    return "".join([*parts, text[position:]])


def read_blocks(tokens: list[str]) -> dict[int, tuple[list[tuple[int, int]], int]]:
    """Of each { its choices, as spans of tokens, and the place after its }.

    tokens   of a prompt
    """
    blocks: dict[int, tuple[list[tuple[int, int]], int]] = {}
    open_ones: list[tuple[int, list[int]]] = []  # the place of the {, where its choices begin

    def close(end: int) -> None:
        place, starts = open_ones.pop()
        ends = [start - 1 for start in starts[1:]] + [end]
        blocks[place] = list(zip(starts, ends, strict=True)), min(end + 1, len(tokens))

    for place, token in enumerate(tokens):
        if token == "{":
            open_ones.append((place, [place + 1]))
        elif token == "|" and open_ones:
            open_ones[-1][1].append(place + 1)
        elif token == "}" and open_ones:
            close(place)
    while open_ones:
        close(len(tokens))
    return blocks


class Unescaped:
    """A text as it grows: a backslash goes from before {, | and }, once for each choice around both."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.starts = [0]  # of the text, and of the choices that are open, in parts

    def open(self) -> None:
        """A choice begins."""
        self.starts.append(len(self.parts))

    def close(self) -> None:
        """The choice that began last ends."""
        self.starts.pop()

    def add(self, token: str) -> None:
        """Go on with a token: a backslash and what it stands before, {, } or |, or plain text."""
        if token[0] == "\\":
            self.parts.append("\\")
            token = token[1:]
        if token in ("{", "}", "|"):
            self._unescape()
        if token:
            self.parts.append(token)

    def _unescape(self) -> None:
        level = len(self.starts) - 1
        while level >= 0 and self.parts and self.parts[-1] == "\\":
            if len(self.parts) > self.starts[level]:
                self.parts.pop()
            level -= 1
        for inner in range(len(self.starts) - 1, level, -1):
            if self.starts[inner] <= len(self.parts):
                break
            self.starts[inner] = len(self.parts)

    def text(self) -> str:
        """What was written."""
        return "".join(self.parts)


def kept(text: str) -> str:
    """A prompt that `choose` makes this text of, where there is one: comments cannot be kept.

    text   to be read as it stands
    """
    return SPECIAL.sub(r"\\\g<0>", text)


def fill_in(name: str, widget: Callable[[str, str], Any], now: datetime) -> str:
    """The beginning of a file's name with its %Node.widget% and %date:…% filled in; others stay.

    widget   (node, widget) -> value, or None where there is none
    """

    def part(found: re.Match[str]) -> str:
        parts = found[1].split(".")
        if len(parts) != 2:
            date = parts[0].startswith("date:")
            return format_date(parts[0].removeprefix("date:"), now) if date else found[0]
        value = widget(*parts)
        return found[0] if value is None else NOT_IN_FILE_NAMES.sub("_", written(value))

    return NAMED.sub(part, name)


def format_date(pattern: str, now: datetime) -> str:
    """A moment, written as a pattern says: d, M, h, m, s alone or doubled, yy, yyyy.

    pattern   other characters stay
    """
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(found: re.Match[str]) -> str:
        letters = found[0]
        if letters[0] in numbers:
            return str(numbers[letters[0]]).zfill(len(letters))
        return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(letters, letters)

    return DATE_PART.sub(part, pattern)


def written(value: Any) -> str:
    """A value as JavaScript writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
