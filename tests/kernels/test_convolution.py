"""Packed convolutions are nn.Conv2d's to the bit, and follow their weights."""

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F

from imagen_nodes.imagen_core.kernels import convolution
from imagen_nodes.imagen_core.kernels.convolution import KEPT, Conv2d, packs_bfloat16

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
pytestmark = needs_onednn


def picture(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def plain(conv, x):
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def made(*args, dtype=torch.float32, **kwargs):
    return Conv2d(*args, **kwargs).to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [((16, 32), 3, 1), ((64, 64), 3, 1), ((6, 16), 3, 1), ((32, 48), 1, 1), ((16, 32), 3, 2)],
)
def test_packed_weights_give_the_same_bits(dtype, channels, kernel, stride):
    conv = made(*channels, kernel, stride, kernel // 2, dtype=dtype)
    for shape in ((2, 8), (1, 8), (2, 16), (1, 64), (2, 8)):
        x = picture(shape[0], channels[0], shape[1], shape[1], dtype=dtype)
        with torch.no_grad():
            assert torch.equal(conv(x), plain(conv, x))
    points = kernel == 1 and dtype == torch.float32 and torch.get_num_threads() == 1
    plain_here = points or (dtype == torch.bfloat16 and not packs_bfloat16())
    assert (0 if plain_here else 1) <= len(conv.packed) <= KEPT


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_those_of_torch_on_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for channels, kernel, shapes in (
            ((256, 128), 1, [(2, 256, 8, 8), (1, 256, 16, 16), (16, 256, 8, 8)]),
            ((32, 32), 3, [(1, 32, 8, 8), (1, 32, 64, 64)]),
            ((16, 16), 5, [(1, 16, 8, 8)]),
        ):
            conv = made(*channels, kernel, padding=kernel // 2)
            for shape in shapes:
                x = picture(*shape)
                with torch.no_grad():
                    assert torch.equal(conv(x), plain(conv, x)), (kernel, shape)
    finally:
        torch.set_num_threads(before)


def test_without_oneDNN_gradients_or_channels_last_the_plain_path_serves(monkeypatch):
    conv, x = made(8, 8, 3, padding=1), picture(2, 8, 8, 8)
    x.requires_grad_(True)
    conv(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        conv(x.detach().contiguous())
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        conv(x.detach())
    assert not conv.packed


@pytest.mark.parametrize("how", ["in place", "another parameter", "loaded", "float64 and back"])
def test_changed_weights_are_packed_anew(how):
    conv, x = made(8, 8, 3, padding=1), picture(2, 8, 8, 8)
    with torch.no_grad():
        before = conv(x)
        if how == "in place":
            conv.weight.mul_(2)
            conv.bias.mul_(2)
        elif how == "another parameter":
            conv.weight = torch.nn.Parameter(conv.weight * 2)
            conv.bias = torch.nn.Parameter(conv.bias * 2)
        elif how == "loaded":
            conv.load_state_dict({key: 2 * value for key, value in conv.state_dict().items()})
        else:
            conv.double().weight.mul_(2)
            conv.bias.mul_(2)
            conv.float()
        assert torch.allclose(conv(x), 2 * before, atol=1e-5)


def test_copies_and_files_hold_no_packed_weights():
    conv, x = made(8, 8, 3, padding=1), picture(2, 8, 8, 8)
    with torch.no_grad():
        expected = conv(x)
        for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):  # noqa: S301
            assert not other.packed
            assert torch.equal(other(x), expected)
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_packed_weights_are_bounded_and_counted(monkeypatch):
    gc.collect()
    before = Conv2d.bytes_packed
    size = 8 * 8 * 9 * 4
    conv, other, x = made(8, 8, 3, padding=1), made(8, 8, 3, padding=1), picture(2, 8, 8, 8)
    monkeypatch.setattr(convolution, "MOST_BYTES", before + size)
    with torch.no_grad():
        conv(x)
        assert Conv2d.bytes_packed == before + size
        assert torch.equal(other(x), plain(other, x))
    assert not other.packed
    del conv
    gc.collect()
    assert Conv2d.bytes_packed == before
