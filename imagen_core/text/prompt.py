"""A prompt as guidance needs it: positive and negative states, a mixed-in prompt, a style, regions."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensor_checks import check_numbers, check_tensor
from .embedding import TextEmbedding

PARTS = ("text", "null_text", "second", "style")  # of an EncodedPrompt


class Region(NamedTuple):
    """A prompt for a part of the picture.

    prompt   its null text is not used
    mask     h w in 0..1, of any size: how much of each pixel's prediction is the prompt's
    """

    prompt: "EncodedPrompt"
    mask: Tensor


class Positive(NamedTuple):
    """A prompt that is evaluated, and its share of the prediction.

    text     what is attended to
    pooled   what the pooled vector is made from
    share    0..1
    mask     h w in 0..1, which multiplies the share; None = it is the same everywhere
    """

    text: TextEmbedding
    pooled: TextEmbedding
    share: float
    mask: Tensor | None = None

    @property
    def acts(self) -> bool:
        """Whether it has a share anywhere."""
        return self.mask is None or bool(self.mask.any())

    def expanded(self) -> "Positive":
        """The same with as many rows of what is attended to as of what is pooled, and no mask of ones."""
        rows = max(len(self.text), len(self.pooled))
        mask = None if self.mask is None or bool((self.mask == 1).all()) else self.mask
        return Positive(self.text.expand(rows), self.pooled.expand(rows), self.share, mask)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as guidance needs it.

    text        states of the prompt
    null_text   states of the negative prompt; of "" where there is none
    second      states of a second positive prompt, mixed into the prediction
    mixer       its weight m: (1 - m) of the prompt's prediction + m of the second's, 0..1
    style       states that the positive prompts are pooled from; None = each from its own
    regions     prompts that take this one's place in parts of the picture, each evaluated by itself

    second, mixer and style are DeepFloyd IF's positive mixer and style prompt. Predictions of regions are
    averaged by their masks: MultiDiffusion, arXiv:2302.08113, section 4.2.
    """

    text: TextEmbedding
    null_text: TextEmbedding
    second: TextEmbedding | None = None
    mixer: float = 0.0
    style: TextEmbedding | None = None
    regions: tuple[Region, ...] = ()

    def __post_init__(self):
        if not 0 <= self.mixer <= 1:
            raise ValueError(f"mixer must be in [0, 1], got {self.mixer}")
        if self.mixer and self.second is None:
            raise ValueError("mixer: needs a second prompt, got none")
        shape = tuple(self.text.embeds.shape[1:])
        others = {name: getattr(self, name) for name in PARTS[1:]}
        for name, other in [*others.items(), *(("region", r.prompt.text) for r in self.regions)]:
            if other is not None and tuple(other.embeds.shape[1:]) != shape:
                raise ValueError(
                    f"{name}: expected {shape[0]} tokens of width {shape[1]} as in text, got "
                    f"{tuple(other.embeds.shape[1:])}; encode both with the same T5, and with as many BREAK"
                )

    def with_region(
        self, prompt: "EncodedPrompt", mask: Tensor, strength: float = 1.0
    ) -> "EncodedPrompt":
        """This prompt with another one for a part of the picture.

        prompt     its null text is not used
        mask       h w or 1 h w in 0..1, of any size, 1 = the region; ValueError where it holds other values
        strength   of the region, 0..1: the rest of the prediction there is this prompt's
        """
        check_tensor(mask, "mask")
        check_numbers(mask, "mask")
        plane = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if plane.ndim != 2:
            raise ValueError(
                f"mask: expected one of height x width for all images, got {list(mask.shape)}"
            )
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be in [0, 1], got {strength}")
        region = Region(prompt, strength * plane.detach().cpu().float().clamp(0, 1))
        return replace(self, regions=(*self.regions, region))

    def take(self, rows: slice) -> "EncodedPrompt":
        """The prompts of some pictures of a batch."""
        parts = {name: part and part.take(rows) for name, part in self._parts().items()}
        regions = tuple(Region(region.prompt.take(rows), region.mask) for region in self.regions)
        return replace(self, **parts, regions=regions)

    @property
    def form(self) -> tuple[Any, ...]:
        """What prompts that `cat` joins have in common."""
        given = (part is None for part in self._parts().values())
        regions = (
            (region.mask.shape, region.mask.numpy().tobytes(), region.prompt.form)
            for region in self.regions
        )
        return self.mixer, *given, self.text.embeds.shape[1:], *regions

    @staticmethod
    def cat(prompts: "list[EncodedPrompt]", counts: list[int]) -> "EncodedPrompt":
        """The prompts of several pictures, a row for each picture; a part that all share stays one row.

        prompts   of one T5 and one `form`
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

        regions = tuple(
            Region(
                EncodedPrompt.cat([prompt.regions[k].prompt for prompt in prompts], counts),
                region.mask,
            )
            for k, region in enumerate(prompts[0].regions)
        )
        return replace(prompts[0], **{name: joined(name) for name in PARTS}, regions=regions)

    @property
    def positives(self) -> list[Positive]:
        """The positive prompts that have a share of the prediction somewhere."""
        own = [Positive(self.text, self.style or self.text, 1.0)]
        if self.second is not None and self.mixer:
            pooled = self.style or self.second
            own = [own[0]._replace(share=1 - self.mixer)]
            own.append(Positive(self.second, pooled, self.mixer))
        found: list[Positive] = []
        for prompts, mask in zip(
            [own, *(r.prompt.positives for r in self.regions)], self._masks(), strict=True
        ):
            found += [each._replace(mask=product(each.mask, mask)) for each in prompts]
        return [positive.expanded() for positive in found if positive.acts]

    def _parts(self) -> dict[str, TextEmbedding | None]:
        return {name: getattr(self, name) for name in PARTS}

    def _masks(self) -> list[Tensor | None]:
        """What is this prompt's and what is each region's of every pixel: together 1; None = all."""
        if not self.regions:
            return [None]
        sizes = [region.mask.shape for region in self.regions]
        size = max(height for height, _ in sizes), max(width for _, width in sizes)
        masks = torch.stack([fitted(region.mask, size) for region in self.regions])
        masks = masks / masks.sum(0).clamp(min=1)
        return [*(1 - masks.sum(0, keepdim=True)).clamp(min=0), *masks]


def product(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Two masks as one, as large as the larger; None = 1 everywhere.

    mask, other   h w
    """
    if mask is None or other is None:
        return other if mask is None else mask
    size = max(mask.shape[0], other.shape[0]), max(mask.shape[1], other.shape[1])
    return fitted(mask, size) * fitted(other, size)


def fitted(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask in another size; masks that sum to one everywhere still do.

    mask   h w
    size   height and width of the result
    """
    if mask.shape == size:
        return mask
    return F.interpolate(mask[None, None], size, mode="bilinear", antialias=True)[0, 0]
