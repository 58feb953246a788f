"""Host adapter: ComfyUI where it runs the nodes, else a plain shell.

Folders of models (files), the device and its memory (memory), progress, previews and interrupts
(progress), pictures that are only looked at (images), and a stage as ComfyUI's MODEL (model).
ComfyUI's modules are found through `adapter` once it has loaded them, and never imported.
"""

from .files import (
    BUNDLED,
    cascade_by_path,
    cascade_folder,
    cascade_names,
    folders,
    home,
    lora_by_path,
    lora_file,
    lora_names,
    lora_path,
    offered,
    register_folders,
    resolve,
    stage_names,
    text_encoder_names,
    text_names,
    text_path,
    tokenizer_folders,
)
from .images import save_temporary, temporary, watched
from .memory import (
    DTYPES,
    chosen_device,
    compute_device,
    dtype,
    forget_unused,
    on_device,
    out_of_memory,
    to_results,
)
from .model import AUG, LOWRES, STYLE, native_model, pixel_vae, text_mask
from .progress import OnStep, note, preview, progress, reporter

__all__ = [
    "AUG",
    "BUNDLED",
    "DTYPES",
    "LOWRES",
    "STYLE",
    "OnStep",
    "cascade_by_path",
    "cascade_folder",
    "cascade_names",
    "chosen_device",
    "compute_device",
    "dtype",
    "folders",
    "forget_unused",
    "home",
    "lora_by_path",
    "lora_file",
    "lora_names",
    "lora_path",
    "native_model",
    "note",
    "offered",
    "on_device",
    "out_of_memory",
    "pixel_vae",
    "preview",
    "progress",
    "register_folders",
    "reporter",
    "resolve",
    "save_temporary",
    "stage_names",
    "temporary",
    "text_encoder_names",
    "text_mask",
    "text_names",
    "text_path",
    "to_results",
    "tokenizer_folders",
    "watched",
]
