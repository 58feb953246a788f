"""Nothing in a sampling step waits for the device or does again what was done: counted by stand-ins."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    Stage,
    StageConfig,
    TextEmbedding,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.diffusion import denoiser, lowres, noise, schedules, tiles
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule
from imagen_nodes.imagen_core.unet import layers
from imagen_nodes.imagen_core.unet.layers import TextContext
from imagen_nodes.imagen_core.unet.reuse import Reuse
from imagen_nodes.nodes.bridge import Scales, post_cfg, skipped_steps
from imagen_nodes.nodes.host.model_text import Text, TextCond

WAITS = ("aten._local_scalar_dense", "aten.item", "aten.equal", "aten.is_nonzero", "aten.nonzero")


def prompt(rows=1, null_rows=1):
    states = torch.randn(2, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 5, dtype=torch.bool)
    cond, null = states[0, :rows], states[1, :null_rows]
    return EncodedPrompt(TextEmbedding(cond, mask[:rows]), TextEmbedding(null, mask[:null_rows]))


def random_stage(kind):
    torch.manual_seed(0)
    config = {"base": ("base", 16, 1, "tiny-base"), "sr": ("sr", 64, 4, "tiny-sr")}[kind]
    stage = Stage(StageConfig(*config[:3], PRESETS[config[3]]))
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return stage


class Operations(TorchDispatchMode):
    """Counts what torch is asked for, and what would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count, self.waits = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if str(func).startswith(WAITS):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


class Prepared:
    """A U-Net that counts how often, and of how many rows, texts are prepared."""

    def __init__(self, unet, monkeypatch):
        self.rows, real = [], unet.prepare

        def prepare(text, pooled=None):
            self.rows.append(len(text))
            return real(text, pooled)

        monkeypatch.setattr(unet, "prepare", prepare)


@pytest.mark.parametrize(
    "sampler", ["ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "restart"]
)
@torch.no_grad()
def test_no_step_waits(sampler):
    stage, marks = random_stage("base"), []
    with Operations() as seen:
        sample_base(
            stage, prompt(), width=16, height=16, steps=4, sampler=sampler,
            on_step=lambda step, of, x0: marks.append((len(seen.waits), seen.count)),
        )  # fmt: skip
    assert len({waits for waits, _ in marks}) == 1, seen.waits
    counts = [after - before for (_, before), (_, after) in zip(marks, marks[1:], strict=False)]
    assert max(counts[:-1]) - min(counts[:-1]) <= 4  # every step does the same


@torch.no_grad()
def test_a_text_is_prepared_once_for_all_pictures_and_steps(monkeypatch):
    stage = random_stage("base")
    prepared = Prepared(stage.unet, monkeypatch)
    text = prompt()
    shared = EncodedPrompt(text.text.expand(3), text.null_text.expand(3))
    made = sample_base(stage, shared, width=16, height=16, batch_size=3, steps=3)
    assert prepared.rows == [1, 1]
    alone = [sample_base(stage, text, width=16, height=16, steps=3, seed=seed) for seed in range(3)]
    assert (made - torch.cat(alone)).abs().max() < 1e-5
    prepared.rows.clear()
    many = sample_base(stage, prompt(3), width=16, height=16, batch_size=3, steps=3)
    assert prepared.rows == [3, 1]
    one = EncodedPrompt(prompt(3).text.take(slice(1, 2)), text.null_text)
    single = sample_base(stage, one, width=16, height=16, steps=3, seed=1)
    assert (many[1:2] - single).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["base", "sr"])
@torch.no_grad()
def test_pictures_share_the_keys_and_values_of_their_text(kind):
    stage = random_stage(kind)
    unet, text = stage.unet, prompt(2)
    context = unet.prepare(text.text)
    x = torch.randn(6, 3, 16, 16)
    extra = (torch.randn(6, 3, 16, 16), torch.full((6,), 100.0)) if kind == "sr" else ()
    rows = [unet.prepare(text.text.take(slice(i, i + 1))).expand(3) for i in range(2)]
    t = torch.full((6,), 500.0)
    shared, copied = (unet(x, t, each, *extra) for each in (context, TextContext.cat(rows)))
    assert len(context) == 2
    assert (shared - copied).abs().max() < 1e-5


@pytest.mark.parametrize("aug_noise", ["once", "each step"])
@torch.no_grad()
def test_tiles_and_conditioning_are_made_once(monkeypatch, aug_noise):
    stage, counts = random_stage("sr"), {"ramp": 0, "level": 0, "cast": 0}
    for module, name, key in (
        (tiles, "_ramp", "ramp"),
        (lowres, "augmented", "level"),
        (lowres.Lowres, "to", "cast"),
    ):
        real = getattr(module, name)

        def counted(*given, real=real, key=key):
            counts[key] += 1
            return real(*given)

        monkeypatch.setattr(module, name, counted)
    picture, steps = torch.rand(1, 8, 8, 3), 5
    super_resolve(
        stage, picture, prompt(), tile=16, steps=steps, aug_noise=aug_noise, aug_level=0.2
    )
    assert counts["level"] == 1
    assert counts["cast"] == (1 if aug_noise == "once" else steps)
    ramps = counts["ramp"]
    super_resolve(
        stage, picture, prompt(), tile=16, steps=3 * steps, aug_noise=aug_noise, aug_level=0.2
    )
    assert counts["ramp"] == 2 * ramps


@pytest.mark.parametrize("kind", ["base", "sr"])
@torch.no_grad()
def test_what_the_noise_levels_say_is_made_once_for_all_steps_and_tiles(monkeypatch, kind):
    stage, made = random_stage(kind).to(dtype=torch.bfloat16), []
    for owner, name in ((layers.LevelEmbedding, "forward"), (layers.ResBlock, "scale_shift")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, given, real=real: made.append(1) or real(self, given)
        )

    def picture(steps):
        made.clear()
        if kind == "base":
            return sample_base(stage, prompt(), width=16, height=16, batch_size=2, steps=steps)
        small = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))
        return super_resolve(stage, small, prompt(), tile=16, steps=steps)

    counts = [(picture(steps), len(made))[1] for steps in (3, 9)]
    assert counts[0] == counts[1]
    once = picture(9)
    monkeypatch.setattr(denoiser, "MOST_BYTES", 4096)
    in_parts = picture(9)
    assert counts[1] < len(made)
    assert torch.equal(once, in_parts)
    monkeypatch.setattr(
        denoiser.Levels, "__call__", lambda self, i, aug: self.timesteps[i].expand(self.rows)
    )
    assert (picture(9) - once).abs().max() < 2e-2


@torch.no_grad()
def test_deep_features_are_reused_between_steps(monkeypatch):
    stage, ran = random_stage("base"), []
    stage.unet.middle[0].register_forward_hook(lambda *given: ran.append(1))

    def picture(reuse, **more):
        ran.clear()
        return sample_base(stage, prompt(), width=16, height=16, steps=8, reuse=reuse, **more)

    plain = picture(None)
    assert torch.equal(picture(Reuse(1, 1)), plain)
    assert len(ran) == 8
    fewer = picture(Reuse(2, 1))
    assert len(ran) == 4
    assert 0 < (fewer - plain).abs().max() < 0.2
    picture(Reuse(4, 1), guidance=Guidance(3.0, end=0.25))
    assert len(ran) == 3  # where guidance ends the rows are others
    with pytest.raises(ValueError, match="levels from 1 to 1"):
        picture(Reuse(2, 0))


def test_the_table_of_a_schedule_is_made_once(monkeypatch):
    schedules._table.cache_clear()
    real, made = torch.linspace, []
    monkeypatch.setattr(torch, "linspace", lambda *a, **k: made.append(1) or real(*a, **k))
    for _ in range(3):
        schedule = DiscreteSchedule()
        schedule.t(schedule.logsnr(torch.tensor([0.5])))
        schedule.sigmas(10)
    assert len(made) == 1


def hook(sigma, sigmas):
    x = torch.randn(1, 3, 8, 8)
    return {
        "denoised": x, "cond_denoised": x, "uncond_denoised": x + 1, "uncond": [], "cond_scale": 7.0,
        "sigma": sigma.expand(1), "model_options": {"transformer_options": {"sample_sigmas": sigmas}},
    }  # fmt: skip


def test_the_hook_on_any_model_does_not_wait():
    guide = post_cfg(Guidance(5.0, start=0.25, end=0.75))
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])
    guide(hook(sigmas[0], sigmas))
    with Operations() as seen:
        for sigma in sigmas[:-1]:
            guide(hook(sigma, sigmas))
    assert seen.waits == []


def test_the_interval_of_a_run_that_begins_within_the_schedule_is_of_the_schedule():
    """KSampler's denoise 0.5 at 4 steps gives the last 4 of 8."""
    table = DiscreteSchedule()
    sampling = SimpleNamespace(
        sigma_max=(-0.5 * table.table()[-1]).exp(),
        timestep=lambda sigma: 1000 * table.t(-2 * sigma.double().log()),
    )
    whole = (-0.5 * table.logsnr(torch.linspace(0.999, 0, 9)[:-1])).exp()
    sigmas = torch.cat([whole, torch.zeros(1)])
    assert skipped_steps(sigmas, sampling) == 0
    assert skipped_steps(sigmas[4:], sampling) == 4
    guidance = Guidance(6.0, end=0.5)
    scales = Scales(guidance)
    assert {float(scales.at(sigma.view(1), sigmas[4:], sampling)) for sigma in sigmas[4:-1]} == {
        1.0
    }


@torch.no_grad()
def test_the_bridge_prepares_each_text_once_however_comfyui_batches_it(monkeypatch):
    stage = random_stage("base")
    prepared = Prepared(stage.unet, monkeypatch)
    texts = [
        Text(part.embeds, part.mask, part.embeds) for part in (prompt().text, prompt().null_text)
    ]
    positive, negative = (TextCond([(text, 1)]) for text in texts)
    with Operations() as seen:
        for _step in range(3):
            apart = [cond.process_cond(batch_size=2, area=None) for cond in (positive, negative)]
            assert apart[0].can_concat(apart[1])
            both = apart[0].concat(apart[1:])
            contexts = [each.context(stage, "weights") for each in (*apart, both)]
    assert seen.waits == []
    assert prepared.rows == [1, 1]
    assert both.size() == [4, 5, 16]
    assert [len(context) for context in contexts] == [1, 1, 2]
    assert both.context(stage, "weights") is contexts[2]
    assert len(both.context(stage, "other weights")) == 2
    assert prepared.rows == [1, 1, 1, 1]
    three = Text(prompt(3).text.embeds, prompt(3).text.mask, prompt(3).text.embeds)
    ragged = TextCond([(three, 4), (texts[1], 4)]).context(stage, "weights")
    assert len(ragged) == 8
    assert torch.equal(ragged.pooled[0], ragged.pooled[3])
    longer = TextEmbedding(torch.randn(1, 7, 16), torch.ones(1, 7, dtype=torch.bool))
    other = TextCond([(Text(longer.embeds, longer.mask, longer.embeds), 1)])
    assert not positive.can_concat(other)


def test_noise_goes_to_a_gpu_from_memory_that_is_pinned(monkeypatch):
    """From other memory CUDA copies only once all is computed that was asked for before."""
    done = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: done.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *where, **how: done.append((where, how)) or x)
    device = torch.device("cuda", 0)
    noise.sent(torch.zeros(1), device)
    assert done == ["pinned", ((device,), {"non_blocking": True})]
    done.clear()
    noise.sent(torch.zeros(1), torch.device("mps"))
    assert done == [((torch.device("mps"),), {})]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is what a step could wait for")
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde"])
@torch.no_grad()
def test_no_step_waits_for_a_gpu(sampler):
    stage = random_stage("base").to("cuda")
    modes = {1: "error", 6: "default"}

    def on_step(step, of, x0):
        if step in modes:
            torch.cuda.set_sync_debug_mode(modes[step])

    try:
        sample_base(
            stage,
            prompt(),
            width=16,
            height=16,
            batch_size=2,
            steps=8,
            sampler=sampler,
            on_step=on_step,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
