"""Weights in prompts, `(word:1.2)`, read and applied as ComfyUI's own text encoders do; and parts, `BREAK`.

Brackets may be nested: a pair multiplies the weight by 1.1, and one that ends in a number sets it. A bracket
after a backslash, or without a partner, is an ordinary character.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .brackets import pairs

STRONGER, MOST = 1.1, 100.0
NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*$", re.IGNORECASE)
LONGEST_NUMBER = 24  # characters, its colon and blanks counted
ESCAPED = re.compile(r"\\([()])")
BREAK = re.compile(r"\s*\bBREAK\b\s*")


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """The texts between a prompt's brackets and their weights, in order; the empty prompt has one part.

    ValueError where a weight is over MOST.
    """
    closing = pairs(prompt, "()")
    ends = set(closing.values())
    numbers = {end: _number(prompt, start, end) for start, end in closing.items()}
    parts: list[tuple[str, float]] = []
    weights, first = [1.0], 0
    for at in [*sorted([*closing, *ends]), len(prompt)]:
        number = numbers.get(at)
        text = prompt[first : at if number is None else number.start()]
        if text:
            parts.append((ESCAPED.sub(r"\1", text), weights[-1]))
        if at in closing:
            number = numbers[closing[at]]
            weights.append(weights[-1] * STRONGER if number is None else float(number[1]))
        elif at in ends:
            weights.pop()
        first = at + 1
    for text, weight in parts:
        if abs(weight) > MOST:
            raise ValueError(
                f"prompt: expected weights of -{MOST:g} to {MOST:g}, got {weight:g} for {text[:40]!r}"
            )
    return parts or [("", 1.0)]


def chunks_of(prompt: str) -> list[list[tuple[str, float]]]:
    """The weighted parts of each text that is encoded by itself: `BREAK` stands between two of them.

    prompt   with its capitals; a pair of brackets may hold `BREAK`, as AUTOMATIC1111 has it
    """
    chunks: list[list[tuple[str, float]]] = [[]]
    for text, weight in weighted_parts(prompt):
        first, *others = BREAK.split(text)
        chunks[-1].append((first, weight))
        chunks += [[(other, weight)] for other in others]
    return [[part for part in chunk if part[0]] or [("", 1.0)] for chunk in chunks]


def _number(prompt: str, start: int, end: int) -> re.Match[str] | None:
    """The weight at the end of a bracket's text; not where there is nothing before it."""
    return NUMBER.search(prompt, max(start + 2, end - LONGEST_NUMBER), end)


def apply_weights(states: Tensor, empty: Tensor, weights: Sequence[float]) -> Tensor:
    """States of a prompt, each led away from the empty prompt's by its token's weight: n d.

    states    n d
    empty     n d, of the empty prompt
    weights   one a token, at most n; 1 changes nothing, the bits neither
    """
    factors = torch.ones(len(states), 1)
    factors[: len(weights), 0] = torch.tensor(weights)
    return torch.where(factors == 1, states, torch.lerp(empty, states, factors))
