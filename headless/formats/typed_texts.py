"""What the frontend does to texts while it queues a workflow: choices in prompts, names in file names.

A prompt loses its comments, and of {a|b} takes one; %Node.widget% and %date:…% in the name of a file that
is saved are filled in.
"""

import random
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
ESCAPED = re.compile(r"\\([{}|])")
SPECIAL = re.compile(r"[{}|]")
NAMED = re.compile("%([^%]+)%")
DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
NOT_IN_FILE_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def choose(text: str, chance: random.Random) -> str:
    r"""A prompt without its comments, one of each {a|b} taken, and \{, \| and \} made plain.

    text     choices may be nested; an open { reaches to the end
    chance   draws the choices
    """
    text, parts, position = COMMENT.sub("", text), [], 0
    while position < len(text):
        if text[position] == "{":
            choices, position = read_choices(text, position + 1)
            parts.append(choose(chance.choice(choices), chance))
        else:
            parts.append(character_at(text, position))
            position += len(parts[-1])
    return ESCAPED.sub(r"\1", "".join(parts))


def kept(text: str) -> str:
    """A prompt that `choose` makes this text of, where there is one: comments cannot be kept.

    text   to be read as it stands
    """
    return SPECIAL.sub(r"\\\g<0>", text)


def read_choices(text: str, position: int) -> tuple[list[str], int]:
    """What stands between the | of one pair of braces, and the position after it.

    text       of the prompt
    position   after the {
    """
    choices, depth = [""], 0
    while position < len(text):
        character = character_at(text, position)
        position += len(character)
        if character == "}" and depth == 0:
            break
        if character == "|" and depth == 0:
            choices.append("")
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        choices[-1] += character
    return choices, position


def character_at(text: str, position: int) -> str:
    """A character, with the one after it where it is a backslash.

    text, position   where it stands
    """
    return text[position : position + (2 if text[position] == "\\" else 1)]


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
