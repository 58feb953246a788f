"""Distillation: where the levels lie, what the student is shown, and that fewer steps then do."""

import copy

import pytest
import torch
from PIL import Image

from imagen_nodes.imagen_core import (
    PRESETS,
    EncodedPrompt,
    Guidance,
    Stage,
    StageConfig,
    TextEmbedding,
    load_lora,
    load_stage,
    sample_base,
    save_stage,
)
from imagen_nodes.imagen_core.stage import SamplingDefaults
from imagen_nodes.imagen_core.training import distill, loop
from imagen_nodes.imagen_core.training.data import Batch
from imagen_nodes.imagen_core.training.distill import DistillLoss, clean_end, ddim, goal, levels_of
from imagen_nodes.imagen_core.training.loop import StageLoss, Watch, train
from imagen_nodes.imagen_core.training.loss import stratified_t
from imagen_nodes.imagen_core.training.recipe import (
    DistillSection,
    RecipeError,
    TuneSection,
    parse_recipe,
)
from imagen_nodes.imagen_core.training.tuning import prepare

PLAIN = Guidance(1.0, "none")
QUIET = Watch(line=lambda line: None, note=lambda line: None)


def text(rows, seed=1):
    states = torch.randn(rows, 4, 16, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(states, torch.ones(rows, 4, dtype=torch.bool))


def random_stage(seed=0, **settings):
    torch.manual_seed(seed)
    stage = Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"], **settings))
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return stage


@pytest.fixture
def stage():
    return random_stage()


@pytest.fixture
def x():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_levels_are_those_of_the_samplers_grids():
    levels = levels_of(torch.tensor([0.0, 0.124, 0.26, 0.49, 0.5, 0.999]), 8, 4)
    assert levels.now.tolist() == [0.125, 0.125, 0.375, 0.5, 0.625, 1.0]
    assert levels.next.tolist() == [0.0, 0.0, 0.25, 0.375, 0.5, 0.875]
    assert levels.end.tolist() == [0.0, 0.0, 0.25, 0.25, 0.5, 0.75]


def test_a_ddim_step_is_the_samplers(stage, x):
    """One step of `ddim` between two levels of the grid, whatever the network says."""
    x0 = torch.randn_like(x)
    t = torch.linspace(1, 0, 5)
    sigmas = stage.schedule.sigmas(4)
    scaled = (x.double() - x0.double()) * (sigmas[2] / sigmas[1]) + x0.double()  # x / alpha
    now, later = (t[i].expand(4) for i in (1, 2))
    alpha, _ = distill.scales(stage, now)
    alpha_later, _ = distill.scales(stage, later)
    found = ddim(stage, alpha * x, x0, now, later)
    assert torch.allclose(found, alpha_later * scaled.float(), atol=1e-4)


def test_the_clean_end_undoes_a_step(stage, x):
    x0, now, end = torch.randn_like(x), torch.full((4,), 0.75), torch.full((4,), 0.25)
    landed = ddim(stage, x, x0, now, end)
    assert torch.allclose(clean_end(stage, x, landed, now, end), x0, atol=1e-4)


def test_a_student_of_as_many_steps_is_shown_the_teachers_own_answer(stage, x):
    levels = levels_of(torch.tensor([0.1, 0.4, 0.6, 0.9]), 4, 4)
    other = random_stage(7)
    found = goal(other, stage, x, levels, text(4), text(1), PLAIN, None)
    with torch.no_grad():
        output = distill.network_output(stage, x, levels.now, text(4), None)
        expected = distill.clean(stage, x, levels.now, output)
    assert torch.allclose(found, expected, atol=1e-4)


def test_two_steps_of_the_teacher_become_one(stage, x):
    """From the top of a segment of two steps, with the teacher as its own student."""
    levels = levels_of(torch.tensor([0.30, 0.49, 0.80, 0.99]), 8, 4)
    found = goal(stage, stage, x, levels, text(4), text(1), PLAIN, None)
    by_hand = x
    with torch.no_grad():
        for now, later in ((levels.now, levels.next), (levels.next, levels.end)):
            output = distill.network_output(stage, by_hand, now, text(4), None)
            stepped = ddim(stage, by_hand, distill.clean(stage, by_hand, now, output), now, later)
            moved = (later < now)[:, None, None, None]
            by_hand = torch.where(moved, stepped, by_hand)
    assert torch.allclose(ddim(stage, x, found, levels.now, levels.end), by_hand, atol=1e-4)


def test_guidance_and_threshold_are_the_teachers(stage, x):
    levels = levels_of(torch.tensor([0.1, 0.4, 0.6, 0.9]), 4, 4)

    def shown(guidance):
        return goal(stage, stage, x, levels, text(4), text(1, 5), guidance, None)

    conditional, null = (
        goal(stage, stage, x, levels, states, text(1, 5), PLAIN, None)
        for states in (text(4), text(1, 5).expand(4))
    )
    expected = null + 3 * (conditional - null)
    assert torch.allclose(shown(Guidance(3.0, "none")), expected, atol=1e-3)
    assert not torch.allclose(conditional, null, atol=1e-2)
    assert shown(Guidance(3.0, "static")).abs().max() <= 1 + 1e-3


def test_the_loss_is_nothing_where_student_and_teacher_agree(stage, x):
    section = DistillSection(steps=4, teacher_steps=4, guidance_scale=1.0, threshold="none")
    batch = Batch(x, text(4), torch.tensor([0.1, 0.4, 0.6, 0.9]), torch.randn_like(x), None)
    same = DistillLoss(stage, stage, text(1), section, "flat")(batch).item()
    apart = DistillLoss(random_stage(7), stage, text(1), section, "flat")(batch).item()
    assert same < 1e-7 < 1e-3 < apart


def squares(batch, generator):
    """A batch of squares in one of three colours, all with the same text."""
    x0 = torch.ones(batch, 3, 8, 8)
    colours = torch.tensor([[1.0, -1, -1], [-1, -1, 1], [-1, 1, -1]])
    chosen = colours[torch.randint(0, 3, (batch,), generator=generator)]
    x0[:, :, 2:6, 2:6] = chosen[:, :, None, None]
    t = stratified_t(batch, torch.rand(1, generator=generator))
    return Batch(x0, text(batch), t, torch.randn(x0.shape, generator=generator), None)


def fit(loss, stage, steps, lr):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in stage.unet.parameters() if p.requires_grad], lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, 2 * (1 - step / steps))
        loss(squares(24, generator)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow  # a quarter of a minute
def test_two_steps_of_a_student_end_nearer_to_the_teachers_picture():
    torch.manual_seed(0)
    stage = Stage(StageConfig("base", 8, 1, PRESETS["tiny-base"]))
    stage.unet.requires_grad_(True)
    fit(StageLoss(stage, "flat"), stage, 150, 5e-3)
    teacher = copy.deepcopy(stage)
    section = DistillSection(2, 8, 1.0, "static")
    fit(DistillLoss(stage, teacher, text(1), section, "flat"), stage, 200, 3e-3)
    settings = {"width": 8, "height": 8, "batch_size": 32, "seed": 3, "sampler": "ddim"}
    settings["guidance"] = Guidance(1.0, "static")
    prompt = EncodedPrompt(text(1), text(1))
    with torch.no_grad():
        full, hasty, found = (
            sample_base(by, prompt, steps=steps, **settings)
            for by, steps in ((teacher, 8), (teacher, 2), (stage, 2))
        )
    before, after = ((each - full).square().mean().sqrt() for each in (hasty, found))
    assert after < 0.8 * before, (before, after)


def recipe(**distilled):
    return {
        "stage": {"preset": "tiny-base", "kind": "base", "resolution": 16, "prediction": "v",
                  "start_from": "teacher.safetensors",
                  "defaults": {"steps": 2, "sampler": "ddim", "guidance_scale": 1.0}},
        "data": {"folder": "pictures", "text_encoder": "t5", "workers": 0, "text_dropout": 0.0},
        "optim": {"warmup_steps": 0, "lr": 1e-3, "ema_decay": 0.5},
        "run": {"out": "run", "batch": 2, "steps": 2},
        "distill": {"steps": 2, "teacher_steps": 8, **distilled},
    }  # fmt: skip


@pytest.fixture
def teacher(tmp_path, t5_folder):
    """In a folder with two pictures and a text encoder."""
    (tmp_path / "pictures").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (16, 16), name).save(tmp_path / f"pictures/{name}.png")
    (tmp_path / "t5").symlink_to(t5_folder)
    stage = random_stage()
    save_stage(stage, tmp_path / "teacher.safetensors")
    return stage


def test_a_recipe_makes_a_student(tmp_path, teacher):
    student = load_stage(train(parse_recipe(recipe(), tmp_path), watch=QUIET))
    assert student.config.defaults == SamplingDefaults(2, "ddim", guidance_scale=1.0)
    pairs = zip(student.unet.parameters(), teacher.unet.parameters(), strict=True)
    assert 0 < max((a - b).abs().max().item() for a, b in pairs) < 0.1


def test_a_student_may_be_a_lora_of_its_teacher(tmp_path, teacher, monkeypatch):
    """Both share the teacher's weights, which are loaded once."""
    loaded = []
    monkeypatch.setattr(loop, "load_stage", lambda *a, **k: loaded.append(a) or load_stage(*a, **k))
    tuned = recipe() | {"tune": {"what": "lora", "rank": 2}}
    lora = load_lora(train(parse_recipe(tuned, tmp_path), watch=QUIET), teacher)
    assert len(loaded) == 1
    assert any(update.up.abs().max() > 0 for update in lora.updates.values())


@pytest.mark.slow  # some seconds
def test_a_lora_learns_the_teachers_way(stage):
    teacher = copy.deepcopy(stage)
    student = prepare(stage, TuneSection(what="lora", rank=8))
    loss = DistillLoss(student, teacher, text(1), DistillSection(2, 8), "flat")
    known = squares(24, torch.Generator().manual_seed(5))
    before = loss(known).item()
    fit(loss, student, 25, 8e-3)
    assert loss(known).item() < 0.93 * before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill": {"steps": 3, "teacher_steps": 8}}, "multiple of distill.steps 3, got 8"),
        ({"stage": {"preset": "tiny-base", "resolution": 16}}, "needs a teacher"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe() | change, tmp_path)
