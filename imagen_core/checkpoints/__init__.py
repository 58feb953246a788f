"""Weights on disk: our stage files and cascade folders, and foreign layouts by rename tables."""

from .cascades import bundled_cascades, load_cascade
from .errors import CheckpointError
from .stages import load_stage, save_stage
from .text_encoders import load_text_encoder
from .texts import load_text, save_text

__all__ = [
    "CheckpointError",
    "bundled_cascades",
    "load_cascade",
    "load_stage",
    "load_text",
    "load_text_encoder",
    "save_stage",
    "save_text",
]
