"""What files mean: stages, cascades, encoded prompts, LoRAs, DeepFloyd IF, T5."""

from ..weights.errors import CheckpointError
from .cascade import bundled_cascades, load_cascade, read_cascade
from .lora import load_lora, save_lora
from .prompt import load_text, save_text
from .stage import load_stage, save_stage
from .t5 import load_text_encoder

__all__ = [
    "CheckpointError",
    "bundled_cascades",
    "load_cascade",
    "load_lora",
    "load_stage",
    "load_text",
    "load_text_encoder",
    "read_cascade",
    "save_lora",
    "save_stage",
    "save_text",
]
