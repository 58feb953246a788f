"""Timesteps of a discrete-time model: which of its 1000 steps a sampling run visits.

DeepFloyd IF's presets, plain numbers, diffusers' "leading" grids, and explicit lists. Improved DDPM,
arXiv:2102.09672, section 4 (strided sampling).
"""

import operator
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

Spacing = int | str | Sequence[int]

SECTIONS: dict[str, tuple[int, ...]] = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}
"""Steps in each of as many equal sections of the 1000, the section next to the image first."""


def whole(name: str, value: Any) -> int:
    """A whole number of any library as an int; ValueError where it is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {value!r}") from None


def number(name: str, value: Any) -> float:
    """A number of any library as Python's; ValueError where it is none, such as a text or None."""
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value.__float__())
    except (AttributeError, TypeError, ValueError, RuntimeError):  # as tensors of two raise
        raise ValueError(f"{name}: expected a number, got {value!r}") from None


def wholes(name: str, value: Any) -> int | tuple[int, ...]:
    """A whole number, or a list of some, as ints."""
    if isinstance(value, (list, tuple)):
        return tuple(whole(name, each) for each in value)
    return whole(name, value)


def plain(steps: Any) -> Spacing:
    """Steps in Python's own numbers; ValueError where they are none.

    steps   a number, a preset or timesteps, perhaps of numpy
    """
    if isinstance(steps, str):
        return steps
    if isinstance(steps, Iterable) and getattr(steps, "ndim", 1) == 1:
        return [whole("timesteps", step) for step in steps]
    return whole("steps", steps)


def timesteps(spacing: Spacing, count: int = 1000) -> list[int]:
    """The timesteps of a run, decreasing.

    spacing   a number of steps (spread from 0 to the last); a preset's name; "leading50" for
              diffusers' grid; "ddim50" for the longest even stride; "10,10,0" for steps a section; or
              the timesteps themselves, as numbers or as "[999, 500, 0]"
    count     timesteps of the model
    """
    if isinstance(spacing, int):
        return respace((spacing,), count)
    if not isinstance(spacing, str):
        return explicit(spacing, count)
    spacing = spacing.strip()
    if spacing in SECTIONS:
        return respace(SECTIONS[spacing], count)
    for name, grid in (("leading", leading), ("ddim", strided)):
        if spacing.startswith(name) and spacing.removeprefix(name).isdigit():
            return grid(int(spacing.removeprefix(name)), count)
    listed = spacing.startswith("[") and spacing.endswith("]")
    parts = [part.strip() for part in spacing.strip("[]").split(",")]
    if all(part.isdigit() for part in parts):
        numbers = [int(part) for part in parts]
        return explicit(numbers, count) if listed else respace(numbers, count)
    raise ValueError(
        f"timesteps: expected a number, one of {', '.join(SECTIONS)}, leadingN, ddimN, steps a section "
        f"such as 10,10,0, or timesteps such as [999, 500, 0], got {spacing!r}"
    )


def respace(sections: Sequence[int], count: int) -> list[int]:
    """Evenly spaced, rounded timesteps in each of equal sections, decreasing.

    sections   steps of each section, the one next to the image first; 0 skips a section
    count      timesteps of the model
    """
    size, longer = divmod(count, len(sections))
    chosen, start = [], 0
    for i, steps in enumerate(sections):
        length = size + (i < longer)
        if steps > length:
            raise ValueError(f"steps: a section of {length} timesteps cannot give {steps}")
        stride = (length - 1) / (steps - 1) if steps > 1 else 0.0
        # Summed up, not multiplied: the published lists carry the rounding of the sum.
        positions = accumulate([0.0] + [stride] * (steps - 1)) if steps else ()
        chosen += [start + round(position) for position in positions]
        start += length
    if not chosen:
        raise ValueError("steps must be at least 1, got 0")
    return sorted(set(chosen), reverse=True)


def leading(steps: int, count: int) -> list[int]:
    """diffusers' default grid: multiples of count // steps, decreasing to 0.

    count   timesteps of the model
    """
    if not 1 <= steps <= count:
        raise ValueError(f"steps must be from 1 to {count}, got {steps}")
    return [k * (count // steps) for k in reversed(range(steps))]


def strided(steps: int, count: int) -> list[int]:
    """DDIM's grid: multiples of the smallest whole stride that gives so many, decreasing to 0.

    steps   number of steps; not every number has such a stride
    count   timesteps of the model
    """
    for stride in range(1, count):
        found = range(0, count, stride)
        if len(found) == steps:
            return list(reversed(found))
    raise ValueError(f"timesteps: no whole stride through {count} gives {steps} steps")


def explicit(chosen: Sequence[int], count: int) -> list[int]:
    """The timesteps as given, checked.

    chosen   decreasing, each from 0 to count - 1
    count    timesteps of the model
    """
    chosen = list(chosen)
    falls = all(a > b for a, b in zip(chosen, chosen[1:], strict=False))
    if not chosen or not falls or not 0 <= chosen[-1] <= chosen[0] < count:
        raise ValueError(
            f"timesteps must be strictly decreasing, each from 0 to {count - 1}, got {chosen}"
        )
    return chosen
