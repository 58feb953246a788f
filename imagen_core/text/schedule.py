"""Prompts that change while an image is sampled, `[from:to:0.4]`, as AUTOMATIC1111 reads them.

`[word:0.4]` appears after 40 % of the steps, and `[word::0.4]` is gone from then on. Brackets may be nested.
Without a number at their end, after a backslash or without a partner they are ordinary characters.
"""

import re
from typing import NamedTuple

from .brackets import pairs

NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
ESCAPED = re.compile(r"\\([\[\]])")
MOST_TEXTS = 100


class Change(NamedTuple):
    """What one pair of brackets says.

    when            part of the steps before it
    before, after   spans of the prompt that are left out until then, and from then on
    """

    when: float
    before: list[tuple[int, int]]
    after: list[tuple[int, int]]


def scheduled(prompt: str) -> list[tuple[float, str]]:
    """The texts of a prompt, and from which part of the steps on each is read: 0, then rising, below 1.

    ValueError where a change lies outside the steps, or texts are more than MOST_TEXTS.
    """
    changes = _changes(prompt)
    starts = sorted({0.0} | {change.when for change in changes if change.when < 1})
    if len(starts) > MOST_TEXTS:
        raise ValueError(
            f"prompt: expected up to {MOST_TEXTS} texts in [from:to:0.4], got {len(starts)}"
        )
    texts = [(start, _text_at(prompt, changes, start)) for start in starts]
    return [text for i, text in enumerate(texts) if i == 0 or text[1] != texts[i - 1][1]]


def _changes(prompt: str) -> list[Change]:
    square = pairs(prompt, "[]")
    colons = _colons(prompt, square) if square else {}
    found: list[Change] = []
    for start, end in square.items():
        own = colons[start]
        number = NUMBER.fullmatch(prompt, own[-1] + 1, end) if own else None
        if number is None or len(own) > 2:
            continue
        when = float(number[1])
        if not 0 <= when <= 1:
            raise ValueError(
                f"prompt: expected {prompt[start : end + 1][:40]!r} to end with a part of the steps from 0 "
                rf"to 1, such as 0.4 for 40 %, got {number[1]}; write \[ for a bracket itself"
            )
        opening, closing = (start, start + 1), (own[-1], end + 1)
        if len(own) == 1:  # [to:0.4]
            found.append(Change(when, [(start, end + 1)], [opening, closing]))
        else:
            before = [opening, (own[0], end + 1)]
            found.append(Change(when, before, [(start, own[0] + 1), closing]))
    return found


def _colons(prompt: str, square: dict[int, int]) -> dict[int, list[int]]:
    """The colons of each pair of square brackets that lie in no other pair inside it, round or square.

    square   where pairs open and close
    """
    closing = {**square, **pairs(prompt, "()")}
    found: dict[int, list[int]] = {start: [] for start in square}
    around: list[int] = []
    for match in re.finditer(r"[\[\]():]", prompt):
        at = match.start()
        while around and closing[around[-1]] <= at:
            around.pop()
        if at in closing:
            around.append(at)
        elif match[0] == ":" and around and around[-1] in square:
            found[around[-1]].append(at)
    return found


def _text_at(prompt: str, changes: list[Change], at: float) -> str:
    """What is left of a prompt at a part of the steps."""
    spans = sorted(
        span
        for change in changes
        for span in (change.after if change.when <= at else change.before)
    )
    kept, reached = [], 0
    for first, last in spans:
        kept.append(prompt[reached:first])
        reached = max(reached, last)
    return ESCAPED.sub(r"\1", "".join([*kept, prompt[reached:]]))
