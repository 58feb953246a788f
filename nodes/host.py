"""The one door to whatever runs the nodes: ComfyUI where it is there, else a plain shell.

Folders of models, the device and its memory, progress, previews and interrupts. ComfyUI's modules are
taken from `sys.modules` when it has loaded them, and never imported from here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

OnStep = Callable[[int, int, "Tensor"], None]

BUNDLED = Path(__file__).parent.parent / "imagen_core" / "pretrained"
PREVIEW_SIDE = 256
PREVIEW_SECONDS = 0.25
DTYPES = ("auto", "float32", "bfloat16", "float16")

reporter: ContextVar[OnStep | None] = ContextVar("reporter", default=None)
"""Outside ComfyUI: what is told of each step; a runner sets it around a node."""


def comfy(name: str) -> Any:
    """A module of the running ComfyUI, or None where there is none.

    name   such as "comfy.model_management" or "folder_paths"
    """
    return sys.modules.get(name)


# Files ----------------------------------------------------------------------------------------------


def folders(kind: str) -> list[Path]:
    """The folders that hold models of a kind, the package's own last.

    kind   "imagen" (cascades and stages), "diffusion_models" or "text_encoders"
    """
    folder_paths = comfy("folder_paths")
    if folder_paths is None:
        roots = [Path(os.environ.get("IMAGEN_MODELS", "models")) / kind]
    elif kind in folder_paths.folder_names_and_paths:
        roots = [Path(root) for root in folder_paths.get_folder_paths(kind)]
    else:
        roots = [Path(folder_paths.models_dir) / kind]
    return roots + ([BUNDLED] if kind == "imagen" else [])


def cascade_names() -> list[str]:
    """Cascades to choose from: those of the package first, then the folders under models/imagen."""
    found = [path.parent.name for path in sorted(BUNDLED.glob("*/cascade.json"))]
    return _unique(found + _names("imagen", "*/cascade.json", lambda path: path.parent))


def stage_names() -> list[str]:
    """Stage files to choose from, in models/diffusion_models and models/imagen."""
    names = _names("diffusion_models", "**/*.safetensors", lambda path: path)
    names += _names("imagen", "**/*.safetensors", lambda path: path)
    return _unique(name for name in names if "text_encoder" not in name)


def text_encoder_names() -> list[str]:
    """Text encoders to choose from: folders in models/text_encoders, and those of cascades."""
    names = _names("text_encoders", "**/config.json", lambda path: path.parent)
    return _unique(names + _names("imagen", "*/*/config.json", lambda path: path.parent))


def resolve(kinds: tuple[str, ...], name: str, input_name: str) -> Path:
    """The file or folder of that name, which never lies outside the folders of its kinds.

    kinds        searched in order
    name         as listed
    input_name   names the input in the error
    """
    roots = [root.resolve() for kind in kinds for root in folders(kind)]
    for root in roots:
        path = (root / name).resolve()
        if path.is_relative_to(root) and path != root and path.exists():
            return path
    where = ", ".join(str(root) for root in roots)
    raise ValueError(f"{input_name}: expected a name inside {where}, got {name!r}")


def _names(kind: str, pattern: str, entry: Callable[[Path], Path]) -> list[str]:
    return sorted(
        entry(path).relative_to(root).as_posix()
        for root in folders(kind)
        if root.is_dir()
        for path in root.glob(pattern)
    )


def _unique(names) -> list[str]:
    return list(dict.fromkeys(names))


# Device and memory ----------------------------------------------------------------------------------


def compute_device() -> torch.device:
    """Where networks are to run."""
    import torch

    management = comfy("comfy.model_management")
    if management is not None:
        return management.get_torch_device()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype(name: str) -> torch.dtype:
    """The dtype that a name stands for; "auto" is float32 on a CPU, else the best half precision.

    name   one of DTYPES
    """
    import torch

    if name != "auto":
        return getattr(torch, name)
    if compute_device().type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


@contextmanager
def on_device(module: nn.Module) -> Iterator[None]:
    """The network on the compute device inside the block.

    module   a U-Net or a text encoder's model

    ComfyUI's memory management loads it, makes room for it and may put it aside later; outside
    ComfyUI it goes back to the CPU, so that stages do not pile up on a GPU.
    """
    management = comfy("comfy.model_management")
    if management is None:
        device = compute_device()
        module.to(device)
        try:
            yield
        finally:
            if device.type != "cpu":
                module.to("cpu")
        return
    # A partial load would leave these layers where they are: they do not cast as ComfyUI's own do.
    management.load_models_gpu([_patcher(module, management)], force_full_load=True)
    yield


def _patcher(module: nn.Module, management: Any) -> Any:
    """ComfyUI's handle of a network, made once and kept with it.

    ComfyUI assigns the module's `device`, which Hugging Face's models refuse: it gets one around it.
    """
    patcher = module.__dict__.get("comfy_patcher")
    if patcher is None:
        from torch.nn import Sequential

        patcher = comfy("comfy.model_patcher").ModelPatcher(
            Sequential(module), management.get_torch_device(), management.unet_offload_device()
        )
        module.__dict__["comfy_patcher"] = patcher
    return patcher


# Progress -------------------------------------------------------------------------------------------


def progress() -> OnStep:
    """What a sampler is to call after each step: bar, live preview, interrupt."""
    utils = comfy("comfy.utils")
    if utils is None:
        told = reporter.get()
        return told if told is not None else lambda step, num_steps, x0: None
    management = comfy("comfy.model_management")
    bar, shown = None, 0.0

    def on_step(step: int, num_steps: int, x0: Tensor) -> None:
        nonlocal bar, shown
        management.throw_exception_if_processing_interrupted()
        bar = bar or utils.ProgressBar(num_steps)
        picture = None
        if time.monotonic() - shown > PREVIEW_SECONDS or step == num_steps:
            picture, shown = ("JPEG", preview(x0), PREVIEW_SIDE), time.monotonic()
        bar.update_absolute(step, num_steps, picture)

    return on_step


def preview(x0: Tensor) -> Any:
    """The first picture of a batch as a PIL image, small ones enlarged without smoothing.

    x0   b 3 h w in [-1, 1]
    """
    from PIL import Image

    pixels = ((x0[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()
    image = Image.fromarray(pixels)
    factor = max(1, PREVIEW_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
