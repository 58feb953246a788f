"""T5's encoder, of weights that may stay compressed.

Every activation is float32; only the products with the weights are computed in the dtype that is asked
for. float16 is a dtype of storage alone: T5-XXL's feed-forward overflows in it, so its products are
float32. Names of modules and tensors are Hugging Face's, whose own class takes two seconds to import; the
tests hold the two against each other.

T5, arXiv:1910.10683; v1.1 (gated GELU), arXiv:2002.05202; RMS norm, arXiv:1910.07467.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..weights.quantised import Matrix, Table

MOST = dict(vocab=2**24, width=2**16, layers=256, heads=2**10, head_dim=2**12, hidden=2**20)
MOST |= dict(buckets=2**12, max_distance=2**20)
Shapes = Mapping[str, tuple[int, ...]]

TABLE = "shared.weight"
FINAL_NORM = "encoder.final_layer_norm.weight"
BLOCK = "encoder.block.{}.layer."
ATTENTION = "0.SelfAttention.{}.weight"
BIAS = BLOCK.format(0) + ATTENTION.format("relative_attention_bias")
ATTENTION_NORM, FEED_FORWARD_NORM = "0.layer_norm.weight", "1.layer_norm.weight"
FEED_FORWARD = "1.DenseReluDense.{}.weight"
FIRST = "block.0.layer.0.SelfAttention"  # has the position biases
VECTORS = ("norm.weight", "relative_attention_bias.weight")


def gelu_new(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, written out: torch's own differs in the last bit.

    arXiv:1606.08415, section 2.
    """
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))


ACTIVATIONS = {"gelu_new": gelu_new, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}


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
    activation    one of ACTIVATIONS
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
                f"activation must be one of {list(ACTIVATIONS)}, got {self.activation!r}"
            )
        for name, most in MOST.items():
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= most:
                raise ValueError(f"{name}: expected a whole number from 1 to {most}, got {size!r}")
        if self.buckets < 4 or self.max_distance <= self.buckets // 4:
            raise ValueError(
                f"buckets: expected at least 4, and max_distance over a quarter of them, got "
                f"{self.buckets} and {self.max_distance}"
            )
        if not isinstance(self.gated, bool):
            raise ValueError(f"gated: expected true or false, got {self.gated!r}")
        if not isinstance(self.epsilon, (int, float)) or not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon: expected a small number, got {self.epsilon!r}")

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
        """The shape that an encoder's tensors show; KeyError where one of them is not there."""
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


class T5Encoder(nn.Module):
    """Token numbers to states; made without weights, by `t5_encoder`."""

    shared: Table

    def __init__(self, config: T5Config):
        super().__init__()
        self.encoder = Blocks(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States of every token, those of padding too: b n width, float32.

        input_ids        b n
        attention_mask   b n, 0 = padding, which is not attended to
        """
        return self.encoder(self.shared(input_ids), attention_mask)


class Blocks(nn.Module):
    """All blocks; the first one's position biases serve every one."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.block = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.get_submodule(FIRST).add_module("relative_attention_bias", PositionBiases(config))
        self.final_layer_norm = RMSNorm(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # b n width, b n
        bias = self.get_submodule(FIRST + ".relative_attention_bias")(x.shape[1])
        lowest = torch.finfo(bias.dtype).min
        bias = bias + torch.where(mask.bool(), 0.0, lowest)[:, None, None, :]
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class PositionBiases(nn.Module):
    """What is added to the score of a query and a key by the distance between them."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.buckets, config.heads))
        self.max_distance = config.max_distance

    def forward(self, length: int) -> Tensor:  # heads length length
        buckets = position_buckets(length, len(self.weight), self.max_distance)
        return rearrange(self.weight[buckets.to(self.weight.device)], "q k heads -> heads q k")


class Block(nn.Module):
    """Attention, then the feed-forward."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config), FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # b n width, b heads n n
        return self.layer[1](self.layer[0](x, bias))


class AttentionLayer(nn.Module):
    """Attention of normalised tokens, added to them."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.layer_norm = RMSNorm(config)
        self.SelfAttention = SelfAttention(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # b n width, b heads n n
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nn.Module):
    """The feed-forward of normalised tokens, added to them."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.layer_norm = RMSNorm(config)
        self.DenseReluDense = (GatedFeedForward if config.gated else FeedForward)(config)

    def forward(self, x: Tensor) -> Tensor:  # b n width
        return x + self.DenseReluDense(self.layer_norm(x))


class SelfAttention(nn.Module):
    """Attention of all tokens to the real ones, scores not scaled."""

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix

    def __init__(self, config: T5Config):
        super().__init__()
        self.head_dim = config.head_dim

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:  # b n width, b heads n n
        q, k, v = (
            rearrange(part(x), "b n (heads d) -> b heads n d", d=self.head_dim)
            for part in (self.q, self.k, self.v)
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(rearrange(found, "b heads n d -> b n (heads d)"))


class FeedForward(nn.Module):
    """Two layers with an activation between them."""

    wi: Matrix
    wo: Matrix

    def __init__(self, config: T5Config):
        super().__init__()
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:  # b n width
        return self.wo(self.act(self.wi(x)))


class GatedFeedForward(nn.Module):
    """v1.1's: the activated first half is multiplied by a second one."""

    wi_0: Matrix
    wi_1: Matrix
    wo: Matrix

    def __init__(self, config: T5Config):
        super().__init__()
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:  # b n width
        return self.wo(self.act(self.wi_0(x)) * self.wi_1(x))


class RMSNorm(nn.Module):
    """x divided by the root of its mean square, no mean taken off; times a weight."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.width))
        self.epsilon = config.epsilon

    def forward(self, x: Tensor) -> Tensor:  # b n width
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon))


def position_buckets(length: int, buckets: int, max_distance: int) -> Tensor:
    """Which row of the position biases a query uses for a key: length length, query first.

    Half of the buckets are for keys after the query. Near distances have one each; farther ones share, the
    wider the farther, up to max_distance. arXiv:1910.10683, section 2.1.
    """
    place = torch.arange(length)
    distance = place[None, :] - place[:, None]
    half, far = buckets // 2, distance.abs()
    exact = half // 2
    scale = math.log(max_distance / exact)
    shared = torch.log(far.clamp_min(1).float() / exact) / scale * (half - exact)
    shared = (exact + shared.long()).clamp_max(half - 1)
    return torch.where(far < exact, far, shared) + half * (distance > 0)


def t5_encoder(
    config: T5Config, matrix: Callable[[str], Matrix], vector: Callable[[str], Tensor], table: Table
) -> T5Encoder:
    """An encoder that takes each weight by its name.

    matrix   name -> the weight of a linear layer
    vector   name -> a norm's weight or the table of position biases, float32
    table    of token embeddings
    """
    with torch.device("meta"):
        model = T5Encoder(config)
    model.shared = table
    vectors = {}
    for name in config.shapes():
        owner, _, own = name.removesuffix(".weight").rpartition(".")
        if name.endswith(VECTORS):
            vectors[name] = vector(name)
        elif name != TABLE:
            setattr(model.get_submodule(owner), own, matrix(name))
    model.load_state_dict(vectors, strict=False, assign=True)
    return model.eval().requires_grad_(False)
