"""Saved workflows without ComfyUI: read, check, run, save."""
