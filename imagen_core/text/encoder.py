"""Prompt to token states through a frozen T5, each prompt encoded once.

T5, arXiv:1910.10683; Imagen, arXiv:2205.11487, section 2.1.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .embedding import EncodedPrompt, TextEmbedding

CACHE_SIZE = 256  # prompts
DEFAULT_LENGTH = 77  # tokens, DeepFloyd IF's
LONGEST = 4096  # a tokenizer that claims more has no limit of its own


class TextEncoder:
    """A tokenizer and a T5 encoder; the states of the last prompts are kept."""

    def __init__(self, tokenizer: Any, model: Any, max_length: int):
        self.tokenizer = tokenizer
        self.model = model
        self.max_length = max_length
        self.cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        """This encoder, its model moved and converted in place.

        device, dtype   None = as they are
        """
        self.model.to(device=device, dtype=dtype)
        return self

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """States of the prompts, padded to max_length: b n d, float32 on the CPU.

        prompts   lower-cased and stripped first; a longer one is cut, with a warning
        """
        prompts = [prompt.lower().strip() for prompt in prompts]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache]
        states = dict(zip(missing, self._evaluate(missing), strict=True)) if missing else {}
        for prompt in prompts:
            if prompt in self.cache:
                self.cache.move_to_end(prompt)
                states[prompt] = self.cache[prompt]
        self.cache.update(states)
        while len(self.cache) > CACHE_SIZE:
            self.cache.popitem(last=False)
        embeds, masks = zip(*(states[prompt] for prompt in prompts), strict=True)
        return TextEmbedding(torch.stack(embeds), torch.stack(masks))

    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str = ""
    ) -> EncodedPrompt:
        """A prompt, or one a picture, with its null text.

        prompt            one text or several
        negative_prompt   what guidance leads away from; "" = the empty prompt
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        text, null_text = self.encode(prompts), self.encode([negative_prompt])
        return EncodedPrompt(text, null_text.expand(len(prompts)))

    @torch.inference_mode()
    def _evaluate(self, prompts: list[str]) -> list[tuple[Tensor, Tensor]]:
        for prompt in prompts:
            self._warn_if_cut(prompt)
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(self.device)
        states = self.model(input_ids=tokens.input_ids.to(self.device), attention_mask=mask)
        embeds = states.last_hidden_state.float().cpu()
        return list(zip(embeds, mask.bool().cpu(), strict=True))

    def _warn_if_cut(self, prompt: str) -> None:
        ids = self.tokenizer(prompt, verbose=False).input_ids
        if len(ids) <= self.max_length:
            return
        kept = self.tokenizer.decode(ids[: self.max_length - 1], skip_special_tokens=True)
        warnings.warn(
            f"prompt: has {len(ids)} tokens, the encoder takes {self.max_length}; "
            f"everything after {kept[-40:]!r} is cut",
            stacklevel=4,
        )


def load_text_encoder(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """A T5 encoder from a folder in the Hugging Face layout.

    path            holds config.json, the weights as safetensors, and the tokenizer's files
    device, dtype   of the model
    """
    from transformers import AutoTokenizer, T5EncoderModel

    path = Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"text_encoder: expected a folder with config.json, model.safetensors and a tokenizer, "
            f"got {path}"
        )
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model: Any = T5EncoderModel.from_pretrained(
        path, local_files_only=True, use_safetensors=True, torch_dtype=dtype
    )
    length = tokenizer.model_max_length
    max_length = length if length <= LONGEST else DEFAULT_LENGTH
    return TextEncoder(tokenizer, model.to(device).eval().requires_grad_(False), max_length)
