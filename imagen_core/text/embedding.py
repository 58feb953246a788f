"""What a text encoder hands on: token states and their mask, over the steps of a run."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextEmbedding:
    """States of a text encoder.

    embeds   b n d
    mask     b n bool, True = real token
    later    states that take their place, each with the part of the steps before it, rising in 0..1
    """

    embeds: Tensor
    mask: Tensor
    later: "tuple[tuple[float, TextEmbedding], ...]" = ()

    def __post_init__(self):
        starts = [0.0, *self.starts]
        if starts != sorted(set(starts)) or starts[-1] > 1:
            raise ValueError(f"later: expected rising parts of the steps in 0..1, got {starts[1:]}")
        for _, text in self.later:
            if text.embeds.shape != self.embeds.shape or text.later:
                raise ValueError(
                    f"later: expected states of {list(self.embeds.shape)} that nothing follows, got "
                    f"{list(text.embeds.shape)}{', followed by others' if text.later else ''}"
                )

    def __len__(self) -> int:
        return self.embeds.shape[0]

    @property
    def starts(self) -> list[float]:
        """The parts of the steps after which other states take the place of those before."""
        return [start for start, _ in self.later]

    def at(self, part: float) -> "TextEmbedding":
        """The states that are read after a part of the steps, which nothing follows."""
        found = replace(self, later=()) if self.later else self
        for start, text in self.later:
            found = text if start <= part else found
        return found

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "TextEmbedding":
        """The same states elsewhere or in another dtype."""
        return self._each(lambda embeds: embeds.to(device, dtype), lambda mask: mask.to(device))

    def expand(self, batch: int) -> "TextEmbedding":
        """One prompt for `batch` images (views), or itself when it has that many rows."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"text: {len(self)} prompts do not fit {batch} images")
        return self._each(
            lambda embeds: embeds.expand(batch, -1, -1), lambda mask: mask.expand(batch, -1)
        )

    def shared(self) -> "TextEmbedding":
        """One row where all rows are views of it, as `expand` makes them; else itself."""
        one = len(self) > 1 and self.embeds.stride(0) == 0
        return self._each(lambda embeds: embeds[:1], lambda mask: mask[:1]) if one else self

    def take(self, rows: slice) -> "TextEmbedding":
        """Some rows (views); of a single one, which stands for every picture, that one."""
        if len(self) == 1:
            return self
        return self._each(lambda embeds: embeds[rows], lambda mask: mask[rows])

    def equals(self, other: "TextEmbedding") -> bool:
        """Whether these are the same states of the same tokens at the same steps."""
        if self is other:
            return True
        if self.starts != other.starts or self.embeds.shape != other.embeds.shape:
            return False
        same = torch.equal(self.mask, other.mask) and torch.equal(self.embeds, other.embeds)
        pairs = zip(self.later, other.later, strict=True)
        return same and all(own.equals(theirs) for (_, own), (_, theirs) in pairs)

    @staticmethod
    def cat(embeddings: "list[TextEmbedding]") -> "TextEmbedding":
        """All rows in order, each with its own states at every step.

        embeddings   of equal length and width
        """
        first, *later = [
            (
                start,
                TextEmbedding(
                    torch.cat([e.at(start).embeds for e in embeddings]),
                    torch.cat([e.at(start).mask for e in embeddings]),
                ),
            )
            for start in starts_of(embeddings)
        ]
        return replace(first[1], later=tuple(later))

    def _each(
        self, change: Callable[[Tensor], Tensor], change_mask: Callable[[Tensor], Tensor]
    ) -> "TextEmbedding":
        """The same with all its states and masks changed."""
        later = tuple((start, text._each(change, change_mask)) for start, text in self.later)
        return TextEmbedding(change(self.embeds), change_mask(self.mask), later)


def starts_of(texts: list[TextEmbedding]) -> list[float]:
    """The parts of the steps at which any of several texts changes, 0 before them."""
    return sorted({0.0}.union(*(text.starts for text in texts)))
