"""How tensors are stored: safetensors, torch files (never unpickled), GGUF, quantised matrices."""
