"""What the frontend does to texts while it queues a workflow: choices in prompts, names in file names.

A prompt loses its comments, and of {a|b} takes one; %Node.widget% and %date:…% in the name of a file that
is saved are filled in. Neither happens to the value of a subgraph's promoted widget, nor to API format.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .registry import Registry, declared_inputs
from .ui_scope import Scope
from .widgets import UnknownOrder, widget_values

COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
ESCAPED = re.compile(r"\\([{}|])")
SPECIAL = re.compile(r"[{}|]")
NAMED = re.compile("%([^%]+)%")
DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
NOT_IN_FILE_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
SAVERS = {
    *("SaveImage", "SaveImageAdvanced", "SaveSVGNode", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM"),
    *("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "SaveAnimatedPNG"),
    *("SaveGLB", "Save3DAdvanced", "SaveGaussianSplat", "SavePointCloud"),
    *("CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent"),
}
"""Node types in whose `filename_prefix` names are filled in."""


@dataclass
class Moment:
    """What texts take from the moment in which a workflow is queued.

    chance   draws the choices of prompts
    now      local time, for file names
    """

    chance: random.Random
    now: datetime = field(default_factory=datetime.now)


@dataclass
class QueuedTexts:
    """How one workflow's texts are changed.

    root       its scope
    registry   node classes
    moment     in which it is queued
    """

    root: Scope
    registry: Registry
    moment: Moment

    def of(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        """A node's widget values, by name, with its prompts and its file name as they are queued.

        kind     its type
        values   as they stand in the file
        """
        cls, changed = self.registry.get(kind), dict(values)
        for name, (_, options, _) in (declared_inputs(cls) if cls else {}).items():
            if options.get("dynamicPrompts") and isinstance(values.get(name), str):
                changed[name] = choose(values[name], self.moment.chance)
        prefix = values.get("filename_prefix")
        if kind in SAVERS and isinstance(prefix, str):
            changed["filename_prefix"] = NAMED.sub(self._fill_in, prefix)
        return changed

    def _fill_in(self, found: re.Match[str]) -> str:
        parts = found[1].split(".")
        if len(parts) != 2:
            date = parts[0].startswith("date:")
            return (
                format_date(parts[0].removeprefix("date:"), self.moment.now) if date else found[0]
            )
        value = self._widget(*parts)
        return found[0] if value is None else NOT_IN_FILE_NAMES.sub("_", value)

    def _widget(self, called: str, name: str) -> str | None:
        """The value of a widget of the first node of that type, else of that title; None = there is none."""
        for key in (lambda node: node.get("properties", {}).get("Node name for S&R"), _title):
            node = next((node for node in nodes_within(self.root) if key(node) == called), None)
            if node is not None:
                try:
                    values = widget_values(node, self.registry.get(node["type"]))
                except UnknownOrder:
                    values = {}
                return written(values[name]) if name in values else None
        return None


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


def format_date(pattern: str, now: datetime) -> str:
    """A moment, written as a pattern says: d, M, h, m, s alone or doubled, yy, yyyy.

    pattern   other characters stay
    now       local time
    """
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(found: re.Match[str]) -> str:
        letters = found[0]
        if letters[0] in numbers:
            return str(numbers[letters[0]]).zfill(len(letters))
        return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(letters, letters)

    return DATE_PART.sub(part, pattern)


def nodes_within(scope: Scope) -> Iterator[dict[str, Any]]:
    """All nodes in the frontend's order: what is in a subgraph comes before its instance.

    scope   the root, or an instance
    """
    for node_id, node in scope.nodes.items():
        if node_id in scope.children:
            yield from nodes_within(scope.children[node_id])
        yield node


def written(value: Any) -> str:
    """A value as JavaScript writes it.

    value   of a widget
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _title(node: dict[str, Any]) -> str:
    return node.get("title") or node["type"]
