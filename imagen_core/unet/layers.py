"""The parts that both U-Nets are built from: embeddings, residual blocks, resampling, prepared text.

References: ADM, arXiv:2105.05233 (residual blocks that resample inside, scale-shift norm); Imagen,
arXiv:2205.11487, appendices B.1 and F.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.convolution import Conv2d
from ..kernels.inplace import add_, scale_
from ..kernels.norm import ScaleShift, norm_activate
from ..text.embedding import TextEmbedding
from .attention import AttentionPool, KeysValues, TextAttention, text_keys_values

Activation = Literal["gelu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
MAY_BE_NONE = ("stem_blocks", "num_res_blocks", "pixel_channels")
MOST_LEVELS, MOST_BLOCKS, MOST_WIDTH, MOST_PATCH = 12, 512, 2**16, 64


def check_shape(config: Any) -> None:
    """Raise ValueError unless a network's sizes are whole numbers within bounds that fit each other.

    config   an ADMConfig or an EfficientConfig, perhaps of a file that nobody vouches for
    """
    for field in fields(config):
        check_field(field.name, field.type, getattr(config, field.name))
    levels = {len(config.channels), len(config.num_res_blocks), len(config.attention)}
    if len(levels) != 1:
        raise ValueError(
            "channels, num_res_blocks and attention must have one entry a level each, got "
            f"{len(config.channels)}, {len(config.num_res_blocks)} and {len(config.attention)}"
        )
    stem = getattr(config, "stem_blocks", 0)
    bounds = {
        "levels": (len(config.channels), 1, MOST_LEVELS),
        # A decoder's level has one block more, so that of an ADM network may be all that a level has.
        "num_res_blocks": (min(config.num_res_blocks), 1 - hasattr(config, "patch"), MOST_BLOCKS),
        "residual blocks": (sum(config.num_res_blocks) + stem, 1, MOST_BLOCKS),
        "patch": (getattr(config, "patch", 1), 1, MOST_PATCH),
    }
    for name, (value, least, most) in bounds.items():
        if not least <= value <= most:
            raise ValueError(f"{name}: expected from {least} to {most}, got {value}")
    multiples = [("channels", width, "groups", config.groups) for width in config.channels]
    multiples += [("text_dim", config.text_dim, "pool_heads", config.pool_heads)]
    if any(config.attention) or hasattr(config, "lowres"):  # the middle of an ADM network attends
        multiples += [("context_dim", config.context_dim, "groups", config.groups)]
    for name, width, of, size in multiples:
        if width % size:
            raise ValueError(f"{name} must be a multiple of {of} {size}, got {width}")


def check_field(name: str, kind: Any, value: Any) -> None:
    """Raise ValueError unless a field of a shape has its type and, where it is a size, is within bounds.

    kind    int, float, bool, a tuple of one of them, or the names of activations
    """
    if kind in (tuple[int, ...], tuple[bool, ...]):
        if not isinstance(value, tuple) or not value:
            raise ValueError(f"{name}: expected one entry a level, got {value!r}")
        for entry in value:
            check_field(name, get_args(kind)[0], entry)
    elif kind in (int, bool):
        if type(value) is not kind:
            raise ValueError(
                f"{name}: expected {'true or false' if kind is bool else 'a whole number'}, "
                f"got {value!r}"
            )
        if kind is int and not 0 <= value <= MOST_WIDTH:
            raise ValueError(f"{name}: expected a size up to {MOST_WIDTH}, got {value}")
        if kind is int and value == 0 and name not in MAY_BE_NONE:
            raise ValueError(f"{name}: expected at least 1, got 0")
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e3:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    elif value not in ACTIVATIONS:
        raise ValueError(f"{name} must be one of {sorted(ACTIVATIONS)}, got {value!r}")


def activation(name: Activation) -> nn.Module:
    """A new activation module: exact (erf) GELU or SiLU."""
    return ACTIVATIONS[name]()


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with weight and bias set to zero, so that its block starts as identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of t at dim / 2 geometrically spaced frequencies from 1 to 1/10000.

    t        (b,), noise level in 0..1000
    returns  b dim, float32
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half
    )
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LevelEmbedding(nn.Module):
    """A noise level (of the image, or of the low-resolution conditioning) as a vector: b -> b out."""

    def __init__(self, dim: int, out_dim: int, act: Activation):
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, out_dim)
        self.act = activation(act)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, t: Tensor) -> Tensor:
        embedding = sinusoidal_embedding(t, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(self.act(self.linear_1(embedding)))


class PooledText(nn.Module):
    """The text as one vector that is added to the time embedding: b n text_dim -> b out.

    Layer norm, attention pooling, projection, layer norm: Imagen, arXiv:2205.11487, section 2.5, finds that
    layer norm in the pooling "considerably" helps.
    """

    def __init__(self, text_dim: int, out_dim: int, heads: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(text_dim)
        self.pool = AttentionPool(text_dim, heads)
        self.proj = nn.Linear(text_dim, out_dim)
        self.norm_2 = nn.LayerNorm(out_dim)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.norm_2(self.proj(self.pool(self.norm_1(embeds))))


@dataclass(frozen=True)
class TextContext:
    """What a U-Net needs of a prompt, computed once by `unet.prepare(text)`.

    pooled        p d, added to the time embedding
    keys_values   one pair of p heads n d for each attention layer, in the order of evaluation

    A network that sees b pictures takes row j of p for the pictures from j * b / p on: what pictures share
    is not copied for each.
    """

    pooled: Tensor
    keys_values: tuple[KeysValues, ...]

    def __len__(self) -> int:
        return self.pooled.shape[0]

    def pooled_for(self, batch: int) -> Tensor:
        """The pooled text of each picture: b d.

        batch   a multiple of the rows
        """
        return self.pooled.repeat_interleave(batch // len(self), dim=0)

    def expand(self, batch: int) -> "TextContext":
        """The context of one prompt for `batch` images (views), or itself when it has that many."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"a context of {len(self)} prompts does not fit {batch} images")
        return TextContext(
            self.pooled.expand(batch, -1),
            tuple(
                (k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))
                for k, v in self.keys_values
            ),
        )

    def cycled(self, batch: int) -> "TextContext":
        """One row a picture, over and over where prompts are fewer, the first ones where more."""
        rows = torch.arange(batch, device=self.pooled.device) % len(self)
        return TextContext(
            self.pooled[rows], tuple((k[rows], v[rows]) for k, v in self.keys_values)
        )

    @staticmethod
    def cat(contexts: "list[TextContext]") -> "TextContext":
        """All rows of the given contexts, in order, as one context."""
        if len(contexts) == 1:
            return contexts[0]
        layers = zip(*(context.keys_values for context in contexts), strict=True)
        return TextContext(
            torch.cat([context.pooled for context in contexts]),
            tuple(
                (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
                for layer in layers
            ),
        )


Modulation = tuple[ScaleShift, ...]  # of every residual block of a network, by its index


class Deep:
    """Features of a network's lower levels, kept from one evaluation for those that follow.

    levels     the highest levels, which every evaluation computes
    features   b c h w, what comes up from the levels below; None = the next evaluation computes them

    DeepCache, arXiv:2312.00858.
    """

    def __init__(self, levels: int):
        self.levels = levels
        self.features: Tensor | None = None

    def or_made(self, below: int, make: Callable[[], Tensor]) -> Tensor:
        """What comes up to the level above `below`: kept features, or new ones.

        below   number of the level that would run next, 0 = the highest
        make    runs it and all below
        """
        if below != self.levels:
            return make()
        if self.features is None:
            self.features = make()
        return self.features


def number_layers(unet: nn.Module) -> None:
    """Tell residual blocks and text attentions their places, by which they find what is theirs.

    unet   registers its layers in the order of evaluation
    """
    for kind in (ResBlock, TextAttention):
        for index, layer in enumerate(m for m in unet.modules() if isinstance(m, kind)):
            layer.index = index


def residual_blocks(unet: Any) -> "list[ResBlock]":
    """The residual blocks of a network, by their index."""
    return [module for module in unet.modules() if isinstance(module, ResBlock)]


def modulations(unet: Any, t: Tensor, pooled: Tensor, aug: Tensor | None) -> list[Modulation]:
    """Scale and shift of every residual block at several noise levels, in one matrix product a block.

    unet      has embedded(t, pooled, aug)
    t         (s,), noise levels as the sinusoid sees them, 0..1000
    pooled    b time_dim, pooled text of each picture
    aug       (b,), noise level of the low-resolution conditioning, or None
    returns   one a level
    """
    levels = len(t)
    augs = None if aug is None else aug.repeat(levels)
    embedding = unet.embedded(t.repeat_interleave(len(pooled)), pooled.repeat(levels, 1), augs)
    blocks = residual_blocks(unet)
    made = [[part.chunk(levels) for part in block.scale_shift(embedding)] for block in blocks]
    return [tuple((scale[i], shift[i]) for scale, shift in made) for i in range(levels)]


def runs_on(unet: Any) -> torch.device:
    """Where a network computes: where its weights are, but for a host that brings them as they are used."""
    told = unet.__dict__.get("runs_on")
    return next(unet.parameters()).device if told is None else told


class TextUNet(nn.Module):
    """What both U-Nets do with a prompt: `prepare` it once, then evaluate."""

    config: Any
    conv_in: Conv2d
    pooled_text: PooledText
    text_proj: nn.Module

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.config.size_multiple

    def prepare(self, text: TextEmbedding, pooled: TextEmbedding | None = None) -> TextContext:
        """Pooled text and every layer's text keys and values: all that evaluations need of a prompt.

        text     embeds b n text_dim, attended to
        pooled   the same shape, what the pooled vector is made from; None = text
        """
        embeds = text.embeds.to(runs_on(self), self.conv_in.weight.dtype)
        source = embeds if pooled is None else pooled.embeds.to(embeds)
        return TextContext(self.pooled_text(source), text_keys_values(self, self.text_proj(embeds)))


class Resample(nn.Module):
    """Halve by averaging 2x2, double by repeating, or leave alone; nothing learned."""

    def __init__(self, direction: Literal["down", "up"] | None):
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return F.avg_pool2d(x, 2)
        if self.direction == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x


class ResBlock(nn.Module):
    """Two convolutions with scale-shift norm by the embedding, and a residual path.

    GN, act, resample, conv; GN * (1 + scale) + shift, act, conv; plus the (resampled) input, the sum
    multiplied by `residual_scale`. `resample` acts on both branches between the first activation and
    the first convolution ("biggan" blocks of ADM).
    """

    index = 0  # among the network's residual blocks

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        *,
        groups: int,
        act: Activation,
        resample: Literal["down", "up"] | None = None,
        activate_embedding: bool = True,
        residual_scale: float = 1.0,
    ):
        super().__init__()
        self.residual_scale = residual_scale
        self.act = activation(act)
        self.resample = Resample(resample)
        self.norm_1 = nn.GroupNorm(groups, in_channels)
        self.conv_1 = Conv2d(in_channels, out_channels, 3, padding=1, doubles=resample == "up")
        self.embedding_act = activation(act) if activate_embedding else nn.Identity()
        self.embedding = nn.Linear(embedding_dim, 2 * out_channels)
        self.norm_2 = nn.GroupNorm(groups, out_channels)
        self.conv_2 = zeroed(Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else Conv2d(in_channels, out_channels, 1)

    def scale_shift(self, embedding: Tensor) -> ScaleShift:
        """What the second norm is scaled and shifted by.

        embedding   b embedding_dim
        """
        both = self.embedding(self.embedding_act(embedding))[:, :, None, None]
        scale, shift = both.chunk(2, dim=1)
        return scale, shift

    def forward(self, x: Tensor, level: Tensor | Modulation) -> Tensor:
        """The block's features: b out_channels h w.

        x       b c h w
        level   b embedding_dim, or what `modulations` made of it
        """
        h = norm_activate(x, self.norm_1, self.act)
        h = self.conv_1(h if self.conv_1.doubles else self.resample(h))
        own = self.scale_shift(level) if isinstance(level, Tensor) else level[self.index]
        h = norm_activate(h, self.norm_2, self.act, own)
        h = add_(self.conv_2(h), self.skip(self.resample(x)))
        return h if self.residual_scale == 1.0 else scale_(h, self.residual_scale)
