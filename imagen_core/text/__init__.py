"""Prompt -> TextEmbedding: the tokenizer, a frozen T5 encoder, and a cache of prompts."""

from .embedding import EncodedPrompt, TextEmbedding
from .encoder import TextEncoder, load_text_encoder

__all__ = ["EncodedPrompt", "TextEmbedding", "TextEncoder", "load_text_encoder"]
