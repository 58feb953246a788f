"""Attention against its written-out reference; text keys first; heads kept apart."""

import pytest
import torch

from imagen_nodes.imagen_core.unet import attention as module
from imagen_nodes.imagen_core.unet.attention import (
    AttentionPool,
    TextAttention,
    TokenGroupNorm,
    attention,
    attention_reference,
    split_heads,
    written_out,
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("keys", [1, 7, 96])
def test_fast_path_equals_the_reference(dtype, tolerance, keys):
    q = torch.randn(2, 3, 5, 16, dtype=dtype)
    k, v = torch.randn(2, 2, 3, keys, 16, dtype=dtype)
    fast, plain = attention(q, k, v), attention_reference(q, k, v)
    assert fast.shape == (2, 5, 48)
    assert torch.allclose(fast.float(), plain.float(), atol=tolerance, rtol=tolerance)


def test_a_training_step_in_bfloat16_writes_it_out_with_the_gradients_of_float32(monkeypatch):
    given = [torch.randn(2, 3, n, 16).bfloat16() for n in (40, 57, 57)]

    def gradients(dtype):
        leaves = [each.to(dtype).requires_grad_() for each in given]
        made = attention(*leaves)
        return [made, *torch.autograd.grad(made, leaves, torch.ones_like(made))]

    expected = gradients(torch.float32)
    asked = given[0].clone().requires_grad_()
    assert written_out(asked, given[1])
    for most, found in ((2**25, gradients(torch.bfloat16)), (0, None)):
        monkeypatch.setattr(module, "MOST_SCORES", most)
        assert written_out(asked, given[1]) == bool(most)
        for ours, theirs in zip(found or gradients(torch.bfloat16), expected, strict=True):
            assert (ours - theirs).abs().max() <= 2e-2 * theirs.abs().max()
    with torch.no_grad():
        assert not written_out(asked, given[1])


def test_heads_are_contiguous_blocks_of_channels():
    x = torch.arange(12.0).reshape(1, 1, 12)
    assert torch.equal(split_heads(x, 4)[0, :, 0], torch.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("self_attention", [True, False])
@pytest.mark.parametrize("widening", [1, 2])
def test_text_attention_is_one_softmax_over_text_and_image(self_attention, widening):
    torch.manual_seed(0)
    layer = TextAttention(16, 8, 8, groups=4, self_attention=self_attention, widening=widening)
    torch.nn.init.normal_(layer.proj_out.weight)
    x, tokens = torch.randn(2, 16, 3, 5), torch.randn(2, 4, 8)

    h = layer.norm(x).flatten(2).transpose(1, 2)
    text_k, text_v = layer.text_kv(layer.text_norm(tokens)).chunk(2, dim=-1)
    parts = layer.qkv(h).split(16 * widening, dim=-1)
    k = torch.cat([text_k, *parts[1:2]], dim=1)
    v = torch.cat([text_v, *parts[2:3]], dim=1)
    q, k, v = (split_heads(part, 8) for part in (parts[0], k, v))
    expected = x + layer.proj_out(attention_reference(q, k, v)).transpose(1, 2).reshape(x.shape)

    assert torch.allclose(layer(x, layer.text_keys_values(tokens)), expected, atol=1e-5)


def test_token_group_norm_takes_statistics_over_all_tokens():
    tokens = torch.randn(2, 7, 12) * 3 + 1
    normed = TokenGroupNorm(4, 12)(tokens).reshape(2, 7, 4, 3)
    assert torch.allclose(normed.mean(dim=(1, 3)), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(normed.var(dim=(1, 3), unbiased=False), torch.ones(2, 4), atol=1e-3)


def test_pool_of_equal_tokens_is_their_value():
    pool = AttentionPool(12, heads=3)
    torch.nn.init.zeros_(pool.positional_embedding)
    token = torch.randn(2, 1, 12)
    assert torch.allclose(pool(token.expand(-1, 9, -1)), pool.v_proj(token)[:, 0], atol=1e-5)


def test_channels_that_heads_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of head_dim 16, got 24"):
        TextAttention(24, 8, head_dim=16, groups=4)
