"""Attention over image positions and text tokens.

Text keys and values do not depend on the image or on the noise level, so every layer hands them out
once per prompt (`text_keys_values`) and takes them back at each evaluation. Nothing here knows of
resolutions or blocks.

Imagen, arXiv:2205.11487, appendix D.3.1 (text keys and values concatenated to the image's).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..kernels.attention import attention_in_pieces, serves
from ..kernels.choice import Choice
from ..kernels.norm import normed
from ..kernels.precision import eager_bfloat16

KeysValues = tuple[Tensor, Tensor]  # each: b heads n d
MOST_SCORES = 2**25  # of a layer: kept in bfloat16 and in float32, 192 MiB


# (Eq. 1)
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of every query over every key, heads merged.

    q        b heads n d
    k, v     b heads m d
    returns  b n (heads d)

    arXiv:1706.03762, Eq. 1.
    """
    if written_out(q, k):
        return attention_reference(q, k, v)
    if serves(q, k):
        return attention_in_pieces(q, k, v)
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)")


def written_out(q: Tensor, k: Tensor) -> bool:
    """Whether a training step in bfloat16 on a CPU is faster with the matrix of scores, which is kept.

    q   b heads n d
    k   b heads m d
    """
    return (
        torch.is_grad_enabled()
        and q.requires_grad
        and eager_bfloat16(q)
        and q.shape[:-1].numel() * k.shape[2] <= MOST_SCORES
    )


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` written out, softmax in float32: what the fast path is held against.

    q        b heads n d
    k, v     b heads m d
    returns  b n (heads d)
    """
    weights = torch.einsum("b h n d, b h m d -> b h n m", q, k) * q.shape[-1] ** -0.5
    weights = weights.float().softmax(dim=-1).to(v.dtype)
    return rearrange(
        torch.einsum("b h n m, b h m d -> b h n d", weights, v), "b h n d -> b n (h d)"
    )


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """View of x with its channels as heads.

    x         b n (heads head_dim)
    returns   b heads n head_dim
    """
    return rearrange(x, "b n (heads d) -> b heads n d", d=head_dim)


class TokenGroupNorm(nn.GroupNorm):
    """Group norm of a token sequence, statistics over all tokens (pads too), as DeepFloyd IF has it.

    Applied to b n c; each group of channels is normalised over the whole sequence.
    """

    def forward(self, tokens: Tensor) -> Tensor:  # b n c
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


class TextAttention(nn.Module):
    """Image positions attend to the text and, unless `self_attention` is off, to each other.

    One softmax over [text, image] keys (text first), residual added to the input.
    """

    index = 0  # among the network's layers of its kind

    def __init__(
        self,
        channels: int,
        context_dim: int,
        head_dim: int,
        groups: int,
        self_attention: bool = True,
        widening: int = 1,
    ):
        super().__init__()
        hidden = widening * channels
        if hidden % head_dim:
            raise ValueError(f"channels must be a multiple of head_dim {head_dim}, got {hidden}")
        self.head_dim = head_dim
        self.self_attention = self_attention
        self.norm = nn.GroupNorm(groups, channels)
        self.text_norm = TokenGroupNorm(groups, context_dim)
        self.qkv = nn.Linear(channels, 3 * hidden if self_attention else hidden)
        self.text_kv = nn.Linear(context_dim, 2 * hidden)
        self.proj_out = nn.Linear(hidden, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def text_keys_values(self, tokens: Tensor) -> KeysValues:
        """Keys and values of the text for this layer.

        tokens   b n context_dim
        """
        k, v = self.text_kv(self.text_norm(tokens)).chunk(2, dim=-1)
        return split_heads(k, self.head_dim), split_heads(v, self.head_dim)

    def forward(
        self, x: Tensor, text: KeysValues
    ) -> Tensor:  # x: b c h w, text: p rows that divide b
        height, rows = x.shape[2], len(text[0])
        h = self.qkv(rearrange(normed(x, self.norm), "b c h w -> b (h w) c"))
        if not self.self_attention:
            # Queries do not see each other, so those of all pictures of one text are one sequence.
            h = rearrange(h, "(p each) n c -> p (each n) c", p=rows)
            h = attention(split_heads(h, self.head_dim), *text)
            h = rearrange(h, "p (each n) c -> (p each) n c", each=len(x) // rows)
        else:
            q, k, v = (split_heads(part, self.head_dim) for part in h.chunk(3, dim=-1))
            h = ATTENTION(q, text, (k, v))
        return x + rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=height)


def joined(text: Tensor, image: Tensor) -> Tensor:
    """The text's keys or values before those of the pictures that share it: b heads (m + n) d.

    text    p heads m d
    image   b heads n d, p of them dividing b
    """
    if len(text) == len(image):
        return torch.cat([text, image], dim=2)
    image = rearrange(image, "(p each) h n d -> p each h n d", p=len(text))
    text = text[:, None].expand(-1, image.shape[1], -1, -1, -1)
    return torch.cat([text, image], dim=3).flatten(0, 1)


def over_joined(q: Tensor, text: KeysValues, own: KeysValues) -> Tensor:
    """Attention over the text's keys and the image's own, concatenated: b n (heads d).

    q      b heads n d
    text   p heads m d each, p dividing b
    own    b heads n d each
    """
    return attention(q, *(joined(ours, image) for ours, image in zip(text, own, strict=True)))


def over_both(q: Tensor, text: KeysValues, own: KeysValues) -> Tensor:
    """The same without concatenating, by a Triton kernel; ModuleNotFoundError where Triton is not there."""
    from ..kernels.two_source import two_source_attention

    return two_source_attention(q, text, own)


ATTENTION = Choice("attention", {"joined": over_joined, "triton": over_both}, train=("triton",))


def text_keys_values(unet: nn.Module, tokens: Tensor) -> tuple[KeysValues, ...]:
    """Text keys and values of every TextAttention of a network, in the order of its modules.

    unet     registers its layers in the order of evaluation
    tokens   b n context_dim
    """
    layers = (module for module in unet.modules() if isinstance(module, TextAttention))
    return tuple(layer.text_keys_values(tokens) for layer in layers)


class AttentionPool(nn.Module):
    """One vector of a token sequence: a class token, their mean, attends to itself and to them.

    DeepFloyd IF's text pooling; Imagen asks for attention pooling in appendix F.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.head_dim = dim // heads
        self.positional_embedding = nn.Parameter(torch.empty(1, dim))
        if not self.positional_embedding.is_meta:  # normal numbers there import torch's compiler
            nn.init.normal_(self.positional_embedding, std=dim**-0.5)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:  # b n dim -> b dim
        class_token = tokens.mean(dim=1, keepdim=True) + self.positional_embedding.to(tokens)
        tokens = torch.cat([class_token, tokens], dim=1)
        q, k, v = self.q_proj(class_token), self.k_proj(tokens), self.v_proj(tokens)
        return attention(*(split_heads(part, self.head_dim) for part in (q, k, v))).squeeze(1)
