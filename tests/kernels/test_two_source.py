"""Attention over two sources of keys, and which way of computing it a device uses."""

import json

import pytest
import torch

from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core.kernels import choice
from imagen_nodes.imagen_core.kernels.choice import Choice
from imagen_nodes.imagen_core.unet.attention import attention_reference, joined, over_joined

SHAPES = pytest.mark.parametrize(
    "shape", [(2, 1, 2, 70, 5, 16), (4, 2, 1, 16, 77, 32)]
)  # images, rows of text, heads, positions, tokens, width of a head


def given(shape, dtype=torch.float32, device="cpu"):
    images, rows, heads, positions, tokens, head = shape
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(images, positions, 3, heads, head, generator=generator).to(device, dtype)
    text = torch.randn(2, rows, heads, tokens, head, generator=generator).to(device, dtype)
    q, k, v = own.permute(2, 0, 3, 1, 4)
    return q, tuple(text), (k, v)


def expected(q, text, own, mask=None):
    k, v = (joined(t.float(), o.float()) for t, o in zip(text, own, strict=True))
    if mask is None:
        return attention_reference(q.float(), k, v)
    each = len(q) // len(mask)
    seen = torch.cat(
        [mask.repeat_interleave(each, 0), torch.ones(len(q), q.shape[2], dtype=torch.bool)], 1
    )
    bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None, None]
    scores = q.float() @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@SHAPES
def test_the_plain_way_is_the_reference(shape):
    tensors = given(shape)
    torch.testing.assert_close(over_joined(*tensors), expected(*tensors), rtol=1e-5, atol=1e-5)


@SHAPES
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_under_triton_s_interpreter(shape, dtype, error, masked, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    language = pytest.importorskip("triton.language")
    if type(language.max).__name__ != "InterpretedFunction":
        pytest.skip("Triton was imported before")
    from imagen_nodes.imagen_core.kernels.two_source import two_source_attention

    tensors = given(shape, dtype)
    mask = None
    if masked:
        mask = torch.rand(shape[1], shape[4], generator=torch.Generator().manual_seed(1)) > 0.5
        mask[0] = False  # a text of which nothing is seen
    made = two_source_attention(*tensors, mask)
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), expected(*tensors, mask), rtol=error, atol=error)


@SHAPES
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_s_gradients_under_triton_s_interpreter(shape, masked, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    language = pytest.importorskip("triton.language")
    if type(language.max).__name__ != "InterpretedFunction":
        pytest.skip("Triton was imported before")
    from imagen_nodes.imagen_core.kernels.two_source import two_source_attention

    tensors, mask = given(shape), None
    if masked:
        mask = torch.rand(shape[1], shape[4], generator=torch.Generator().manual_seed(1)) > 0.5
    leaves = [each.requires_grad_() for each in choice.flat(choice.detached(tensors))]
    q, text, own = leaves[0], leaves[1:3], leaves[3:]
    toward = torch.randn(shape[0], shape[3], shape[2] * shape[5])
    made, plain = (
        torch.autograd.grad(way(q, text, own, mask), leaves, toward)
        for way in (two_source_attention, expected)
    )
    for ours, reference in zip(made, plain, strict=True):
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@SHAPES
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 2e-2)]
)
def test_the_kernel_on_a_gpu(shape, dtype, error):
    from imagen_nodes.imagen_core.kernels.two_source import two_source_attention

    tensors = given(shape, dtype, "cuda")
    made = two_source_attention(*tensors).float().cpu()
    plain = expected(
        *(part.cpu() if torch.is_tensor(part) else [t.cpu() for t in part] for part in tensors)
    )
    torch.testing.assert_close(made, plain, rtol=error, atol=error)


def slow(x):
    return sum(x for _ in range(300)) / 300


def absent(x):
    raise ModuleNotFoundError("No module named 'triton'")


@pytest.fixture
def ways(monkeypatch, tmp_path):
    """A choice between a slow plain way, a quick one, one that is wrong and one that is not there."""
    monkeypatch.setattr(choice, "DEVICES", ("cpu",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IMAGEN_ADD", raising=False)
    quick, wrong = (lambda x: x * 1.0), (lambda x: x * 1.1)
    return lambda: Choice("add", {"plain": slow, "quick": quick, "wrong": wrong, "absent": absent})


def test_the_fastest_right_way_is_used_and_kept(ways, tmp_path, monkeypatch):
    x, chosen = torch.rand(200, 200), ways()
    torch.testing.assert_close(chosen(x), x)
    assert list(chosen.chosen.values()) == ["quick"]
    kept = json.loads((tmp_path / "imagen-nodes" / "kernels.json").read_text())
    assert list(kept["add"].values()) == ["quick"]
    again = ways()
    monkeypatch.setattr(again, "measured", None)  # nothing is measured twice
    assert torch.equal(again(x), x)


def test_the_environment_forces_a_way(ways, monkeypatch):
    x = torch.rand(8, 8)
    monkeypatch.setenv("IMAGEN_ADD", "wrong")
    assert torch.equal(ways()(x), x * 1.1)
    monkeypatch.setenv("IMAGEN_ADD", "fast")
    with pytest.raises(ValueError, match="IMAGEN_ADD: expected one of plain, quick, wrong, absent"):
        ways()(x)


def test_gradients_and_a_damaged_file_take_the_plain_way_and_measure_anew(ways, tmp_path):
    x, chosen = torch.rand(200, 200, requires_grad=True), ways()
    chosen(x).sum().backward()
    assert x.grad is not None and not chosen.chosen
    folder = tmp_path / "imagen-nodes"
    folder.mkdir()
    (folder / "kernels.json").write_text("[")
    chosen(x.detach())
    assert list(chosen.chosen.values()) == ["quick"]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 1.1


def test_with_gradients_only_ways_that_have_right_ones_are_used(ways):
    chosen = ways()
    chosen.ways["wrong gradient"] = WrongGradient.apply
    chosen.train = ("quick", "wrong gradient", "absent")
    x = torch.rand(200, 200, requires_grad=True)
    chosen(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert list(chosen.chosen.values()) == ["quick"]
    chosen.train = ("wrong gradient",)
    chosen.chosen.clear()
    chosen(torch.rand(20, 20, requires_grad=True))
    assert list(chosen.chosen.values()) == ["plain"]


def test_the_doctor_shows_the_ways(capsys, monkeypatch):
    monkeypatch.setattr("imagen_nodes.cli.doctor.ATTENTIONS", [("a test", 2, 1, 16, 16, 5)])
    assert main(["doctor", "--kernels"]) == 0
    shown = capsys.readouterr().out
    assert "attention of a test" in shown and "* joined:" in shown and "triton:" in shown
