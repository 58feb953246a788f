"""Attention over two sources of keys, and which way of computing it a device uses."""

import json
import os
import subprocess
import sys

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


COMPILED = """
import re, sys, torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from imagen_nodes.imagen_core.kernels import two_source

for kind, arch, width, dtype, head, most in eval(sys.argv[1]):
    for name in ("forward", "backward_queries", "backward_keys"):
        kernel = getattr(two_source, name)
        options = two_source.options_of(
            head, getattr(torch, dtype), False, name != "forward", kind == "hip"
        )
        short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
        numbers = re.compile(r"heads|each|queries|tokens|count|.*_[bhn]")
        kinds, aligned = {}, {}
        for place, argument in enumerate(kernel.arg_names):
            if argument in options:
                kinds[argument] = "constexpr"
            elif argument == "scale":
                kinds[argument] = "fp32"
            else:
                number = numbers.fullmatch(argument)
                wide = "fp32" if argument in ("sums", "weighted") else short
                kinds[argument] = "i32" if number else f"*{wide}"
                if argument not in ("heads", "each", "tokens", "count"):
                    aligned[(place,)] = [("tt.divisibility", 16)]
        source = ASTSource(kernel, kinds, options, aligned)
        shared = compile(source, target=GPUTarget(kind, arch, width)).metadata.shared
        assert shared <= most, f"{name} on {arch}, {dtype}: {shared} bytes of shared memory"
        print(name, arch, dtype, shared)
"""
KB = 1024


@pytest.mark.parametrize(
    "targets",
    [
        [("cuda", 86, 32, "float32", 64, 99 * KB)],
        [("hip", "gfx1100", 32, "float16", 64, 64 * KB)],
    ],
    ids=["float32", "amd"],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(targets, tmp_path):
    """In a process of its own, as other tests have Triton interpret."""
    pytest.importorskip("triton")
    apart = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED, repr(targets)],
        env=apart | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 3 * len(targets)


def test_float32_is_as_precise_as_float32_where_tensor_cores_compute_it():
    """Three products of what TF32 keeps of the numbers and of what it drops."""

    def kept(x):
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def product(a, b):
        high_a, high_b = kept(a), kept(b)
        return high_a @ kept(b - high_b) + kept(a - high_a) @ high_b + high_a @ high_b

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 300, 64, generator=generator)
    exact = ((q.double() @ k.double().T) / 8).softmax(-1) @ v.double()
    scores = product(q / 8, k.T.contiguous())
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    made = product(weights, v) / weights.sum(-1, keepdim=True)
    assert (made - exact).abs().max() < 0.2 * choice.TOLERANCE[torch.float32] * exact.abs().max()


@pytest.fixture
def kernels(monkeypatch):
    """The module, whichever way Triton was imported."""
    pytest.importorskip("triton")
    from imagen_nodes.imagen_core.kernels import two_source

    two_source.require_tensor_cores.cache_clear()
    yield two_source
    two_source.require_tensor_cores.cache_clear()


def test_gpus_that_triton_cannot_compile_for_are_refused_before_it_tries(kernels, monkeypatch):
    """Its compiler ends the process there, which no candidate may."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    device = torch.device("cuda", 0)
    with pytest.raises(
        NotImplementedError, match=r"needs compute capability 8.0, this GPU has 7.5"
    ):
        kernels.require_tensor_cores(device)
    kernels.require_tensor_cores.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "6.2")
    kernels.require_tensor_cores(device)


def test_shapes_that_the_kernels_cannot_address_are_refused(kernels):
    for head in (8, 48):
        q, text, own = given((2, 1, 2, 4, 3, head))
        with pytest.raises(
            ValueError, match=f"expected heads of 16, 32, 64, … channels, got {head}"
        ):
            kernels.two_source_attention(q, text, own)
    with torch.device("meta"):
        q = torch.empty(1, 2**16, 4, 16)
        far = torch.empty(1, 1, 2**20, 16).as_strided((1, 1, 2**20, 16), (1, 1, 2**12, 1))
    for tensors in ((q, q), (far, far)):
        with pytest.raises(ValueError, match="heads of all images"):
            kernels.require_fitting(*tensors)


ON_A_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available()
        or (torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0)),
        reason="a GPU that Triton compiles for",
    ),
)


def on_a_gpu(test):
    """A test that needs one."""
    for mark in ON_A_GPU:
        test = mark(test)
    return test


@on_a_gpu
@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_s_gradients_on_a_gpu(shape, dtype):
    pytest.importorskip("triton")
    from imagen_nodes.imagen_core.kernels.two_source import two_source_attention

    tensors = given(shape, dtype, "cuda")
    leaves = [each.requires_grad_() for each in choice.flat(choice.detached(tensors))]
    q, text, own = leaves[0], leaves[1:3], leaves[3:]
    toward = torch.randn(shape[0], shape[3], shape[2] * shape[5], device="cuda")
    made, plain = (
        torch.autograd.grad(way(q, text, own).float(), leaves, toward)
        for way in (two_source_attention, expected)
    )
    for ours, reference in zip(made, plain, strict=True):
        error = 5 * choice.TOLERANCE[dtype] * reference.float().abs().max()
        assert (ours.float() - reference.float()).abs().max() <= error


@on_a_gpu
def test_a_gpu_chooses_a_way_and_keeps_it(monkeypatch, tmp_path):
    from imagen_nodes.imagen_core.unet.attention import over_both

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IMAGEN_ATTENTION", raising=False)
    chosen = Choice("attention", {"joined": over_joined, "triton": over_both}, train=("triton",))
    tensors = given((4, 2, 2, 256, 77, 64), torch.float16, "cuda")
    made = chosen(*tensors)
    torch.testing.assert_close(made, over_joined(*tensors), rtol=2e-2, atol=2e-2)
    assert len(chosen.chosen) == 1


@on_a_gpu
@SHAPES
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 2e-2)]
)
def test_the_kernel_on_a_gpu(shape, dtype, error):
    pytest.importorskip("triton")
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


def without_absent(chosen):
    del chosen.ways["absent"]
    return chosen


def test_the_fastest_right_way_is_used_and_kept(ways, tmp_path, monkeypatch):
    x, chosen = torch.rand(200, 200), without_absent(ways())
    torch.testing.assert_close(chosen(x), x)
    assert list(chosen.chosen.values()) == ["quick"]
    kept = json.loads((tmp_path / "imagen-nodes" / "kernels.json").read_text())
    assert list(kept["add"].values()) == ["quick"]
    again = ways()
    monkeypatch.setattr(again, "measured", None)  # nothing is measured twice
    assert torch.equal(again(x), x)


def test_what_was_chosen_while_a_way_failed_is_not_kept(ways, tmp_path):
    """Triton may be installed, or its C compiler, or memory be free, by the next time."""
    chosen = ways()
    chosen(torch.rand(200, 200))
    assert list(chosen.chosen.values()) == ["quick"]
    assert not (tmp_path / "imagen-nodes" / "kernels.json").exists()


def test_a_way_that_was_kept_and_no_longer_runs_is_not_used(ways):
    x, chosen = torch.rand(200, 200), without_absent(ways())
    chosen(x)
    later = ways()
    later.ways["quick"] = absent
    torch.testing.assert_close(later(x), x)
    assert list(later.chosen.values()) == ["plain"]


def test_memory_that_only_measuring_lacks_takes_the_plain_way(ways, tmp_path):
    def greedy(x):
        if x.dtype == torch.float32:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return x * 1.0

    chosen = ways()
    chosen.ways = {"plain": greedy, "quick": chosen.ways["quick"]}
    x = torch.rand(20, 20).half()
    assert torch.equal(chosen(x), x)
    assert list(chosen.chosen.values()) == ["plain"]
    assert not (tmp_path / "imagen-nodes" / "kernels.json").exists()


def test_ways_are_compared_with_float32_under_autocast_too(ways):
    dtypes = []

    def product(x):
        made = x @ x
        dtypes.append((x.dtype, made.dtype))
        return made

    chosen = ways()
    chosen.ways = {"plain": product, "quick": product}
    with torch.autocast("cpu", torch.bfloat16):
        chosen(torch.rand(8, 8).bfloat16())
    assert dtypes[0] == (torch.float32, torch.float32)


def test_nothing_is_timed_while_a_graph_is_captured(ways, monkeypatch):
    chosen = ways()
    monkeypatch.setattr(chosen, "measured", None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choice.captured(torch.device("cuda"))
    assert not choice.captured(torch.device("cpu"))
    monkeypatch.setattr(choice, "captured", lambda device: True)
    chosen(torch.rand(8, 8))
    assert not chosen.chosen


def test_times_are_those_of_the_device_that_computes(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: waited.extend(device))
    choice.seconds(slow, [torch.rand(2)], torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)] * 2


def test_a_user_without_a_home_keeps_choices_in_the_temporary_folder(monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert choice.cache_file() == tmp_path / "imagen-nodes" / "kernels.json"


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
    monkeypatch.setattr("imagen_nodes.cli.doctor.NORMS", [("two tests", 2, 16, 8, 8, 8, "silu")])
    assert main(["doctor", "--kernels"]) == 0
    shown = capsys.readouterr().out
    assert "attention of a test" in shown and "* joined:" in shown and "triton:" in shown
    assert "group norm of two tests" in shown and "* plain:" in shown
