"""Prompt to token states through a frozen T5, each prompt encoded once.

T5, arXiv:1910.10683; Imagen, arXiv:2205.11487, section 2.1.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from .caption import clean_caption as cleaned
from .embedding import TextEmbedding
from .prompt import EncodedPrompt
from .schedule import scheduled
from .t5 import T5Encoder
from .tokenizer import Tokenizer
from .weighting import apply_weights, chunks_of

# Of states that are kept: a hundred prompts of T5-XXL, all 256 of a small encoder. More small ones would keep
# the freed memory between them from being used again, several times their own size.
CACHE_BYTES, MOST_PROMPTS = 128 << 20, 256
AT_ONCE = 16  # prompts that go through T5 together


Chunk = list[tuple[str, float]]  # texts that follow each other, and their weights
EMPTY: Chunk = [("", 1.0)]


class Reading(NamedTuple):
    """How an encoder reads a prompt.

    text      after lower-casing, stripping and caption cleaning, without brackets; BREAK between its parts
    tokens    pieces that are encoded, a space as ▁, the last of each part </s>
    cut       text of the pieces that are left out; "" = none
    weights   parts of the text with another weight than 1, and it
    parts     texts that are encoded apart
    later     readings that take its place, each with the part of the steps before it
    """

    text: str
    tokens: list[str]
    cut: str
    weights: list[tuple[str, float]]
    parts: int = 1
    later: "tuple[tuple[float, Reading], ...]" = ()


class TextEncoder:
    """A tokenizer and a T5 encoder; the states of the last MOST_PROMPTS are kept, up to CACHE_BYTES."""

    def __init__(self, tokenizer: Tokenizer, model: T5Encoder):
        """Put the two together.

        tokenizer   T5's
        model       from `t5_encoder`
        """
        self.tokenizer = tokenizer
        self.model = model
        self.cache: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()
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
        """States of texts as they are, padded to max_length: b n d, float32 on the CPU.

        prompts         lower-cased and stripped first; a longer one is cut, with a warning
        clean_caption   whether they go through DeepFloyd IF's caption cleaning
        """
        texts = [normalised(prompt, clean_caption) for prompt in prompts]
        return self._states([self.tokenizer.encode(text) for text in texts])

    def _marked(self, texts: list[list[tuple[float, list[Chunk]]]], parts: int) -> TextEmbedding:
        """States of prompts that `chunks_over_steps` has read: b (parts n) d, over the steps.

        parts   of each; where a prompt has fewer, empty ones follow

        The states of a token with another weight than 1 are led away from, or towards, the empty prompt's
        at its place. Each text between brackets is tokenized by itself.
        """
        starts = sorted({start for text in texts for start, _ in text})
        rows = [[c for at, c in text if at <= start][-1] for start in starts for text in texts]
        filled = [chunk for row in rows for chunk in [*row, *[EMPTY] * (parts - len(row))]]
        states, shape = self._weighted(filled), dict(s=len(starts), p=parts)
        embeds = rearrange(states.embeds, "(s b p) n d -> s b (p n) d", **shape)
        masks = rearrange(states.mask, "(s b p) n -> s b (p n)", **shape)
        first, *later = [TextEmbedding(*both) for both in zip(embeds, masks, strict=True)]
        return replace(first, later=tuple(zip(starts[1:], later, strict=True)))

    def _weighted(self, chunks: list[Chunk]) -> TextEmbedding:
        """States of weighted texts, each padded to max_length."""
        tokens = [self._weighted_tokens(chunk) for chunk in chunks]
        states = self._states([[*numbers, self.tokenizer.end] for numbers, _ in tokens])
        if all(weight == 1 for _, weights in tokens for weight in weights):
            return states
        empty = self.encode([""]).embeds[0]
        kept = self.max_length - 1  # the end has no weight
        rows = [
            apply_weights(row, empty, weights[:kept])
            for row, (_, weights) in zip(states.embeds, tokens, strict=True)
        ]
        return TextEmbedding(torch.stack(rows), states.mask)

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        clean_caption: bool = False,
        markup: bool = True,
    ) -> EncodedPrompt:
        """A prompt, or one a picture, with its null text.

        prompt            one text or several
        negative_prompt   what guidance leads away from; "" = the empty prompt
        clean_caption     whether all go through DeepFloyd IF's caption cleaning, which removes brackets
        markup            whether `(word:1.2)`, `[from:to:0.4]` and BREAK are read; never in cleaned captions
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not isinstance(negative_prompt, str):
            raise TypeError(
                f"negative_prompt: expected one text for all images, got {type(negative_prompt).__name__}"
            )
        for each in prompts:
            if not isinstance(each, str):
                raise TypeError(f"prompt: expected text, got {each!r:.80}")
        if markup and not clean_caption:
            null, *texts = [chunks_over_steps(each) for each in (negative_prompt, *prompts)]
            parts = max(len(chunks) for text in (null, *texts) for _, chunks in text)
            null_text = self._marked([null], parts)
            return EncodedPrompt(self._marked(texts, parts), null_text)
        text = self.encode(prompts, clean_caption)
        return EncodedPrompt(text, self.encode([negative_prompt], clean_caption))

    def describe(self, prompt: str, clean_caption: bool = False, markup: bool = True) -> Reading:
        """How `encode_prompt` reads a prompt with the same settings; nothing is encoded."""
        if not markup or clean_caption:
            return self._read([[(normalised(prompt, clean_caption), 1.0)]])
        (_, first), *later = chunks_over_steps(prompt)
        rest = tuple((start, self._read(chunks)) for start, chunks in later)
        return self._read(first)._replace(later=rest)

    def _read(self, chunks: list[Chunk]) -> Reading:
        tokens: list[str] = []
        cut: list[str] = []
        for chunk in chunks:
            numbers = [*self._weighted_tokens(chunk)[0], self.tokenizer.end]
            kept = self.tokenizer.cut(numbers)
            tokens += self.tokenizer.names(kept)
            if len(kept) < len(numbers):
                cut.append(self.tokenizer.decode(numbers[len(kept) - 1 :]))
        return Reading(
            " BREAK ".join("".join(text for text, _ in chunk) for chunk in chunks),
            tokens,
            " … ".join(cut),
            [(text.strip(), weight) for chunk in chunks for text, weight in chunk if weight != 1],
            len(chunks),
        )

    def _weighted_tokens(self, parts: list[tuple[str, float]]) -> tuple[list[int], list[float]]:
        """Numbers of all pieces of texts that follow each other, without an end, and their weights."""
        numbers: list[int] = []
        weights: list[float] = []
        for text, weight in parts:
            found = self.tokenizer.encode(text)[:-1]
            numbers += found
            weights += [weight] * len(found)
        return numbers, weights

    def _states(self, rows: list[list[int]]) -> TextEmbedding:
        """States of tokens, each row evaluated once and kept; a row that is too long is cut."""
        if not rows:
            raise ValueError("prompts: expected at least one, got none")
        keys = [tuple(self._cut(row)) for row in rows]
        wanted = dict.fromkeys(keys)
        with self._changing:  # another thread may drop what is here now
            states = {key: self.cache[key] for key in wanted if key in self.cache}
        missing = [key for key in wanted if key not in states]
        for first in range(0, len(missing), AT_ONCE):
            part = missing[first : first + AT_ONCE]
            states |= zip(part, self._evaluate(part), strict=True)
        with self._changing:
            self.cache.update(states)
            for key in states:
                self.cache.move_to_end(key)
            size = next(iter(states.values()))[0].nbytes  # of each prompt
            while len(self.cache) > min(MOST_PROMPTS, CACHE_BYTES // size):
                self.cache.popitem(last=False)
        embeds, masks = zip(*(states[key] for key in keys), strict=True)
        return TextEmbedding(torch.stack(embeds), torch.stack(masks))

    @torch.no_grad()  # not inference mode: its tensors could not be learned from
    def _evaluate(self, rows: list[tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
        shape = len(rows), self.max_length
        numbers = torch.full(shape, self.tokenizer.pad)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            numbers[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        states = self.model(
            input_ids=numbers.to(self.device), attention_mask=mask.to(self.device)
        ).cpu()
        # Copies, so that a prompt that stays in the cache does not keep the others of its batch.
        return [(row.clone(), real.clone()) for row, real in zip(states, mask, strict=True)]

    def _cut(self, numbers: list[int]) -> list[int]:
        """The numbers that are encoded; a warning says where a longer row is cut."""
        if len(numbers) > self.max_length:
            kept = self.tokenizer.decode(numbers[: self.max_length - 1])
            warnings.warn(
                f"prompt: has {len(numbers)} tokens, the encoder takes {self.max_length}; "
                f"everything after {kept[-40:]!r} is cut",
                stacklevel=4,
            )
        return self.tokenizer.cut(numbers)


def normalised(prompt: str, clean_caption: bool = False) -> str:
    """A prompt as it is tokenized.

    clean_caption   whether it goes through DeepFloyd IF's caption cleaning
    """
    prompt = readable(prompt)
    return cleaned(prompt) if clean_caption else prompt.lower().strip()


def readable(prompt: str) -> str:
    """A prompt without halves of surrogate pairs, which JavaScript may leave of an emoji that was cut."""
    return prompt.encode("utf-8", "replace").decode()


def chunks_over_steps(prompt: str) -> list[tuple[float, list[Chunk]]]:
    """What of a prompt is encoded apart, and from which part of the steps on: 0, then rising, below 1."""
    return [
        (
            start,
            [
                [(part.lower(), weight) for part, weight in chunk]
                for chunk in chunks_of(text.strip())
            ],
        )
        for start, text in scheduled(readable(prompt))
    ]
