"""What a text encoder hands on: token states and their mask, and the pair that guidance needs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextEmbedding:
    """States of a text encoder.

    embeds   b n d
    mask     b n bool, True = real token
    """

    embeds: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "TextEmbedding":
        """The same states elsewhere or in another dtype."""
        return TextEmbedding(self.embeds.to(device, dtype), self.mask.to(device))

    def expand(self, batch: int) -> "TextEmbedding":
        """One prompt for `batch` images (views), or itself when it has that many rows."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"text: {len(self)} prompts do not fit {batch} images")
        return TextEmbedding(self.embeds.expand(batch, -1, -1), self.mask.expand(batch, -1))

    def shared(self) -> "TextEmbedding":
        """One row where all rows are views of it, as `expand` makes them; else itself."""
        one = len(self) > 1 and self.embeds.stride(0) == 0
        return TextEmbedding(self.embeds[:1], self.mask[:1]) if one else self

    def take(self, rows: slice) -> "TextEmbedding":
        """Some rows (views); of a single one, which stands for every picture, that one."""
        return self if len(self) == 1 else TextEmbedding(self.embeds[rows], self.mask[rows])

    def equals(self, other: "TextEmbedding") -> bool:
        """Whether these are the same states of the same tokens."""
        if self is other:
            return True
        return torch.equal(self.mask, other.mask) and torch.equal(self.embeds, other.embeds)

    @staticmethod
    def cat(embeddings: "list[TextEmbedding]") -> "TextEmbedding":
        """All rows in order.

        embeddings   of equal length and width
        """
        return TextEmbedding(
            torch.cat([e.embeds for e in embeddings]), torch.cat([e.mask for e in embeddings])
        )


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as guidance needs it.

    text        states of the prompt
    null_text   states of the negative prompt; of "" where there is none
    second      states of a second positive prompt, mixed into the prediction
    mixer       its weight m: (1 - m) of the prompt's prediction + m of the second's, 0..1
    style       states that the positive prompts are pooled from; None = each from its own

    The last three are DeepFloyd IF's positive mixer and style prompt.
    """

    text: TextEmbedding
    null_text: TextEmbedding
    second: TextEmbedding | None = None
    mixer: float = 0.0
    style: TextEmbedding | None = None

    def __post_init__(self):
        if not 0 <= self.mixer <= 1:
            raise ValueError(f"mixer must be in [0, 1], got {self.mixer}")
        if self.mixer and self.second is None:
            raise ValueError("mixer: needs a second prompt, got none")
        shape = tuple(self.text.embeds.shape[1:])
        for name in ("null_text", "second", "style"):
            other = getattr(self, name)
            if other is not None and tuple(other.embeds.shape[1:]) != shape:
                raise ValueError(
                    f"{name}: expected {shape[0]} tokens of width {shape[1]} as in text, got "
                    f"{tuple(other.embeds.shape[1:])}; encode both with the same T5"
                )

    def take(self, rows: slice) -> "EncodedPrompt":
        """The prompts of some pictures of a batch."""
        parts = {
            name: part.take(rows)
            for name in ("text", "null_text", "second", "style")
            if (part := getattr(self, name)) is not None
        }
        return replace(self, **parts)

    @staticmethod
    def cat(prompts: "list[EncodedPrompt]", counts: list[int]) -> "EncodedPrompt":
        """The prompts of several pictures, a row for each picture; a part that all share stays one row.

        prompts   of one T5, all with a second prompt or none, likewise a style, and of one mixer
        counts    pictures of each
        """

        def joined(name: str) -> TextEmbedding | None:
            parts = [getattr(prompt, name) for prompt in prompts]
            if parts[0] is None:
                return None
            one = parts[0]
            if len(one) == 1 and all(one.equals(part) for part in parts[1:]):
                return one
            rows = zip(parts, counts, strict=True)
            return TextEmbedding.cat([part.expand(count) for part, count in rows])

        parts = {name: joined(name) for name in ("text", "null_text", "second", "style")}
        return replace(prompts[0], **parts)

    @property
    def positives(self) -> list[tuple[TextEmbedding, TextEmbedding]]:
        """Of each positive prompt that has a weight: what is attended to, and what is pooled."""
        second = [self.second] if self.second is not None and self.mixer else []
        pairs = [(text, self.style or text) for text in [self.text, *second]]
        rows = [max(len(text), len(pooled)) for text, pooled in pairs]
        return [
            (text.expand(n), pooled.expand(n))
            for (text, pooled), n in zip(pairs, rows, strict=True)
        ]
