"""The text of ComfyUI's conditionings as a stage reads it: prepared once a run, however it is batched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Text:
    """The text of one conditioning, and what the network prepared of it with the weights as they are."""

    def __init__(self, embeds: Tensor, mask: Tensor, style: Tensor):
        self.embeds, self.mask, self.style = embeds, mask, style
        self.prepared: tuple[Any, Any] | None = None
        self.joined: dict[Any, tuple[list[Any], Any]] = {}

    def context(self, stage: Any, weights: Any) -> Any:
        """The text prepared for every layer, where the network is.

        weights   says which patches the network's weights have
        """
        from ...imagen_core import TextEmbedding

        key = weights, stage.device, stage.dtype
        if self.prepared is None or self.prepared[0] != key:
            text = TextEmbedding(self.embeds, self.mask).to(stage.device)
            pooled = text
            if self.style is not self.embeds:
                pooled = TextEmbedding(self.style, self.mask).to(stage.device)
            self.prepared = key, stage.unet.prepare(text, pooled)
        return self.prepared[1]


class TextCond:
    """A text as ComfyUI batches it: what stands for how many pictures. No tensor is copied or compared."""

    def __init__(self, parts: list[tuple[Text, int]]):
        self.parts = parts

    def process_cond(self, batch_size: int, **given: Any) -> TextCond:
        """The text for a batch of pictures."""
        return TextCond([(text, batch_size) for text, _ in self.parts])

    def can_concat(self, other: Any) -> bool:
        """Whether both run at once: rows of unequal length do not, as padding would change them."""
        shapes = [part.parts[0][0].embeds.shape[1:] for part in (self, other)]
        return shapes[0] == shapes[1]

    def concat(self, others: list[TextCond]) -> TextCond:
        """The texts of several batches, one after the other."""
        return TextCond([part for cond in (self, *others) for part in cond.parts])

    def size(self) -> list[int]:
        """Of its states, from which ComfyUI estimates memory."""
        first = self.parts[0][0].embeds
        return [sum(batch for _, batch in self.parts), *first.shape[1:]]

    def context(self, stage: Any, weights: Any) -> Any:
        """All texts prepared, as rows for the network; the same object as long as nothing changes.

        weights   says which patches the network's weights have
        """
        contexts = [text.context(stage, weights) for text, _ in self.parts]
        key = tuple((id(text), batch) for text, batch in self.parts)
        kept = self.parts[0][0].joined
        if key not in kept or any(a is not b for a, b in zip(kept[key][0], contexts, strict=True)):
            kept[key] = contexts, _joined(contexts, [batch for _, batch in self.parts])
        return kept[key][1]


def _joined(contexts: list[Any], batches: list[int]) -> Any:
    """One row a text where each stands for as many pictures, else one row a picture."""
    from ...imagen_core.unet.layers import TextContext

    if all(len(context) == 1 for context in contexts) and len(set(batches)) == 1:
        return TextContext.cat(contexts)
    rows = [context.cycled(batch) for context, batch in zip(contexts, batches, strict=True)]
    return TextContext.cat(rows)
