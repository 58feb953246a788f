"""A step on a device that is far: nothing is read from it, nothing is sent to it, nothing is float64 there.

Torch's meta device stands in for it: its values cannot be read. Apple's GPUs have no float64.
"""

from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    Inpainting,
    Stage,
    StageConfig,
    TextEmbedding,
    apply_lora,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.diffusion import schedules
from imagen_nodes.imagen_core.diffusion.samplers import SAMPLERS
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule
from imagen_nodes.imagen_core.diffusion.trace import Trace
from imagen_nodes.imagen_core.lora import LoRA, Update, layers_of
from imagen_nodes.imagen_core.memory import free_bytes
from imagen_nodes.imagen_core.peak import Shapes
from imagen_nodes.imagen_core.training.data import blur, crop_images
from imagen_nodes.imagen_core.training.distill import levels_of
from imagen_nodes.imagen_core.training.loss import diffusion_loss
from imagen_nodes.imagen_core.unet.reuse import Reuse


class Far(TorchDispatchMode):
    """Fails where something is float64 on the device; notes what is sent to it."""

    def __init__(self, float64=False):
        super().__init__()
        self.float64, self.sent = float64, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(each, torch.Tensor) and each.is_meta:
                assert self.float64 or each.dtype != torch.float64, func
                near = [x for x in args if isinstance(x, torch.Tensor) and not x.is_meta]
                # A number of the CPU may be part of a kernel's arguments.
                self.sent += [str(func) for x in near if x.ndim or "copy" in str(func)]
        return made


def states(seed=0):
    drawn = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(drawn, torch.ones(1, 5, dtype=torch.bool))


PROMPT = EncodedPrompt(states(0), states(1))
MASK = torch.zeros(8, 8)
MASK[:4] = 1.0
LATER = TextEmbedding(states(0).embeds, states(0).mask, ((0.5, states(3)),))


def stage_of(kind, **more):
    size, scale = {"base": (16, 1), "sr": (64, 4)}[kind]
    with torch.device("meta"):
        made = Stage(StageConfig(kind, size, scale, PRESETS[f"tiny-{kind}"], **more))
    made.unet.requires_grad_(False)
    return made


def with_lora(stage):
    updates = {}
    for name, layer in layers_of(stage.unet):
        weight = layer.weight
        if ".attention." in name:
            down = torch.empty(2, *weight.shape[1:], device="meta")
            updates[name] = Update(down, torch.empty(len(weight), 2, device="meta"))
    assert updates
    return apply_lora(stage, LoRA(stage.config, updates), 0.5)


def run(stage, **given):
    """Marks of each step: how much was sent to the device before its end."""
    far, marks, steps = Far(), [], given.pop("steps", 5)
    text = given.pop("text", PROMPT)

    def on_step(step, of, x0):
        marks.append(len(far.sent))

    with torch.no_grad(), Shapes(), far:
        if stage.config.kind == "base":
            given = {"width": 16, "height": 16} | given
            sample_base(stage, text, steps=steps, on_step=on_step, **given)
        else:
            small = torch.rand(1, 8, 8, 3, generator=torch.Generator("cpu").manual_seed(0))
            super_resolve(stage, small, text, steps=steps, on_step=on_step, **given)
    assert len(marks) >= 3
    assert len(set(marks)) == 1, far.sent[marks[0] :]


@pytest.mark.parametrize(
    "slip",
    [
        lambda x: x * torch.tensor([1.0]).to(x.device),
        lambda x: x * torch.tensor(1.0).to(x.device),
        lambda x: x * float(x.max()),
        lambda x: x[x > 0].sum() + x,
        lambda x: (x.double() * 2).float(),
    ],
    ids=["list", "number", "read", "mask", "float64"],
)
def test_slips_are_seen(slip, monkeypatch):
    real = Guidance.apply_threshold
    monkeypatch.setattr(Guidance, "apply_threshold", lambda self, x0, trace: slip(real(self, x0)))
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        run(stage_of("base"))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["base", "sr"])
def test_every_sampler(sampler, kind):
    run(stage_of(kind), sampler=sampler)


OPTIONS = {
    "dynamic threshold": dict(guidance=Guidance(3.0, max_value=1.5), trace=Trace()),
    "no threshold": dict(guidance=Guidance(3.0, "none")),
    "interval": dict(guidance=Guidance(3.0, start=0.2, end=0.8)),
    "oscillating": dict(guidance=Guidance(3.0, oscillate=True)),
    "apg": dict(guidance=Guidance(3.0, parallel=0.0)),
    "batch": dict(batch_size=3),
    "region": dict(text=PROMPT.with_region(EncodedPrompt(states(2), states(1)), MASK, 0.7)),
    "mixer": dict(text=EncodedPrompt(states(0), states(1), states(2), 0.3, states(3))),
    "text that changes": dict(text=EncodedPrompt(LATER, states(1))),
    "reuse": dict(reuse=Reuse(2, 1)),
    "bfloat16": dict(dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name):
    given = dict(OPTIONS[name])
    run(stage_of("base").to(dtype=given.pop("dtype", None)), **given)


@pytest.mark.parametrize(
    "inpainting", [Inpainting(), Inpainting("clean"), Inpainting(resample=2, jump=2)], ids=str
)
def test_inpainting(inpainting):
    image = torch.rand(1, 16, 16, 3)
    run(stage_of("base"), image=image, mask=MASK[None], inpainting=inpainting)


@pytest.mark.parametrize("kind", ["base", "sr"])
def test_a_lora(kind):
    run(with_lora(stage_of(kind)))


@pytest.mark.parametrize(
    "given",
    [
        dict(tile=16),
        dict(tile=16, text=OPTIONS["region"]["text"]),
        dict(aug_level=0.2, aug_noise="each step", sampler="ddpm"),
        dict(original=torch.rand(1, 32, 32, 3), mask=MASK[None], strength=1.0),
    ],
    ids=["tiles", "tiles with a region", "noise each step", "inpainting"],
)
def test_options_of_super_resolution(given):
    run(stage_of("sr"), **given)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_discrete_schedule(sampler):
    run(stage_of("base", schedule=DiscreteSchedule(), prediction="eps"), sampler=sampler)


class Fetched(TorchFunctionMode):
    """What the CPU asks for of the device: one half everywhere."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return torch.full(args[0].shape, 0.5, dtype=args[0].dtype, device="cpu")
        return func(*args, **(kwargs or {}))


def loss_on(stage, device):
    with torch.device(device):
        text = TextEmbedding(torch.empty(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
        x0, noise, t = torch.empty(2, 3, 16, 16), torch.empty(2, 3, 16, 16), torch.empty(2)
    return diffusion_loss(stage, x0, text, t, noise)


def learned_variance():
    shape = replace(PRESETS["tiny-base"], out_channels=6)
    with torch.device("meta"):
        return Stage(StageConfig("base", 16, 1, shape, DiscreteSchedule(), "eps"))


def test_training_computes_in_float64_on_the_cpu_alone_where_a_device_has_none(monkeypatch):
    monkeypatch.setattr(schedules, "NO_FLOAT64", ("meta",))
    stage = learned_variance()
    with Fetched(), Far():
        assert loss_on(stage, "meta").is_meta
        levels = levels_of(torch.empty(2, device="meta"), 8, 4)
    assert all(level.is_meta and level.dtype == torch.float32 for level in levels)


def test_a_step_of_training_sends_nothing_to_the_device():
    stage = learned_variance()
    loss_on(stage, "meta")  # the schedule's table is sent once
    with Far(float64=True) as far, torch.device("meta"):
        loss_on(stage, "meta").sum().backward()
        images, places = torch.empty(4, 32, 32, 3, dtype=torch.uint8), torch.empty(2, 2)
        crop_images(images, torch.zeros(2, dtype=torch.long), 16, 4, places)
        blur(torch.empty(2, 3, 8, 8), torch.empty(2))
    assert far.sent == []


def test_memory_of_an_apple_gpu_is_what_it_recommends(monkeypatch):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3)
    assert free_bytes(torch.device("mps")) == 7
