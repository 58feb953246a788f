"""Weights on disk: our stage files and cascade folders, and foreign layouts by rename tables."""

from .cascades import bundled_cascades, load_cascade
from .errors import CheckpointError
from .stages import load_stage, save_stage

__all__ = ["CheckpointError", "bundled_cascades", "load_cascade", "load_stage", "save_stage"]
