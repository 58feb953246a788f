"""The one door to whatever runs the nodes: ComfyUI where it is there, else a plain shell.

Folders of models (files), the device and its memory (memory), progress, previews and interrupts
(progress), pictures that are only looked at (pictures). ComfyUI's modules are found through `door`
once it has loaded them, and never imported.
"""

from .files import (
    BUNDLED,
    cascade_names,
    folders,
    register_folders,
    resolve,
    stage_names,
    text_encoder_names,
    text_names,
    text_path,
    tokenizer_folders,
)
from .memory import (
    DTYPES,
    compute_device,
    dtype,
    forget_unused,
    on_device,
    out_of_memory,
    to_results,
)
from .pictures import save_temporary, temporary, watched
from .progress import OnStep, note, preview, progress, reporter

__all__ = [
    "BUNDLED",
    "DTYPES",
    "OnStep",
    "cascade_names",
    "compute_device",
    "dtype",
    "folders",
    "forget_unused",
    "note",
    "on_device",
    "out_of_memory",
    "preview",
    "progress",
    "register_folders",
    "reporter",
    "resolve",
    "save_temporary",
    "stage_names",
    "temporary",
    "text_encoder_names",
    "text_names",
    "text_path",
    "to_results",
    "tokenizer_folders",
    "watched",
]
