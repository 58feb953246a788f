"""What a text encoder hands on: token states and their mask, and the pair that guidance needs."""

from dataclasses import dataclass

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
        """The same states elsewhere or in another dtype.

        device, dtype   None = as they are
        """
        return TextEmbedding(self.embeds.to(device, dtype), self.mask.to(device))

    def expand(self, batch: int) -> "TextEmbedding":
        """One prompt for `batch` images (views), or itself when it has that many rows.

        batch   number of images
        """
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"text: {len(self)} prompts do not fit {batch} images")
        return TextEmbedding(self.embeds.expand(batch, -1, -1), self.mask.expand(batch, -1))

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
    """

    text: TextEmbedding
    null_text: TextEmbedding
