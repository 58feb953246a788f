"""ComfyUI's modules, where it has loaded them."""

import sys
from typing import Any


def comfy(name: str) -> Any:
    """A module of the running ComfyUI, or None where there is none.

    name   such as "comfy.model_management" or "folder_paths"
    """
    return sys.modules.get(name)
