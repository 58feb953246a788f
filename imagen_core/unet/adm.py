"""The paper's base U-Net: ADM blocks that resample inside, text keys and values beside the image's.

DeepFloyd IF is the same graph: stage I as it stands, stage II with `lowres`, without
`self_attention`, with `activate_embedding_once` and `residual_scale` 0.7071.

Imagen, arXiv:2205.11487, appendix F.1; ADM, arXiv:2105.05233.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.convolution import Conv2d
from ..kernels.norm import norm_activate
from .attention import KeysValues, TextAttention
from .layers import (
    Activation,
    Deep,
    LevelEmbedding,
    Modulation,
    PooledText,
    ResBlock,
    TextContext,
    TextUNet,
    activation,
    check_shape,
    number_layers,
    zeroed,
)


@dataclass(frozen=True)
class ADMConfig:
    """Shape of an `ADMUNet`, one entry a level in the tuples, highest resolution first.

    channels                  width of each level; the first is also the sinusoid's
    num_res_blocks            residual blocks of each level's encoder half (the decoder has one more)
    attention                 whether the level's blocks are followed by text attention
    text_dim, context_dim     width of the text encoder's states, and of the text that layers see
    time_dim                  width of the time embedding
    head_dim, pool_heads      width of an attention head, and heads of the text pooling
    groups                    of the group norms
    out_channels              3, or 6 where the net also predicts the variance
    activation                of all blocks
    lowres                    the net sees a low-resolution image and the level of its noise
    patch                     pixels of patch x patch squares enter and leave as channels, so that the
                              highest level runs at 1 / patch of the resolution (arXiv:2301.11093, 2.3)
    pixel_channels            width of two convolutions at the picture's own resolution, which join what
                              patches leave apart; 0 = none
    self_attention            whether image positions attend to each other where they attend to the text
    activate_embedding_once   the summed embedding is activated once, not in every block
    residual_scale            of every residual block's sum
    text_proj                 the text is projected to context_dim though it has that width; where the
                              widths differ it always is
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    text_dim: int
    context_dim: int
    time_dim: int
    head_dim: int = 64
    pool_heads: int = 64
    groups: int = 32
    out_channels: int = 3
    activation: Activation = "gelu"
    lowres: bool = False
    patch: int = 1
    pixel_channels: int = 0
    self_attention: bool = True
    activate_embedding_once: bool = False
    residual_scale: float = 1.0
    text_proj: bool = False

    def __post_init__(self):
        check_shape(self)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def picture_multiple(self) -> int:
        """The same of a whole picture, which is not padded."""
        return self.size_multiple


class Block(nn.Module):
    """A residual block and, where the level has it, text attention."""

    def __init__(
        self,
        config: ADMConfig,
        in_channels: int,
        out_channels: int,
        attention: bool = False,
        resample: Literal["down", "up"] | None = None,
    ):
        super().__init__()
        self.res = ResBlock(
            in_channels,
            out_channels,
            config.time_dim,
            groups=config.groups,
            act=config.activation,
            resample=resample,
            activate_embedding=not config.activate_embedding_once,
            residual_scale=config.residual_scale,
        )
        self.attention = (
            TextAttention(
                out_channels,
                config.context_dim,
                config.head_dim,
                config.groups,
                config.self_attention,
            )
            if attention
            else None
        )

    def forward(self, x: Tensor, level: Tensor | Modulation, texts: Sequence[KeysValues]) -> Tensor:
        x = self.res(x, level)
        return x if self.attention is None else self.attention(x, texts[self.attention.index])


def encoder(config: ADMConfig) -> tuple[nn.ModuleList, list[int]]:
    """The encoder's levels (blocks, then a down-sampling block but at the lowest), and skip widths."""
    levels = nn.ModuleList()
    width = config.channels[0]
    skips = [width]
    for level, channels in enumerate(config.channels):
        blocks = nn.ModuleList()
        for _ in range(config.num_res_blocks[level]):
            blocks.append(Block(config, width, channels, config.attention[level]))
            width = channels
            skips.append(width)
        if level < len(config.channels) - 1:
            blocks.append(Block(config, width, width, resample="down"))
            skips.append(width)
        levels.append(blocks)
    return levels, skips


def decoder(config: ADMConfig, skips: list[int]) -> nn.ModuleList:
    """The decoder's levels, lowest resolution first; each block takes one skip from the end."""
    levels = nn.ModuleList()
    width = config.channels[-1]
    skips = list(skips)
    for level, channels in reversed(list(enumerate(config.channels))):
        blocks = nn.ModuleList()
        for _ in range(config.num_res_blocks[level] + 1):
            blocks.append(Block(config, width + skips.pop(), channels, config.attention[level]))
            width = channels
        levels.append(blocks)
    return levels


class PixelOutput(nn.Module):
    """What the picture's own resolution adds to an output made of patches; at first nothing."""

    def __init__(self, config: ADMConfig):
        super().__init__()
        width, pictures = config.pixel_channels, 6 if config.lowres else 3
        self.unfold = Conv2d(config.channels[0], width * config.patch**2, 3, padding=1)
        self.act = activation(config.activation)
        self.join = Conv2d(width + pictures, width, 3, padding=1)
        self.out = zeroed(Conv2d(width, config.out_channels, 3, padding=1))
        self.patch = config.patch

    def forward(self, features: Tensor, x: Tensor) -> Tensor:
        """b out_channels h w.

        features   b channels h/patch w/patch, what the output is made from
        x          b 3 h w, or 6: what the network was given
        """
        pixels = self.act(F.pixel_shuffle(self.unfold(features), self.patch))
        return self.out(self.act(self.join(torch.cat([pixels, x], dim=1))))


class ADMUNet(TextUNet):
    """U-Net of ADM blocks with text attention."""

    def __init__(self, config: ADMConfig):
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        self.time_embedding = LevelEmbedding(first, config.time_dim, config.activation)
        self.aug_embedding = (
            LevelEmbedding(first, config.time_dim, config.activation) if config.lowres else None
        )
        self.pooled_text = PooledText(config.text_dim, config.time_dim, config.pool_heads)
        projected = config.text_proj or config.text_dim != config.context_dim
        self.text_proj = (
            nn.Linear(config.text_dim, config.context_dim) if projected else nn.Identity()
        )
        self.embedding_act = (
            activation(config.activation) if config.activate_embedding_once else nn.Identity()
        )
        pixels = config.patch**2
        self.conv_in = Conv2d((6 if config.lowres else 3) * pixels, first, 3, padding=1)
        self.down, skips = encoder(config)
        self.middle = nn.ModuleList(
            [Block(config, last, last, attention=True), Block(config, last, last)]
        )
        self.up = decoder(config, skips)
        self.upsample = nn.ModuleList(
            Block(config, width, width, resample="up") for width in reversed(config.channels[1:])
        )
        self.norm_out = nn.GroupNorm(config.groups, first)
        self.act_out = activation(config.activation)
        self.conv_out = zeroed(Conv2d(first, config.out_channels * pixels, 3, padding=1))
        self.pixels = PixelOutput(config) if config.pixel_channels else None
        number_layers(self)

    def embedded(self, t: Tensor, pooled: Tensor, aug: Tensor | None = None) -> Tensor:
        """Noise levels and pooled text as one vector a picture: b time_dim.

        t, aug   (b,), 0..1000
        pooled   b time_dim
        """
        embedding = self.time_embedding(t) + pooled
        if self.aug_embedding is not None:
            assert aug is not None, "this network needs lowres and aug"
            embedding = embedding + self.aug_embedding(aug)
        return self.embedding_act(embedding)

    def forward(
        self,
        x: Tensor,
        t: Tensor | Modulation,
        context: TextContext,
        lowres: Tensor | None = None,
        aug: Tensor | None = None,
        deep: Deep | None = None,
    ) -> Tensor:
        """The network's output for noisy images, in their resolution: b out_channels h w.

        x         b 3 h w, unit-variance noisy images
        t         (b,), noise level as the sinusoid sees it, 0..1000; or what `modulations` made of it
        context   prepared text of b rows, or of fewer that divide b
        lowres    b 3 h w in about [-1, 1], up-sampled and augmented conditioning
        aug       (b,), noise level of lowres, 0..1000
        deep      keeps what the lower levels made, or gives it back; None = all levels run
        """
        level = t
        if isinstance(t, Tensor):
            level = self.embedded(t, context.pooled_for(len(x)), aug)
        if self.aug_embedding is not None:
            assert lowres is not None, "this network needs lowres and aug"
            x = torch.cat([x, lowres], dim=1)
        features = self.conv_in(F.pixel_unshuffle(x, self.config.patch))
        features = self.run_level(0, features, level, context.keys_values, deep)
        features = norm_activate(features, self.norm_out, self.act_out)
        output = F.pixel_shuffle(self.conv_out(features), self.config.patch)
        return output if self.pixels is None else output + self.pixels(features, x)

    def run_level(
        self,
        i: int,
        x: Tensor,
        level: Tensor | Modulation,
        texts: Sequence[KeysValues],
        deep: Deep | None,
    ) -> Tensor:
        """Level i and all below it: features in the resolution of the level above, of i itself for 0.

        x   b c h w, in the resolution of level i
        """
        own = list(cast(nn.ModuleList, self.down[i]))
        lowest = i == len(self.down) - 1
        down = None if lowest else own.pop()
        skips = [x]
        for block in own:
            x = block(x, level, texts)
            skips.append(x)
        if down is None:
            for block in self.middle:
                x = block(x, level, texts)
        else:
            above = x

            def below() -> Tensor:
                return self.run_level(i + 1, down(above, level, texts), level, texts, deep)

            x = below() if deep is None else deep.or_made(i + 1, below)
        for block in cast(nn.ModuleList, self.up[-1 - i]):
            x = block(torch.cat([x, skips.pop()], dim=1), level, texts)
        return self.upsample[-i](x, level, texts) if i else x
