"""Saved workflows without ComfyUI: read, check, run, save; and the command line."""
