"""Encoded prompts on disk: T5 runs once, sampling often, and on machines where T5 does not fit."""

import json
from pathlib import Path

from ..text.embedding import EncodedPrompt, TextEmbedding
from ..weights.errors import CheckpointError
from ..weights.files import open_tensors, write_tensors

PARTS = ("text", "null_text", "second", "style")
KIND = "imagen text"


def save_text(path: str | Path, text: EncodedPrompt) -> None:
    """Write an encoded prompt as safetensors; the file appears whole or not at all.

    path   of the file
    text   with its null text and what may be mixed in
    """
    tensors = {}
    for name in PARTS:
        part = getattr(text, name)
        if part is not None:
            # Copies: null text and prompt may share memory, which safetensors refuses.
            tensors |= {f"{name}.embeds": part.embeds.clone(), f"{name}.mask": part.mask.clone()}
    write_tensors(Path(path), tensors, {"imagen": json.dumps({"kind": KIND, "mixer": text.mixer})})


def load_text(path: str | Path) -> EncodedPrompt:
    """The encoded prompt that `save_text` wrote.

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
        if about["kind"] != KIND:
            raise ValueError(f"expected the kind {KIND!r}, got {about['kind']!r}")
        parts = {
            name: TextEmbedding(tensors[f"{name}.embeds"], tensors[f"{name}.mask"])
            for name in PARTS
            if f"{name}.embeds" in tensors
        }
        for name, part in parts.items():
            if part.embeds.ndim != 3 or part.mask.shape != part.embeds.shape[:2]:
                raise ValueError(f"{name}: the mask does not fit the states")
            if not part.embeds.is_floating_point():
                raise ValueError(f"{name}: states of {part.embeds.dtype}")
        return EncodedPrompt(**parts, mixer=float(about["mixer"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(
            f"{path}: not an encoded prompt as Imagen Save Text writes it: {told}"
        ) from error
