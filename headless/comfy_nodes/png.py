"""PNG files of a run: metadata inside, written by rename."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import unfinished
from ..files import placed
from ..graph import finite

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def to_bytes(image: Tensor) -> np.ndarray:
    """A picture as ComfyUI's Save Image stores it: truncated, not rounded.

    image     h w c in 0..1
    returns   h w c, uint8
    """
    import numpy as np

    return np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)


def save_png(
    folder: Path,
    names: Iterable[str],
    image: Tensor,
    metadata: dict[str, Any],
    compress_level: int = 4,
) -> str:
    """Write a picture under the first of some names that is free; that name. It appears whole or not at all.

    folder           is made
    image            h w c in 0..1
    metadata         JSON data by key, such as "prompt" and "workflow"
    compress_level   of PNG, 0..9
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, json.dumps(finite(value)))
    with unfinished(folder / "picture") as temporary:
        picture = Image.fromarray(to_bytes(image))
        picture.save(temporary, format="PNG", pnginfo=info, compress_level=compress_level)
        return placed(temporary, (folder / name for name in names)).name
