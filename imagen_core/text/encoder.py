"""Prompt to token states through a frozen T5, each prompt encoded once.

T5, arXiv:1910.10683; Imagen, arXiv:2205.11487, section 2.1.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .caption import clean_caption as cleaned
from .embedding import EncodedPrompt, TextEmbedding
from .tokenizer import Tokenizer

CACHE_SIZE = 256  # prompts
AT_ONCE = 16  # prompts that go through T5 together


class Reading(NamedTuple):
    """How an encoder reads a prompt.

    text     after lower-casing, stripping and, where asked for, caption cleaning
    tokens   pieces that are encoded, a space as ▁, the last of them </s>
    cut      text of the pieces that are left out; "" = none
    """

    text: str
    tokens: list[str]
    cut: str


class TextEncoder:
    """A tokenizer and a T5 encoder; the states of the last prompts are kept."""

    def __init__(self, tokenizer: Tokenizer, model: Any):
        """Put the two together.

        tokenizer   T5's
        model       transformers.T5EncoderModel, from `t5_encoder`
        """
        self.tokenizer = tokenizer
        self.model = model
        self.cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._changing = threading.Lock()

    @property
    def max_length(self) -> int:
        """Tokens of a prompt; shorter ones are padded to it."""
        return self.tokenizer.max_length

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.shared.stored.device

    @property
    def dtype(self) -> torch.dtype:
        """What the products with the model's weights are computed in."""
        return self.model.shared.compute

    def to(self, device: torch.device | str) -> "TextEncoder":
        """This encoder, its model moved in place."""
        self.model.to(device)
        return self

    def encode(self, prompts: Sequence[str], clean_caption: bool = False) -> TextEmbedding:
        """States of the prompts, padded to max_length: b n d, float32 on the CPU.

        prompts         lower-cased and stripped first; a longer one is cut, with a warning
        clean_caption   whether they go through DeepFloyd IF's caption cleaning
        """
        prompts = [normalised(prompt, clean_caption) for prompt in prompts]
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        wanted = dict.fromkeys(prompts)
        with self._changing:  # another thread may drop what is here now
            states = {prompt: self.cache[prompt] for prompt in wanted if prompt in self.cache}
        missing = [prompt for prompt in wanted if prompt not in states]
        for first in range(0, len(missing), AT_ONCE):
            part = missing[first : first + AT_ONCE]
            states |= zip(part, self._evaluate(part), strict=True)
        with self._changing:
            self.cache.update(states)
            for prompt in states:
                self.cache.move_to_end(prompt)
            while len(self.cache) > CACHE_SIZE:
                self.cache.popitem(last=False)
        embeds, masks = zip(*(states[prompt] for prompt in prompts), strict=True)
        return TextEmbedding(torch.stack(embeds), torch.stack(masks))

    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str = "", clean_caption: bool = False
    ) -> EncodedPrompt:
        """A prompt, or one a picture, with its null text.

        prompt            one text or several
        negative_prompt   what guidance leads away from; "" = the empty prompt
        clean_caption     whether all go through DeepFloyd IF's caption cleaning
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        text = self.encode(prompts, clean_caption)
        null_text = self.encode([negative_prompt], clean_caption)
        return EncodedPrompt(text, null_text)

    def describe(self, prompt: str, clean_caption: bool = False) -> Reading:
        """How this encoder reads a prompt; nothing is encoded.

        clean_caption   whether it goes through DeepFloyd IF's caption cleaning
        """
        text = normalised(prompt, clean_caption)
        numbers = self.tokenizer.encode(text)
        kept = self.tokenizer.cut(numbers)
        left_out = numbers[len(kept) - 1 :] if len(kept) < len(numbers) else []
        return Reading(text, self.tokenizer.names(kept), self.tokenizer.decode(left_out))

    @torch.no_grad()  # not inference mode: its tensors could not be learned from
    def _evaluate(self, prompts: list[str]) -> list[tuple[Tensor, Tensor]]:
        shape = len(prompts), self.max_length
        numbers = torch.full(shape, self.tokenizer.pad)
        mask = torch.zeros(shape, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            found = self.tokenizer.encode(prompt)
            self._warn_if_cut(found)
            kept = self.tokenizer.cut(found)
            numbers[row, : len(kept)] = torch.tensor(kept)
            mask[row, : len(kept)] = True
        output = self.model(input_ids=numbers.to(self.device), attention_mask=mask.to(self.device))
        states = output.last_hidden_state.cpu()
        # Copies, so that a prompt that stays in the cache does not keep the others of its batch.
        return [(row.clone(), real.clone()) for row, real in zip(states, mask, strict=True)]

    def _warn_if_cut(self, numbers: list[int]) -> None:
        if len(numbers) <= self.max_length:
            return
        kept = self.tokenizer.decode(numbers[: self.max_length - 1])
        warnings.warn(
            f"prompt: has {len(numbers)} tokens, the encoder takes {self.max_length}; "
            f"everything after {kept[-40:]!r} is cut",
            stacklevel=4,
        )


def normalised(prompt: str, clean_caption: bool = False) -> str:
    """A prompt as it is tokenized.

    clean_caption   whether it goes through DeepFloyd IF's caption cleaning
    """
    # Half of a surrogate pair, which JavaScript may leave of an emoji that was cut, is no text.
    prompt = prompt.encode("utf-8", "replace").decode()
    return cleaned(prompt) if clean_caption else prompt.lower().strip()
