"""Imagen as a tensor library: a cascade of pixel-space diffusion models guided by a frozen T5.

Public API: every name in `__all__`. Imagen, arXiv:2205.11487.
"""

from .cascade import Cascade
from .diffusion.editing import Inpainting
from .diffusion.guidance import Guidance, dynamic_threshold, static_threshold
from .diffusion.samplers import SAMPLERS
from .diffusion.schedules import Schedule
from .diffusion.trace import Trace
from .formats import (
    CheckpointError,
    load_cascade,
    load_lora,
    load_stage,
    load_text,
    load_text_encoder,
    save_lora,
    save_stage,
    save_text,
)
from .lora import LoRA, apply_lora, merge_loras
from .sampling import sample_base, super_resolve
from .settings import Settings
from .stage import SamplingDefaults, Stage, StageConfig
from .text import EncodedPrompt, Reading, TextEmbedding, TextEncoder
from .unet.adm import ADMConfig, ADMUNet
from .unet.efficient import EfficientConfig, EfficientUNet
from .unet.presets import PRESETS
from .unet.reuse import Reuse

__all__ = [
    "PRESETS",
    "SAMPLERS",
    "ADMConfig",
    "ADMUNet",
    "Cascade",
    "CheckpointError",
    "EfficientConfig",
    "EfficientUNet",
    "EncodedPrompt",
    "Guidance",
    "Inpainting",
    "LoRA",
    "Reading",
    "Reuse",
    "SamplingDefaults",
    "Schedule",
    "Settings",
    "Stage",
    "StageConfig",
    "TextEmbedding",
    "TextEncoder",
    "Trace",
    "apply_lora",
    "dynamic_threshold",
    "load_cascade",
    "load_lora",
    "load_stage",
    "load_text",
    "load_text_encoder",
    "merge_loras",
    "sample_base",
    "save_lora",
    "save_stage",
    "save_text",
    "static_threshold",
    "super_resolve",
]
