"""Group norm by Triton kernels, and which way of computing it a GPU uses."""

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imagen_nodes.imagen_core.kernels import choice, norm
from imagen_nodes.imagen_core.kernels.choice import TOLERANCE, Choice
from imagen_nodes.imagen_core.kernels.norm import in_steps, norm_activate, normed
from imagen_nodes.nodes.host import paging

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
# Images, channels, height, width and groups.
SHAPES = [
    (2, 16, 9, 7, 8),
    (1, 48, 37, 41, 8),
    (2, 192, 5, 3, 32),
    (1, 576, 13, 11, 32),
    (1, 768, 4, 4, 16),
    (3, 32, 1, 1, 8),
]
ACTS = {"none": lambda x: x, "silu": F.silu, "gelu": F.gelu}


def given(shape, layout, dtype=torch.float32, levelled=True, device="cpu") -> Any:
    *size, _ = shape
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(*size, generator=generator) + 5
    line = torch.randn(2, size[1], generator=generator)
    both = torch.randn(size[0], 2 * size[1], generator=generator)[:, :, None, None]
    x, line, both = (each.to(device, dtype) for each in (x, line, both))
    level = both.chunk(2, dim=1) if levelled else ()  # rows of one lie apart, as in a network
    return x.contiguous(memory_format=LAYOUTS[layout]), *line, level


def expected(tensors, groups, act, eps=1e-5):
    """In float64, statistics of contiguous values."""
    *given, level = tensors
    x, weight, bias, *level = (each.double().cpu() for each in (*given, *level))
    grouped = x.contiguous().view(len(x), groups, -1)
    away = grouped - grouped.mean(-1, keepdim=True)
    h = (away / (away.square().mean(-1, keepdim=True) + eps).sqrt()).view(x.shape)
    h = h * weight[:, None, None] + bias[:, None, None]
    return ACTS[act](h * (1 + level[0]) + level[1] if level else h)


def error(made, reference):
    return (made.double().cpu() - reference).abs().max() / reference.abs().max()


@pytest.fixture
def kernels(monkeypatch):
    """The module under Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton is imported
    language = pytest.importorskip("triton.language")
    if type(language.max).__name__ != "InterpretedFunction":
        pytest.skip("Triton was imported before")
    from imagen_nodes.imagen_core.kernels import fused_norm

    if type(fused_norm.along_lines).__name__ != "InterpretedFunction":
        importlib.reload(fused_norm)  # it was imported to be compiled
    return fused_norm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("levelled", "act"), [(True, "silu"), (False, "none"), (False, "gelu")])
def test_the_kernels_under_triton_s_interpreter(kernels, shape, layout, levelled, act):
    tensors = given(shape, layout, levelled=levelled)
    made = kernels.fused_norm(*tensors, shape[-1], 1e-5, act)
    assert made.dtype == torch.float32 and made.stride() == tensors[0].stride()
    assert error(made, expected(tensors, shape[-1], act)) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES[1:4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_under_triton_s_interpreter(kernels, shape, layout, dtype, most):
    tensors = given(shape, layout, dtype)
    made = kernels.fused_norm(*tensors, shape[-1], 1e-5, "silu")
    assert made.dtype == dtype
    reference = expected(tensors, shape[-1], "silu")
    assert error(made, reference) <= most
    x, weight, bias, level = tensors
    wide = kernels.fused_norm(x, weight.float(), bias.float(), level, shape[-1], 1e-5, "silu")
    assert torch.equal(wide, made)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_blocks_are_one_chunk_and_a_far_mean_costs_no_digits(kernels, layout, monkeypatch):
    monkeypatch.setattr(kernels, "MOST_CHUNKS", 3)
    monkeypatch.setattr(kernels, "BLOCK", 2**8)
    monkeypatch.setattr(kernels, "WIDE", {"channels last": 8, "contiguous": 32})
    shape = (2, 24, 19, 17, 8)
    x, *more = given(shape, layout)
    for far in (0.0, 300.0):
        made = kernels.fused_norm(x + far, *more, 8, 1e-5, "none")
        assert error(made, expected((x + far, *more), 8, "none")) <= (1e-4 if far else 1e-5)


def test_an_image_s_values_do_not_depend_on_its_batch(kernels):
    x, weight, bias, (scale, shift) = given((3, 48, 37, 41, 8), "channels last")
    whole = kernels.fused_norm(x, weight, bias, (scale, shift), 8, 1e-5, "silu")
    alone = kernels.fused_norm(x[1:2], weight, bias, (scale[1:2], shift[1:2]), 8, 1e-5, "silu")
    assert torch.equal(whole[1:2], alone)


def test_what_the_kernels_cannot_compute_is_refused():
    pytest.importorskip("triton")
    from imagen_nodes.imagen_core.kernels.fused_norm import fused_norm, require_fitting

    x, weight, bias, level = given((2, 16, 9, 7, 8), "contiguous")
    line = torch.ones(8)
    for message, tensors, groups in (
        ("c a multiple of 5", (x, weight, bias, level), 5),
        ("c a multiple of 8", (x[:0], weight, bias, ()), 8),
        ("contiguous or channels last", (x[..., ::2], weight, bias, ()), 8),
        (r"weight: expected \[16\]", (x, line, bias, ()), 8),
        (r"scale: expected \[2, 16, 1, 1\]", (x, weight, bias, (level[0][:1], level[1])), 8),
    ):
        with pytest.raises(ValueError, match=message):
            fused_norm(*tensors, groups, 1e-5, "silu")
    with pytest.raises(ValueError, match="act: expected one of none, silu, gelu, got 'relu'"):
        fused_norm(x, weight, bias, (), 8, 1e-5, "relu")
    with torch.device("meta"):
        for size, groups in (
            ((2**16, 8, 1, 1), 8),
            ((1, 1, 2**15, 2**14), 1),
            ((1, 2**13, 1, 1), 1),
        ):
            with pytest.raises(ValueError, match="x: expected up to"):
                require_fitting(torch.empty(size), groups)


COMPILED = """
import re, sys, torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from imagen_nodes.imagen_core.kernels import fused_norm

KINDS = dict(number="fp32", eps="fp32", moments="*fp32", lines="*fp32", apart="i64", row_step="i64")
SIXTEENS = ("channels", "positions", "channel_step", "position_step", "row_step", "length")

for kind, arch, width, dtype, layout in eval(sys.argv[1]):
    blocks = fused_norm.blocks_of(192, 4096, layout)
    of_lines = {"CHUNKS": 64, "EACH": 8, "LEVEL": True}
    near = "channel_step" if layout == "channels last" else "position_step"
    for name, options in (
        ("chunk_moments", blocks), ("channel_lines", of_lines),
        ("along_lines", {**blocks, "ACT": "silu"}), ("along_lines", {**blocks, "ACT": "gelu"}),
    ):
        kernel = getattr(fused_norm, name)
        short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
        pointers = ("x", "made", "weight", "bias", "scale", "shift")
        kinds, aligned, known = {}, {}, dict(options)
        for place, argument in enumerate(kernel.arg_names):
            if argument == near:
                known[argument] = 1
            if argument in known:
                kinds[argument] = "constexpr"
                continue
            kinds[argument] = f"*{short}" if argument in pointers else KINDS.get(argument, "i32")
            if kinds[argument][0] == "*" or argument in SIXTEENS:
                aligned[(place,)] = [("tt.divisibility", 16)]
        source = ASTSource(kernel, kinds, known, aligned)
        made = compile(source, target=GPUTarget(kind, arch, width))
        assert made.metadata.shared <= 48 * 1024, f"{name} on {arch}: {made.metadata.shared}"
        if kind == "cuda" and name != "channel_lines":
            assert re.search(r"ld.global.*[.]v[24]", made.asm["ptx"]), f"{name}: values one by one"
        print(name, arch, dtype, made.metadata.shared)
"""


@pytest.mark.parametrize(
    "target",
    [
        ("cuda", 80, 32, "bfloat16", "channels last"),
        ("cuda", 86, 32, "float32", "contiguous"),
        ("hip", "gfx942", 64, "float16", "channels last"),
    ],
    ids=["sm_80", "sm_86", "gfx942"],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(target, tmp_path):
    """In a process of its own, as other tests have Triton interpret; several values a load."""
    pytest.importorskip("triton")
    apart = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED, repr([target])],
        env=apart | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available()
    or (torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0)),
    reason="a GPU that Triton compiles for",
)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 64, 1024, 1024, 16)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernels_on_a_gpu(shape, layout, dtype):
    pytest.importorskip("triton")
    from imagen_nodes.imagen_core.kernels.fused_norm import fused_norm

    tensors = given(shape, layout, dtype, device="cuda")
    made = fused_norm(*tensors, shape[-1], 1e-5, "silu")
    assert made.stride() == tensors[0].stride()
    assert error(made, expected(tensors, shape[-1], "silu")) <= TOLERANCE[dtype]


@pytest.fixture
def ways(monkeypatch, tmp_path):
    """A CPU chooses as a GPU does, between torch's steps and a way that is given; what it was called with."""
    monkeypatch.setattr(choice, "DEVICES", ("cpu",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("IMAGEN_NORM", raising=False)
    calls = []

    def put(way):
        def counted(*tensors):
            calls.append(tensors)
            return way(*tensors)

        monkeypatch.setattr(norm, "NORM", Choice("norm", {"plain": in_steps, "triton": counted}))
        monkeypatch.setenv("IMAGEN_NORM", "triton")
        return calls

    return put


def layer(channels=16, groups=8):
    made = nn.GroupNorm(groups, channels, eps=1e-3)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(), nn.Identity()])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_layers_of_a_gpu_take_the_way_that_is_chosen(ways, act, layout):
    calls, own = ways(in_steps), layer()
    x, _, _, level = given((2, 16, 9, 7, 8), layout)
    before = x.clone()
    name = {nn.SiLU: "silu", nn.GELU: "gelu", nn.Identity: "none"}[type(act)]
    for each in (level, None):
        made = norm_activate(x, own, act, each)
        reference = expected((x, own.weight, own.bias, each or ()), 8, name, 1e-3)
        assert error(made, reference) <= 1e-5
        assert calls[-1][4:] == (8, 1e-3, name, layout)
    assert error(normed(x, own), expected((x, own.weight, own.bias, ()), 8, "none", 1e-3)) <= 1e-5
    assert len(calls) == 3 and torch.equal(x, before)


@torch.no_grad()
def test_a_layer_s_hooks_and_a_host_s_weights_are_kept(ways):
    """The layer is called, and what it gives torch's norm is taken."""

    class Casting(nn.GroupNorm):
        def forward(self, x):
            weight, bias = (2 * each.to(x.dtype) for each in (self.weight, self.bias))
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    calls, own, seen = ways(in_steps), layer().half(), []
    own.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    own.register_forward_hook(lambda module, inputs, out: seen.append("after"))
    hosts = {name: getattr(nn, name) for name in paging.LAYERS} | {"GroupNorm": Casting}
    paging.take_operations(own, type("Operations", (), hosts))
    x, _, _, level = given((2, 16, 9, 7, 8), "channels last")
    made = norm_activate(x, own, nn.SiLU(), level)
    twice = (2 * own.weight, 2 * own.bias)
    assert error(made, expected((x, *twice, level), 8, "silu", 1e-3)) <= 1e-5
    assert seen == ["before", "after"] and len(calls) == 1


def test_what_is_for_no_kernel_is_computed_as_before(ways):
    def never(*tensors):
        raise AssertionError

    own, act = layer(), nn.SiLU()
    x, _, _, level = given((2, 16, 9, 7, 8), "contiguous")
    reference = expected((x, own.weight, own.bias, level), 8, "silu", 1e-3)
    ways(never)
    assert error(norm_activate(x.requires_grad_(), own, act, level), reference) <= 1e-5
    x = x.detach()
    with torch.no_grad():
        apart = torch.cat([x, x], 3)[..., : x.shape[3]]
        assert not apart.is_contiguous()
        assert error(norm_activate(apart, own, act, level), reference) <= 1e-5
        tanh = nn.GELU(approximate="tanh")
        steps = tanh(own(x) * (1 + level[0]) + level[1])
        torch.testing.assert_close(norm_activate(x, own, tanh, level), steps)
        bare = nn.GroupNorm(8, 16, affine=False)
        torch.testing.assert_close(norm_activate(x, bare, act), F.silu(bare(x)))
        with torch.autocast("cpu", torch.bfloat16):
            norm_activate(x, own, act, level)
        with pytest.raises(AssertionError):
            norm_activate(x, own, act, level)


@torch.no_grad()
def test_a_kernel_that_fails_or_is_wrong_is_not_used(ways, monkeypatch, tmp_path):
    def failing(*tensors):
        raise RuntimeError("no compiler")

    def without_shift(x, weight, bias, level, *more):
        return in_steps(x, weight, bias, (level[0], 0 * level[1]), *more)

    own, act = layer(), nn.SiLU()
    x, _, _, level = given((2, 16, 9, 7, 8), "channels last")
    reference = expected((x, own.weight, own.bias, level), 8, "silu", 1e-3)
    for way in (failing, without_shift):
        ways(way)
        monkeypatch.delenv("IMAGEN_NORM")
        assert error(norm_activate(x, own, act, level), reference) <= 1e-5
        assert list(norm.NORM.chosen.values()) == ["plain"]
    kept = json.loads((tmp_path / "imagen-nodes" / "kernels.json").read_text())["norm"]
    assert len(kept) == 1 and "channels last" in next(iter(kept))


@torch.no_grad()
def test_layouts_and_activations_are_chosen_apart(ways, monkeypatch):
    ways(in_steps)
    x, _, _, level = given((2, 16, 9, 7, 8), "contiguous")
    last = x.contiguous(memory_format=torch.channels_last)
    for tensor, act in ((x, nn.SiLU()), (last, nn.SiLU()), (x, nn.GELU()), (x, nn.SiLU())):
        norm_activate(tensor, layer(), act, level)
    assert len(norm.NORM.chosen) == 3


@torch.no_grad()
def test_a_cpu_knows_of_no_choice(monkeypatch):
    """Its bytes are those of before."""
    monkeypatch.setattr(norm, "chosen", None)
    monkeypatch.setattr(norm, "chooses", None)
    own = layer()
    x, _, _, (scale, shift) = given((2, 16, 9, 7, 8), "channels last")
    steps = F.silu(torch.addcmul(shift, own(x), 1 + scale))
    assert torch.equal(norm_activate(x, own, nn.SiLU(), (scale, shift)), steps)
    assert torch.equal(normed(x, own), own(x))
