"""ComfyUI's own nodes, as far as Imagen workflows use them."""
