"""Calls of a sampling node evaluated together: those that differ in prompt, seed and picture alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = ("image", "original", "mask")
MOST = 256  # pictures of one call, as ComfyUI's batches have them

Call = dict[str, Any]


def call_together(
    function: Callable[..., tuple[Tensor]], calls: list[Call], at_once: Callable[[Call, int], int]
) -> list[tuple[Tensor]]:
    """What each call of a sampling node returns; calls that fit together are evaluated together.

    function   the node's method
    calls      keyword arguments
    at_once    (a call, pictures of all) -> how many of them memory holds
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    groups: dict[Any, list[int]] = {}
    filled = [{**defaults, **call} for call in calls]
    for place, call in enumerate(filled):
        groups.setdefault(likeness(call), []).append(place)
    found: dict[int, tuple[Tensor]] = {}
    for places in groups.values():
        own = [filled[place] for place in places]
        limit = min(MOST, at_once(own[0], sum(map(pictures_of, own))))
        for part in parts(places, [pictures_of(call) for call in own], limit):
            counts = [pictures_of(filled[place]) for place in part]
            (made,) = function(**merged([filled[place] for place in part], counts))
            found |= zip(part, [(rows,) for rows in made.split(counts)], strict=True)
    return [found[place] for place in range(len(calls))]


def pictures_of(call: Call) -> int:
    """How many pictures a call makes."""
    image = call.get("image")
    return int(call["batch_size"]) if image is None else len(image)


def likeness(call: Call) -> Any:
    """What calls have in common that can be evaluated together."""
    found: list[Any] = [("text", call["text"].form)]
    for name, value in sorted(call.items()):
        if name in PICTURES:
            found.append((name, None if value is None else (tuple(value.shape[1:]), value.dtype)))
        elif name not in ("text", "seed", "batch_size"):
            found.append((name, value if value.__hash__ else id(value)))
    return tuple(found)


def parts(places: list[int], counts: list[int], limit: int) -> Iterator[list[int]]:
    """Calls in parts of at most `limit` pictures; a call that makes more stands alone.

    counts   pictures of each call
    """
    part: list[int] = []
    pictures = 0
    for place, count in zip(places, counts, strict=True):
        if part and pictures + count > limit:
            yield part
            part, pictures = [], 0
        part.append(place)
        pictures += count
    yield part


def merged(calls: list[Call], counts: list[int]) -> Call:
    """One call that makes the pictures of several, each with its own seed.

    counts   pictures of each call
    """
    import torch

    from ..imagen_core import EncodedPrompt

    if len(calls) == 1:
        return calls[0]
    seeds = [
        (call["seed"] + i) % 2**64
        for call, count in zip(calls, counts, strict=True)
        for i in range(count)
    ]
    texts = [call["text"] for call in calls]
    changed: Call = {"text": EncodedPrompt.cat(texts, counts), "seed": seeds}
    if "batch_size" in calls[0]:
        changed["batch_size"] = sum(counts)
    for name in PICTURES:
        if calls[0].get(name) is not None:
            rows = zip(calls, counts, strict=True)
            changed[name] = torch.cat([
                call[name].expand(count, *call[name].shape[1:]) for call, count in rows
            ])  # fmt: skip
    return {**calls[0], **changed}


def seeds_of(seed: int | list[int], rows: slice) -> int | list[int]:
    """The seeds of some pictures of a call.

    seed   of the first picture, or one for each
    """
    return seed[rows] if isinstance(seed, list) else (seed + rows.start) % 2**64
