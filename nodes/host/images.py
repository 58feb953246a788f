"""Pictures that are only looked at, in ComfyUI's temporary folder or a runner's; masks that it read."""

from __future__ import annotations

import hashlib
import os
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .adapter import comfy

if TYPE_CHECKING:
    from torch import Tensor

WHITE = 0.996  # ComfyUI 0.33 reads 255 of a grey file as 0.9961

temporary: ContextVar[Path] = ContextVar("temporary", default=Path("temp"))
"""Outside ComfyUI: where such pictures go; a runner sets it."""


def whitened(mask: Any) -> Any:
    """A mask whose white is 1, also where ComfyUI has read it from a grey file.

    mask   any shape in 0..1; None, and what is no tensor, stays

    A region would let the other prompt through, at the price of its evaluation, and inpainting the image.
    """
    import torch

    if not isinstance(mask, torch.Tensor):
        return mask
    return mask.masked_fill((mask > WHITE) & (mask < 1), 1.0)


def watched() -> bool:
    """Whether somebody may look while nodes run: in ComfyUI, not in a shell."""
    return comfy("folder_paths") is not None


def save_temporary(image: Tensor) -> dict[str, str]:
    """Write one picture; what the interface is told of it. The same picture keeps its name.

    image   h w c in 0..1
    """
    from PIL import Image

    folder_paths = comfy("folder_paths")
    folder = temporary.get() if folder_paths is None else Path(folder_paths.get_temp_directory())
    pixels = (image[..., :3] * 255).clamp(0, 255).byte().cpu().numpy()
    name = f"imagen_{hashlib.sha256(pixels.tobytes()).hexdigest()[:20]}_{pixels.shape[1]}.png"
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{name}.{os.getpid()}.writing"
        Image.fromarray(pixels).save(unfinished, format="PNG", compress_level=1)
        os.replace(unfinished, folder / name)
    return {"filename": name, "subfolder": "", "type": "temp"}
