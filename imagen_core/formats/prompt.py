"""Encoded prompts on disk: T5 runs once, sampling often, and on machines where T5 does not fit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..text.embedding import TextEmbedding
from ..text.prompt import PARTS, EncodedPrompt
from ..weights.errors import CheckpointError
from ..weights.files import open_tensors, write_tensors

KIND = "imagen text"
LONGER = "imagen text over steps or regions"  # which versions before it refuse
MOST_NESTED = 8  # regions in regions

Tensors = dict[str, Tensor]


def save_text(path: str | Path, text: EncodedPrompt) -> None:
    """Write an encoded prompt as safetensors; the file appears whole or not at all.

    path   of the file
    text   with its null text, what may be mixed in, what follows over the steps, and its regions
    """
    tensors: Tensors = {}
    about = _put(text, tensors, "")
    kind = LONGER if about.keys() - {"mixer"} else KIND
    write_tensors(Path(path), tensors, {"imagen": json.dumps({"kind": kind, **about})})


def _put(text: EncodedPrompt, tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Add a prompt's tensors under a prefix; what the file says beside them."""
    about: dict[str, Any] = {"mixer": text.mixer}
    later: dict[str, list[float]] = {}
    for name in PARTS:
        part = getattr(text, name)
        if part is None:
            continue
        for i, states in enumerate([part, *(states for _, states in part.later)]):
            key = f"{prefix}{name}.{i}" if i else prefix + name
            # Copies: null text and prompt may share memory, which safetensors refuses.
            tensors |= {f"{key}.embeds": states.embeds.clone(), f"{key}.mask": states.mask.clone()}
        if part.later:
            later[name] = part.starts
    regions: list[dict[str, Any]] = []
    for i, region in enumerate(text.regions):
        tensors[f"{prefix}region.{i}.where"] = region.mask.clone()
        regions.append(_put(region.prompt, tensors, f"{prefix}region.{i}."))
    return about | ({"later": later} if later else {}) | ({"regions": regions} if regions else {})


def load_text(path: str | Path) -> EncodedPrompt:
    """The encoded prompt that `save_text` wrote; CheckpointError where the file holds something else.

    path   of the file
    """
    path = Path(path)
    with open_tensors(path) as file:
        # Copies: a mapped file cannot be replaced on Windows, and changes under whoever maps it elsewhere.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    try:
        if "imagen" not in metadata:
            raise ValueError("its header says nothing of one")
        about = json.loads(metadata["imagen"])
        if about["kind"] not in (KIND, LONGER):
            raise ValueError(f"expected the kind {KIND!r}, got {about['kind']!r}")
        return _taken(about, tensors, "", MOST_NESTED)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: not an encoded prompt as Imagen Save Text writes it: {why}"
        ) from error


def _taken(about: Any, tensors: Tensors, prefix: str, nested: int) -> EncodedPrompt:
    """The prompt under a prefix.

    nested   how many regions may lie in each other
    """
    parts: dict[str, Any] = {
        name: _states(tensors, prefix + name, about.get("later", {}).get(name, []))
        for name in PARTS
        if f"{prefix}{name}.embeds" in tensors
    }
    prompt = EncodedPrompt(**parts, mixer=float(about["mixer"]))
    regions = about.get("regions", [])
    if regions and not nested:
        raise ValueError(f"regions: expected up to {MOST_NESTED} in each other, got more")
    for i, told in enumerate(regions):
        key = f"{prefix}region.{i}."
        prompt = prompt.with_region(_taken(told, tensors, key, nested - 1), tensors[f"{key}where"])
    return prompt


def _states(tensors: Tensors, key: str, starts: list[float]) -> TextEmbedding:
    """The states under a name, and those that follow them."""
    found: list[TextEmbedding] = []
    for i in range(len(starts) + 1):
        own = f"{key}.{i}" if i else key
        part = TextEmbedding(tensors[f"{own}.embeds"], tensors[f"{own}.mask"])
        if part.embeds.ndim != 3 or part.mask.shape != part.embeds.shape[:2]:
            raise ValueError(f"{own}: the mask does not fit the states")
        if not part.embeds.is_floating_point():
            raise ValueError(f"{own}: states of {part.embeds.dtype}")
        found.append(part)
    first, *later = found
    return replace(first, later=tuple(zip(map(float, starts), later, strict=True)))
