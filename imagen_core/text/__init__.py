"""Prompt -> TextEmbedding: the tokenizer, a frozen T5 encoder, and a cache of prompts."""

from .embedding import TextEmbedding
from .encoder import Reading, TextEncoder
from .prompt import EncodedPrompt

__all__ = ["EncodedPrompt", "Reading", "TextEmbedding", "TextEncoder"]
