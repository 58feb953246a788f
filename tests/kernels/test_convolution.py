"""Packed convolutions are nn.Conv2d's to the bit, and follow their weights."""

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F

from imagen_nodes.imagen_core.kernels import convolution
from imagen_nodes.imagen_core.kernels.convolution import KEPT, Conv2d, fold, packs_bfloat16
from imagen_nodes.imagen_core.lora import with_branch

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
pytestmark = needs_onednn


TIGHT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative


def picture(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def plain(conv, x):
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def of_doubled(conv, x):
    """The plain convolution of the doubled image, in float64."""
    bias = None if conv.bias is None else conv.bias.double()
    x = F.interpolate(x.double(), scale_factor=2, mode="nearest")
    return F.conv2d(x, conv.weight.double(), bias, padding=1)


def made(*args, dtype=torch.float32, **kwargs):
    return Conv2d(*args, **kwargs).to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [((16, 32), 3, 1), ((64, 64), 3, 1), ((6, 16), 3, 1), ((32, 48), 1, 1), ((16, 32), 3, 2)],
)
def test_packed_weights_give_the_same_bits(dtype, channels, kernel, stride, monkeypatch):
    monkeypatch.setenv("IMAGEN_CONVOLUTION", "plain")
    conv = made(*channels, kernel, stride, kernel // 2, dtype=dtype)
    for shape in ((2, 8), (1, 8), (2, 16), (1, 64), (2, 8)):
        x = picture(shape[0], channels[0], shape[1], shape[1], dtype=dtype)
        with torch.no_grad():
            assert torch.equal(conv(x), plain(conv, x))
    points = kernel == 1 and dtype == torch.float32 and torch.get_num_threads() == 1
    plain_here = points or (dtype == torch.bfloat16 and not packs_bfloat16())
    assert (0 if plain_here else 1) <= len(conv.packed) <= KEPT


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_are_those_of_torch_on_any_number_of_threads(threads, monkeypatch):
    monkeypatch.setenv("IMAGEN_CONVOLUTION", "plain")
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


@pytest.mark.parametrize(("kernel", "shape"), [(1, (2, 32, 8, 8)), (3, (1, 32, 8, 8))])
def test_small_float32_images_are_packed_too(kernel, shape):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        conv, x = made(32, 16, kernel, padding=kernel // 2), picture(*shape)
        with torch.no_grad():
            expected = F.conv2d(
                x.double(), conv.weight.double(), conv.bias.double(), 1, kernel // 2
            )
            assert (conv(x) - expected).norm() / expected.norm() < TIGHT[torch.float32]
        assert conv.packed
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


@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_gradient_of_one_parameter_alone_is_not_lost(name, doubles):
    conv = made(8, 16, 3, padding=1, doubles=doubles).requires_grad_(False)
    parameter = getattr(conv, name).requires_grad_()
    conv(picture(2, 8, 8, 8)).sum().backward()
    assert parameter.grad is not None


def change(conv, how):
    """Weight and bias twice as large."""
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


@pytest.mark.parametrize("how", ["in place", "another parameter", "loaded", "float64 and back"])
def test_changed_weights_are_packed_anew(how):
    conv, x = made(8, 8, 3, padding=1), picture(2, 8, 8, 8)
    with torch.no_grad():
        before = conv(x)
        change(conv, how)
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
    before = Conv2d.bytes_kept
    size = 8 * 8 * 9 * 4
    conv, other, x = made(8, 8, 3, padding=1), made(8, 8, 3, padding=1), picture(2, 8, 8, 8)
    monkeypatch.setattr(convolution, "MOST_BYTES", before + size)
    with torch.no_grad():
        conv(x)
        assert Conv2d.bytes_kept == before + size
        assert torch.equal(other(x), plain(other, x))
    assert not other.packed
    del conv
    gc.collect()
    assert Conv2d.bytes_kept == before


def test_folded_weights_are_bounded_and_counted(monkeypatch):
    gc.collect()
    before = Conv2d.bytes_kept
    conv, x = made(8, 16, 3, padding=1, doubles=True), picture(2, 8, 8, 8)
    with torch.no_grad():
        conv(x)
        kept = Conv2d.bytes_kept - before
        assert kept == conv.prepared_bytes() == 2 * conv.weight.nbytes * 16 // 9
        conv.forget()
        gc.collect()
        assert Conv2d.bytes_kept == before
        monkeypatch.setattr(convolution, "MOST_BYTES", before + kept // 2 - 1)
        found = conv(x)
    assert conv.folded is None
    assert torch.allclose(found, of_doubled(conv, x).float(), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 12), (1, 40, 40), (1, 4, 4), (3, 1, 1), (2, 5, 3)])
def test_of_a_doubled_image_it_is_the_plain_convolution(shape, bias, dtype):
    conv = made(24, 16, 3, padding=1, doubles=True, bias=bias, dtype=dtype)
    x = picture(shape[0], 24, *shape[1:], dtype=dtype)
    with torch.no_grad():
        found, expected = conv(x), of_doubled(conv, x)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).norm() / expected.norm() < TIGHT[dtype]


def test_small_images_are_convolved_where_no_gradient_is_asked_for(monkeypatch):
    conv, x = made(8, 16, 3, padding=1, doubles=True), picture(2, 8, 8, 8)
    calls = []
    monkeypatch.setattr(convolution, "fold", lambda each: calls.append(each) or fold(each))
    with torch.no_grad():
        for _ in range(2):
            conv(x)
    assert calls == [conv]
    with torch.enable_grad():
        slow = conv(x.requires_grad_())
        slow.square().sum().backward()
    assert calls == [conv] and x.grad is not None
    plain_one = of_doubled(conv, x.detach())
    assert torch.allclose(slow.double(), plain_one, atol=1e-5)


def test_the_environment_asks_for_the_bits_of_the_plain_convolution(monkeypatch):
    conv, x = made(8, 16, 3, padding=1, doubles=True), picture(2, 8, 8, 8)
    doubled = F.interpolate(x, scale_factor=2, mode="nearest")
    with torch.no_grad():
        monkeypatch.setenv("IMAGEN_CONVOLUTION", "plain")
        assert torch.equal(conv(x), plain(conv, doubled))
        monkeypatch.setenv("IMAGEN_CONVOLUTION", "fast")
        assert not torch.equal(conv(x), plain(conv, doubled))
        monkeypatch.setenv("IMAGEN_CONVOLUTION", "winograd")
        with pytest.raises(ValueError, match="IMAGEN_CONVOLUTION: expected plain or fast"):
            conv(x)


@pytest.mark.parametrize("how", ["in place", "another parameter", "loaded", "float64 and back"])
def test_changed_weights_of_a_doubled_image_are_added_up_anew(how):
    conv, x = made(8, 8, 3, padding=1, doubles=True), picture(2, 8, 8, 8)
    with torch.no_grad():
        before = conv(x)
        change(conv, how)
        assert torch.allclose(conv(x), 2 * before, atol=1e-5)
        for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):  # noqa: S301
            assert torch.equal(other(x), conv(x))
    assert set(conv.state_dict()) == {"weight", "bias"} and len(list(conv.modules())) == 1


def test_a_lora_sees_the_doubled_image():
    conv, x = made(8, 8, 3, padding=1, doubles=True), picture(2, 8, 8, 8)
    down, up = torch.randn(4, 8, 3, 3), torch.randn(8, 4)
    merged = copy.deepcopy(conv)
    with torch.no_grad():
        merged.weight += torch.einsum("or, rcij -> ocij", up, down)
        beside = with_branch(conv, down, up, None)
        assert torch.allclose(beside(x), merged(x), atol=1e-4)
        assert not torch.allclose(conv(x), merged(x), atol=1e-2)
