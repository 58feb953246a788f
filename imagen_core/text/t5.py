"""T5's encoder, from weights that may be compressed.

Every activation is float32; only the products with the weights are computed in the dtype that is asked
for. float16 is a dtype of storage alone: T5-XXL's feed-forward overflows in it, so its products are
float32. Names of tensors are Hugging Face's.

T5, arXiv:1910.10683; v1.1 (gated GELU), arXiv:2002.05202.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .matrix import Matrix, Table

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
Shapes = Mapping[str, tuple[int, ...]]

TABLE = "shared.weight"
FINAL_NORM = "encoder.final_layer_norm.weight"
BLOCK = "encoder.block.{}.layer."
ATTENTION = "0.SelfAttention.{}.weight"
BIAS = BLOCK.format(0) + ATTENTION.format("relative_attention_bias")
ATTENTION_NORM, FEED_FORWARD_NORM = "0.layer_norm.weight", "1.layer_norm.weight"
FEED_FORWARD = "1.DenseReluDense.{}.weight"


@dataclass(frozen=True)
class T5Config:
    """Shape of an encoder.

    vocab         rows of the table of tokens
    width         of the states
    layers        blocks
    heads         of attention
    head_dim      width of one head
    hidden        width inside the feed-forward
    gated         whether the feed-forward has a gate, as in v1.1
    activation    a key of ACTIVATIONS
    buckets       of relative positions
    max_distance  from which on positions share a bucket
    epsilon       of the norms
    """

    vocab: int
    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    gated: bool = True
    activation: str = "gelu_new"
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(ACTIVATIONS)}, got {self.activation!r}"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that an encoder of this shape consists of."""
        inner = self.heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            TABLE: (self.vocab, self.width),
            BIAS: (self.buckets, self.heads),
            FINAL_NORM: (self.width,),
        }
        for k in range(self.layers):
            block = BLOCK.format(k)
            shapes |= {block + name: (self.width,) for name in (ATTENTION_NORM, FEED_FORWARD_NORM)}
            shapes |= {block + ATTENTION.format(name): (inner, self.width) for name in "qkv"}
            shapes[block + ATTENTION.format("o")] = (self.width, inner)
            for name in ("wi_0", "wi_1") if self.gated else ("wi",):
                shapes[block + FEED_FORWARD.format(name)] = (self.hidden, self.width)
            shapes[block + FEED_FORWARD.format("wo")] = (self.width, self.hidden)
        return shapes

    @staticmethod
    def infer(shapes: Shapes) -> "T5Config":
        """The shape that an encoder's tensors show; KeyError where one of them is not there.

        shapes   by name
        """
        first = BLOCK.format(0)
        gated = first + FEED_FORWARD.format("wi_0") in shapes
        inner, width = shapes[first + ATTENTION.format("q")]
        buckets, heads = shapes[BIAS]
        layers = [name.split(".")[2] for name in shapes if name.startswith("encoder.block.")]
        return T5Config(
            vocab=shapes[TABLE][0],
            width=width,
            layers=1 + max(int(k) for k in layers),
            heads=heads,
            head_dim=inner // heads,
            hidden=shapes[first + FEED_FORWARD.format("wi_0" if gated else "wi")][0],
            gated=gated,
            activation="gelu_new" if gated else "relu",
            buckets=buckets,
        )


class Norm(nn.Module):
    """Root-mean-square norm, without mean or bias."""

    def __init__(self, weight: Tensor, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:  # b n d, float32
        return self.weight * (x * (x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt())


class PositionBias(nn.Module):
    """What is added to the scores of attention for each distance, shared by all blocks."""

    def __init__(self, weight: Tensor, max_distance: int):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)  # buckets heads
        self.max_distance = max_distance

    def forward(self, length: int) -> Tensor:  # 1 heads length length
        buckets = relative_buckets(length, len(self.weight), self.max_distance)
        return rearrange(self.weight[buckets.to(self.weight.device)], "n m h -> 1 h n m")


class Block(nn.Module):
    """Self-attention and a feed-forward, each behind a norm and added to what came in."""

    def __init__(
        self,
        config: T5Config,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], Tensor],
        prefix: str,
    ):
        super().__init__()
        self.config = config
        self.attention_norm = Norm(vector(prefix + ATTENTION_NORM), config.epsilon)
        self.q, self.k, self.v, self.o = (matrix(prefix + ATTENTION.format(n)) for n in "qkvo")
        self.feed_forward_norm = Norm(vector(prefix + FEED_FORWARD_NORM), config.epsilon)
        names = ("wi_0", "wi_1") if config.gated else ("wi",)
        self.inputs = nn.ModuleList(matrix(prefix + FEED_FORWARD.format(name)) for name in names)
        self.wo = matrix(prefix + FEED_FORWARD.format("wo"))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # b n d, b heads n n
        y = self.attention_norm(x)
        q, k, v = (
            rearrange(part(y), "b n (h d) -> b h n d", h=self.config.heads)
            for part in (self.q, self.k, self.v)
        )
        # T5 folds the scale of the scores into its weights.
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = x + self.o(rearrange(h, "b h n d -> b n (h d)"))
        y = self.feed_forward_norm(x)
        inner, *gate = (part(y) for part in self.inputs)
        inner = ACTIVATIONS[self.config.activation](inner)
        return x + self.wo(inner * gate[0] if gate else inner)


class T5Encoder(nn.Module):
    """Token numbers and their mask to states: b n -> b n width, float32."""

    def __init__(
        self,
        config: T5Config,
        matrix: Callable[[str], Matrix],
        vector: Callable[[str], Tensor],
        table: Table,
    ):
        """Take each weight by its name.

        config   shape
        matrix   name -> the weight of a linear layer
        vector   name -> a norm's weight or the table of position biases, float32
        table    of token embeddings
        """
        super().__init__()
        self.config = config
        self.table = table
        self.position_bias = PositionBias(vector(BIAS), config.max_distance)
        self.blocks = nn.ModuleList(
            Block(config, matrix, vector, BLOCK.format(k)) for k in range(config.layers)
        )
        self.final_norm = Norm(vector(FINAL_NORM), config.epsilon)

    @property
    def dtype(self) -> torch.dtype:
        """What the products with the weights are computed in."""
        return self.table.compute

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.position_bias.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of the tokens; padding is not attended to, but has states of its own.

        input_ids        b n, token numbers
        attention_mask   b n, 0 = padding
        """
        bias = self.position_bias(input_ids.shape[1])
        padding = attention_mask[:, None, None, :] == 0
        bias = bias.masked_fill(padding, torch.finfo(bias.dtype).min)
        x = self.table(input_ids)
        for block in self.blocks:
            x = block(x, bias)
        return self.final_norm(x)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """The bucket of each key as each query sees it: n n, int64.

    length         n, tokens
    buckets        half of them for keys before the query, half for those behind
    max_distance   from which on distances share the last bucket

    Near distances have a bucket each, far ones share them on a logarithmic scale.
    """
    position = torch.arange(length)
    offset = position[None, :] - position[:, None]
    distance = offset.abs()
    half = buckets // 2
    exact = half // 2
    ratio = (distance.clamp_min(1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)
