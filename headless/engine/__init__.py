"""What checks a graph and runs it, by the rules of ComfyUI."""
