"""Steps in place give what the plain ones give, and spare what a gradient needs."""

import pytest
import torch
from torch import nn

from imagen_nodes.imagen_core.kernels.inplace import activate_, add_, scale_, scale_shift_

STEPS = {
    "silu": (lambda x, s: activate_(x, nn.SiLU()), lambda x, s: nn.SiLU()(x)),
    "gelu": (lambda x, s: activate_(x, nn.GELU()), lambda x, s: nn.GELU()(x)),
    "scale and shift": (
        lambda x, s: scale_shift_(x, s, 2 * s),
        lambda x, s: torch.addcmul(2 * s, x, 1 + s),
    ),
    "add": (lambda x, s: add_(x, s.expand_as(x)), lambda x, s: x + s),
    "scale": (lambda x, s: scale_(x, 0.7), lambda x, s: x * 0.7),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_the_values_are_the_same_to_the_bit(name, dtype):
    fast, reference = STEPS[name]
    x = torch.randn(2, 4, 5, 6, dtype=dtype).contiguous(memory_format=torch.channels_last)
    s = torch.randn(2, 4, 1, 1, dtype=dtype)
    expected = reference(x, s)
    storage = x.data_ptr()
    with torch.no_grad():
        result = fast(x, s)
    assert torch.equal(result, expected)
    assert result.data_ptr() == storage


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_the_plain_step(name):
    fast, reference = STEPS[name]
    s = torch.randn(2, 4, 1, 1)
    grads = []
    for step in (fast, reference):
        x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        step(x * 1.0, s).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", STEPS)
def test_what_a_layer_kept_for_its_gradient_stays_though_it_asks_for_none(name):
    """The input of a LoRA behind fixed layers."""
    x, s = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 1, 1)
    before, weight = x.clone(), torch.ones(4, 1, 1, requires_grad=True)
    y = x * weight
    STEPS[name][0](x, s)
    y.sum().backward()
    assert torch.equal(weight.grad.flatten(), before.sum(dim=(0, 2, 3)))


def test_an_activation_of_another_kind_makes_a_new_tensor():
    x = torch.randn(3)
    result = activate_(x, nn.Tanh())
    assert torch.equal(result, x.tanh())
    assert result is not x
