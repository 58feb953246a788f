"""The parts of training against their closed forms."""

import json

import numpy as np
import pytest
import torch

from imagen_nodes.imagen_core import PRESETS, Schedule, Stage, StageConfig, TextEmbedding
from imagen_nodes.imagen_core.diffusion.denoiser import target
from imagen_nodes.imagen_core.kernels import precision
from imagen_nodes.imagen_core.training.data import (
    NULL_ROW,
    Pairs,
    add_noise,
    blur,
    crop_images,
    read_manifest,
)
from imagen_nodes.imagen_core.training.ema import EMA
from imagen_nodes.imagen_core.training.loop import rows_of
from imagen_nodes.imagen_core.training.loss import diffusion_loss, min_snr_weight, stratified_t
from imagen_nodes.imagen_core.training.optim import lr_factor, make_optimizer, orthogonalize
from imagen_nodes.imagen_core.training.processes import processes
from imagen_nodes.imagen_core.training.recipe import DataSection, RecipeError, parse_recipe

SECTION = DataSection("encoder", "images", "manifest", text_dropout=0.0)


class Perfect(torch.nn.Module):
    """A network that knows the answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def prepare(self, text):
        return None

    def forward(self, x, t, context, *lowres):
        return self.answer


def text(rows):
    return TextEmbedding(torch.zeros(rows, 2, 16), torch.ones(rows, 2, dtype=torch.bool))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_loss_of_a_perfect_network_is_zero(prediction):
    x0, noise = torch.randn(2, 4, 3, 8, 8)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    config = StageConfig("base", 8, 1, PRESETS["tiny-base"], prediction=prediction)
    logsnr = config.schedule.logsnr(t)[:, None, None, None]
    stage = Stage(config, Perfect(target(prediction, x0, noise, logsnr)))
    assert diffusion_loss(stage, x0, text(4), t, noise).abs().max() == 0
    stage = Stage(config, Perfect(target(prediction, x0, noise, logsnr) + 1))
    expected = min_snr_weight(prediction, logsnr.flatten())
    assert torch.allclose(diffusion_loss(stage, x0, text(4), t, noise), expected, rtol=1e-4)


def test_min_snr_weights_agree_on_the_same_error_of_x0():
    """An error d of x0 is d alpha/sigma of eps and d/sigma of v; the weighted squares are equal."""
    logsnr = torch.linspace(-8, 8, 33, dtype=torch.float64)
    snr = logsnr.exp()
    in_x0 = min_snr_weight("x0", logsnr)
    assert torch.allclose(in_x0, snr.clamp(max=5))
    assert torch.allclose(min_snr_weight("eps", logsnr) * snr, in_x0)
    assert torch.allclose(min_snr_weight("v", logsnr) * (1 + snr), in_x0)


def test_times_cover_the_interval_evenly():
    t = stratified_t(8, torch.tensor([0.3])).sort().values
    assert torch.allclose(t.diff(), torch.full((7,), 1 / 8))
    assert 0 <= t[0] < t[-1] < 1


def test_ema_follows_its_recursion_and_keeps_a_constant():
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(2.0)
    ema = EMA(network, decay=0.9)
    for _ in range(5):
        ema.update(network)
    assert ema.averages[0].item() == 2.0
    expected = 2.0
    for k, value in enumerate([3.0, 5.0, 1.0], start=5):
        network.weight.data.fill_(value)
        ema.update(network)
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * value
    assert ema.averages[0].item() == pytest.approx(expected)
    ema.copy_to(network)
    assert network.weight.item() == pytest.approx(expected)


def test_learning_rate_warms_up_stays_and_falls():
    assert lr_factor(0, 0.0, 10, 0.4) == pytest.approx(0.1)
    assert lr_factor(50, 0.5, 10, 0.4) == 1
    assert lr_factor(50, 0.8, 10, 0.4) == pytest.approx(0.5)
    assert lr_factor(50, 1.0, 10, 0.4) == pytest.approx(0, abs=1e-12)
    assert lr_factor(50, 1.0, 10, 0.0) == 1


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_muon_orthogonalises(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(values))
    assert values.min() > 0.4
    assert values.max() < 1.3


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimisers_fit_a_line(name):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    optimizer = make_optimizer(network, name, 0.03, 0.0)
    x = torch.randn(64, 4)
    y = x @ torch.randn(4, 2)
    first = (network(x) - y).square().mean().item()
    for _ in range(100):
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * first


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="optimizer must be one of"):
        make_optimizer(torch.nn.Linear(1, 1), "sgd", 0.1, 0.0)


def pairs(images, rows=((1,), (2,)), weights=(1.0, 1.0)):
    count = len(images)
    cdf = torch.tensor(weights).cumsum(0) / sum(weights)
    rows = torch.tensor(rows)
    return Pairs(
        images,
        torch.arange(4.0)[:, None, None].expand(4, 2, 16).clone(),
        torch.ones(4, 2, dtype=torch.bool),
        rows,
        torch.linspace(0, 1, rows.shape[1] + 1)[1:].expand(count, -1).contiguous(),
        cdf,
    )


def draw_batch(data, section, schedule, scale, batch, seed, step):
    drawn = next(data.batches(section, scale, batch, seed, step))
    return add_noise(drawn, section, schedule, scale, seed, step)


def two_pictures(side=32):
    return torch.stack([torch.full((side, side, 3), 10), torch.full((side, side, 3), 200)]).byte()


def test_a_batch_is_a_function_of_seed_and_step():
    data = pairs(torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8))

    def draw(seed, step):
        batch = draw_batch(data, SECTION, Schedule(), 4, 8, seed, step)
        return [batch.x0, batch.t, batch.noise, batch.lowres.image]

    one = draw(3, 5)
    assert all(torch.equal(a, b) for a, b in zip(one, draw(3, 5), strict=True))
    for other in (draw(3, 6), draw(4, 5)):
        assert not torch.equal(one[2], other[2])


def test_captions_belong_to_their_pictures_and_weights_are_followed():
    data = pairs(two_pictures(), rows=((1,), (2,)), weights=(3.0, 1.0))
    batch = draw_batch(data, SECTION, Schedule(), 1, 4000, 0, 0)
    dark = batch.x0[:, 0, 0, 0] < 0
    assert torch.equal(batch.text.embeds[:, 0, 0], torch.where(dark, 1.0, 2.0))
    assert dark.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_text_dropout_gives_the_empty_prompt_that_often():
    section = DataSection("e", "i", "m", text_dropout=0.2)
    batch = draw_batch(pairs(two_pictures()), section, Schedule(), 1, 4000, 0, 0)
    dropped = (batch.text.embeds[:, 0, 0] == NULL_ROW).float().mean().item()
    assert dropped == pytest.approx(0.2, abs=0.03)


def test_crops_lie_at_multiples_of_the_scale_and_lowres_is_their_box_mean():
    ramp = torch.arange(32 * 32).reshape(32, 32, 1).expand(-1, -1, 3) % 251
    images = ramp.byte()[None]
    place = torch.rand(2, 64)
    crops = crop_images(images, torch.zeros(64, dtype=torch.long), 16, 4, place)
    tops = {tuple(crop[0, :2, 0].tolist()) for crop in crops}
    allowed = {
        tuple(images[0, y, x : x + 2, 0].tolist()) for y in range(0, 17, 4) for x in range(0, 17, 4)
    }
    assert tops <= allowed
    assert len(tops) > 10
    section = DataSection("e", "i", "m", crop=16, aug_max=0.0, blur_max=0.0)
    data = pairs(images.expand(2, -1, -1, -1))
    batch = draw_batch(data, section, Schedule(), 4, 8, 0, 0)
    means = batch.x0.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    centres = torch.nn.functional.interpolate(means, scale_factor=4, mode="bilinear")
    assert (batch.lowres.image - centres).abs().max() < 0.01
    assert torch.equal(batch.lowres.timestep, torch.zeros(8))


def test_augmentation_level_is_told_to_the_network():
    section = DataSection("e", "i", "m", aug_max=0.5)
    batch = draw_batch(pairs(two_pictures()), section, Schedule(), 4, 512, 0, 0)
    assert 0 <= batch.lowres.timestep.min() < 20
    assert 480 < batch.lowres.timestep.max() <= 500
    noisy = (batch.lowres.image.std(dim=(1, 2, 3)), batch.lowres.timestep)
    assert torch.corrcoef(torch.stack(noisy))[0, 1] > 0.95


def test_blur_keeps_a_constant_and_softens_an_edge():
    flat = torch.full((1, 3, 6, 6), 0.3)
    assert torch.allclose(blur(flat, torch.ones(1)), flat)
    edge = torch.zeros(1, 3, 6, 6)
    edge[..., 3:] = 1
    assert torch.allclose(blur(edge, torch.ones(1))[0, 0, 3, 2:4], torch.tensor([0.25, 0.75]))
    assert torch.equal(blur(edge, torch.zeros(1)), edge)


def test_parts_of_a_batch_are_the_batch():
    batch = draw_batch(pairs(two_pictures()), SECTION, Schedule(), 4, 8, 0, 0)
    parts = [rows_of(batch, k, 2) for k in range(2)]
    assert torch.equal(torch.stack([p.t for p in parts], 1).flatten(), batch.t)
    assert torch.equal(
        torch.stack([p.lowres.image for p in parts], 1).flatten(0, 1), batch.lowres.image
    )


def test_manifest_rows_are_matched_to_images(tmp_path):
    rows = ((0, 1), (1, None), (2, 0))
    own = {"captions": [["a", 1.0]], "weight": 1}
    entries = [{"n": n, "large": row, **own} for n, row in rows]
    (tmp_path / "m.json").write_text(json.dumps({"pictures": entries}))
    section = DataSection("e", "x.npy", str(tmp_path / "m.json"), row="large")
    assert [entry["n"] for entry in read_manifest(section, 2)] == [2, 0]
    with pytest.raises(ValueError, match="one entry for each of the 5 images of x.npy, got 2"):
        read_manifest(section, 5)


RECIPE = {
    "stage": {"preset": "tiny-base", "kind": "base", "resolution": 16},
    "data": {"images": "i", "manifest": "m", "text_encoder": "t"},
    "optim": {},
    "run": {"out": "o", "steps": 2},
}


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("run", "stepz", 3, r"run\.stepz: unknown key; expected one of .*steps"),
        ("run", "steps", "many", r"run\.steps: expected int, got 'many'"),
        ("run", "minutes", 2, "one of steps and minutes"),
        ("run", "steps", 0, "one of steps and minutes"),
        ("stage", "schedule", {"name": "karras"}, r"stage\.schedule\.name: expected one of"),
        ("data", "crop", 10, None),
    ],
)
def test_recipe_faults_name_their_key(tmp_path, section, key, value, message):
    data = {**RECIPE, section: {**RECIPE[section], key: value}}
    if message is None:
        data["stage"] = {**RECIPE["stage"], "scale": 4}
        message = r"data\.crop: expected a multiple of stage\.scale 4, got 10"
    with pytest.raises(RecipeError, match=message):
        parse_recipe(data, tmp_path)


def test_recipe_paths_are_relative_to_the_file(tmp_path):
    recipe = parse_recipe(RECIPE, tmp_path)
    assert recipe.data.images == str(tmp_path / "i")
    assert np.isclose(recipe.optim.lr, 3e-4)
    unknown = {**RECIPE, "stage": {**RECIPE["stage"], "preset": "huge"}}
    with pytest.raises(RecipeError, match=r"stage\.preset: expected one of"):
        parse_recipe(unknown, tmp_path).stage_config()


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_is_what_the_cpu_computes_in(monkeypatch, fast):
    monkeypatch.setattr(precision, "cpu_computes_bfloat16", lambda: fast)
    assert uses_bfloat16(processes("auto", on_cpu=True)) == fast
    assert not uses_bfloat16(processes("float32", on_cpu=True))
    assert uses_bfloat16(processes("bfloat16", on_cpu=True))


def uses_bfloat16(accelerator):
    x = torch.eye(2)
    with accelerator.autocast():
        return (x @ x).dtype == torch.bfloat16
