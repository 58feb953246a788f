"""T5's encoder: Hugging Face's, its linear layers replaced by weights that may stay compressed.

Every activation is float32; only the products with the weights are computed in the dtype that is asked
for. float16 is a dtype of storage alone: T5-XXL's feed-forward overflows in it, so its products are
float32. Names of tensors are Hugging Face's.

T5, arXiv:1910.10683; v1.1 (gated GELU), arXiv:2002.05202.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.quantised import Matrix, Table

ACTIVATIONS = ("gelu_new", "gelu", "relu", "silu")
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
VECTORS = ("norm.weight", "relative_attention_bias.weight")


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
        if not isinstance(self.gated, bool):
            raise ValueError(f"gated: expected true or false, got {self.gated!r}")
        if not isinstance(self.epsilon, (int, float)) or not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon: expected a small number, got {self.epsilon!r}")

    def to_hugging_face(self) -> Any:
        """The same as transformers.T5Config."""
        from transformers import T5Config as HuggingFaceConfig

        return HuggingFaceConfig(
            vocab_size=self.vocab,
            d_model=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            d_kv=self.head_dim,
            d_ff=self.hidden,
            feed_forward_proj=f"gated-{self.activation}" if self.gated else self.activation,
            relative_attention_num_buckets=self.buckets,
            relative_attention_max_distance=self.max_distance,
            layer_norm_epsilon=self.epsilon,
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


def t5_encoder(
    config: T5Config,
    matrix: Callable[[str], Matrix],
    vector: Callable[[str], Tensor],
    table: Table,
) -> nn.Module:
    """A transformers.T5EncoderModel, made without memory of its own, that takes each weight by its name.

    matrix   name -> the weight of a linear layer
    vector   name -> a norm's weight or the table of position biases, float32
    table    of token embeddings

    It maps input_ids and attention_mask (b n, 0 = padding: not attended to, but with states of its own)
    to last_hidden_state, b n width, float32.
    """
    from transformers import T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(config.to_hugging_face())
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, matrix(name + ".weight"))
    model.set_input_embeddings(table)
    vectors = [name for name in config.shapes() if name.endswith(VECTORS)]
    model.load_state_dict({name: vector(name) for name in vectors}, strict=False, assign=True)
    return model.eval().requires_grad_(False)
