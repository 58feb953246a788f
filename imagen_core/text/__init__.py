"""Prompt -> TextEmbedding: the tokenizer, a frozen T5 encoder, and a cache of prompts."""

from .embedding import EncodedPrompt, TextEmbedding
from .encoder import Reading, TextEncoder

__all__ = ["EncodedPrompt", "Reading", "TextEmbedding", "TextEncoder"]
