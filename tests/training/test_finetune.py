"""Tuning: LoRAs and parts of a stage, learned variance, how a run stops, goes on and fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagen_nodes.cli.finetune import make_prior, prompts_of
from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core import (
    PRESETS,
    Stage,
    StageConfig,
    TextEmbedding,
    apply_lora,
    load_lora,
    load_stage,
    save_stage,
)
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule
from imagen_nodes.imagen_core.training import loop
from imagen_nodes.imagen_core.training.checkpoint import hold
from imagen_nodes.imagen_core.training.loop import Watch, train
from imagen_nodes.imagen_core.training.loss import diffusion_loss, variance_bound
from imagen_nodes.imagen_core.training.progress import DivergedError
from imagen_nodes.imagen_core.training.recipe import RecipeError, TuneSection, parse_recipe
from imagen_nodes.imagen_core.training.tuning import prepare

NAMES = ("a red apple", "a dog", "a blue heart", "a hill")


def text(rows):
    states = torch.randn(rows, 4, 16, generator=torch.Generator().manual_seed(1))
    return TextEmbedding(states, torch.ones(rows, 4, dtype=torch.bool))


def random_stage(config, seed=0):
    torch.manual_seed(seed)
    stage = Stage(config)
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return stage


@pytest.fixture
def folder(tmp_path, t5_folder):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for name in NAMES:
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
    (tmp_path / "t5").symlink_to(t5_folder)
    base = StageConfig("base", 16, 1, PRESETS["tiny-base"])
    save_stage(random_stage(base), tmp_path / "base.safetensors")
    return tmp_path


def recipe(out="run", tune=None, stage=None, data=None, optim=None, **run):
    return {
        "stage": stage or {"start_from": "base.safetensors"},
        "data": {"folder": "pictures", "text_encoder": "t5", "workers": 0, **(data or {})},
        "optim": {"warmup_steps": 1, "lr": 1e-2, "ema_decay": 0.9, "decay": 0.0, **(optim or {})},
        "tune": {"what": "lora", "rank": 4, **(tune or {})},
        "run": {"out": out, "batch": 4, "log_every": 5, **run},
    }


QUIET = Watch(line=lambda line: None, note=lambda line: None)


def follow(data, folder, watch=QUIET):
    return train(parse_recipe(data, folder), watch=watch)


@pytest.mark.parametrize("tune", [{}, {"dora": True}, {"targets": "attention", "alpha": 8.0}])
def test_a_lora_lowers_the_loss_and_does_on_the_base_what_it_was_trained_to_do(folder, tune):
    made = []
    watch = replace(QUIET, sample=lambda stage: made.append(stage) or torch.zeros(1, 4, 4, 3))
    lr = {"lr": 3e-2}
    path = follow(
        recipe(tune=tune, steps=30, sample_every=30, optim=lr, data={"held_out": 0.4}),
        folder,
        watch,
    )
    assert path.name == "lora.safetensors"
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]
    assert "held_out" in lines[-1]
    assert (folder / "run/samples/step_000030.png").is_file()
    base = load_stage(folder / "base.safetensors")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 700.0])

    def output(stage):
        with torch.no_grad():
            return stage.unet(x, t, stage.unet.prepare(text(2)))

    with_lora = output(apply_lora(base, load_lora(path, base)))
    assert torch.allclose(with_lora, output(made[-1]), atol=1e-5)
    assert (with_lora - output(base)).abs().max() > 1e-3
    attention_alone = tune.get("targets") == "attention"
    layers = load_lora(path, base).updates
    assert all(".attention." in name for name in layers) == attention_alone


def test_a_new_branch_changes_nothing_and_dora_begins_at_the_weights_norms(folder):
    stage = load_stage(folder / "base.safetensors")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100.0, 700.0])
    expected = stage.unet(x, t, stage.unet.prepare(text(2)))
    for dora in (False, True):
        tuned = prepare(stage, TuneSection(what="lora", dora=dora))
        found = tuned.unet(x, t, tuned.unet.prepare(text(2)))
        assert torch.allclose(found, expected, atol=1e-5)
        assert not any(p.requires_grad for p in stage.unet.parameters())


def test_a_lora_of_a_super_resolution_stage_lowers_its_loss(folder):
    sr = StageConfig("sr", 64, 4, PRESETS["tiny-sr"])
    save_stage(random_stage(sr), folder / "sr.safetensors")
    stage = {"start_from": "sr.safetensors", "scale": 4}
    data = recipe(
        stage=stage, steps=15, sample_every=1, log_every=1, optim={"lr": 1e-2},
        data={"crop": 16, "held_out": 0.4},
    )  # fmt: skip
    follow(data, folder)
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out"] < 0.95 * lines[0]["held_out"]


def test_attention_alone_leaves_the_rest_as_it_was(folder):
    path = follow(recipe(tune={"what": "attention"}, steps=3), folder)
    before = load_stage(folder / "base.safetensors").unet.state_dict()
    after = load_stage(path, dtype=torch.float32).unet.state_dict()
    changed = {n for n in before if not torch.equal(before[n].half().float(), after[n])}
    assert changed
    assert all(".attention." in name for name in changed)


def test_checkpointing_gives_the_same_gradients(folder):
    stage = load_stage(folder / "base.safetensors")
    grads = []
    for on in (False, True):
        tuned = prepare(load_stage(folder / "base.safetensors"), TuneSection(checkpointing=on))
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        diffusion_loss(tuned, x, text(2), torch.tensor([0.2, 0.7]), x.flip(0)).sum().backward()
        grads.append([p.grad for p in tuned.unet.parameters() if p.grad is not None])
    assert len(grads[0]) > 50
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
    del stage


def learned_variance(kind="base"):
    unet = replace(PRESETS["tiny-base"], out_channels=6)
    return StageConfig(kind, 16, 1, unet, DiscreteSchedule(), "eps")


def test_the_bound_is_the_divergence_of_the_true_step_from_the_networks():
    """By torch's own normal distributions, and at the first timestep the chance of an 8-bit level."""
    schedule = DiscreteSchedule()
    x0 = torch.randint(0, 256, (4, 3, 8, 8)) / 127.5 - 1
    found, learned = (x0 + 0.1 * torch.randn_like(x0)).clamp(-1, 1), torch.rand_like(x0) * 2 - 1
    t = torch.tensor([0.0005, 0.0015, 0.4005, 0.9995])
    bars = torch.sigmoid(schedule.table())
    index = (1000 * t).long()
    bound = variance_bound(schedule, t, x0, x0, found, learned)
    for row, i in list(enumerate(index.tolist()))[1:]:
        bar, before = bars[i], bars[i - 1]
        beta = 1 - bar / before
        variance = beta * (1 - before) / (1 - bar)
        pull = before.sqrt() * beta / (1 - bar)
        log = torch.lerp(variance.log(), beta.log(), (learned[row].double() + 1) / 2)
        true = torch.distributions.Normal(pull * x0[row].double(), variance.sqrt())
        net = torch.distributions.Normal(pull * found[row].double(), (0.5 * log).exp())
        expected = torch.distributions.kl_divergence(true, net) / np.log(2)
        assert torch.allclose(bound[row].double(), expected, rtol=1e-3, atol=1e-5)
    assert (bound >= -1e-6).all()
    assert bound[0].isfinite().all()


def test_learned_variance_is_trained_on_or_left_alone():
    stage = random_stage(learned_variance())
    x0, noise = torch.randn(2, 4, 3, 16, 16).clamp(-1, 1)
    t = torch.tensor([0.0, 0.25, 0.5, 0.99])
    seen = {}
    for how in ("hybrid", "keep"):
        stage.unet.zero_grad()
        diffusion_loss(stage, x0, text(4), t, noise, variance=how).mean().backward()
        grad = stage.unet.conv_out.bias.grad
        seen[how] = grad[:3].clone(), grad[3:].clone()
    assert torch.allclose(seen["hybrid"][0], seen["keep"][0], atol=1e-6)
    assert seen["keep"][1].abs().max() == 0
    assert seen["hybrid"][1].abs().min() > 0


def test_a_discrete_network_is_shown_whole_timesteps():
    stage, seen = random_stage(learned_variance()), []
    forward = stage.unet.forward
    stage.unet.forward = lambda x, t, *rest: seen.append(t) or forward(x, t, *rest)
    x0, noise = torch.randn(2, 3, 3, 16, 16)
    diffusion_loss(stage, x0, text(3), torch.tensor([0.0, 0.12345, 0.99999]), noise)
    assert torch.allclose(seen[0], torch.tensor([0.0, 123.0, 999.0]), atol=1e-3)


def test_a_mask_takes_pixels_out_of_the_loss():
    stage = random_stage(StageConfig("base", 16, 1, PRESETS["tiny-base"]))
    x0, noise = torch.randn(2, 2, 3, 16, 16)
    t, mask = torch.tensor([0.3, 0.6]), torch.ones(2, 1, 16, 16)
    whole = diffusion_loss(stage, x0, text(2), t, noise)
    assert torch.allclose(diffusion_loss(stage, x0, text(2), t, noise, weight=mask), whole)
    mask[:, :, :8] = 0
    with torch.no_grad():
        for_all = diffusion_loss(stage, x0, text(2), t, noise, weight=torch.zeros_like(mask))
        assert for_all.abs().max() == 0
        assert not torch.allclose(diffusion_loss(stage, x0, text(2), t, noise, weight=mask), whole)


def test_a_loss_that_explodes_stops_the_run_and_nothing_is_made(folder, capsys):
    data = recipe(steps=60, tune={"what": "all"}, optim={"lr": 1e4, "clip": 1e9})
    with pytest.raises(DivergedError, match=r"diverged at learning rate 10000; nothing was saved"):
        follow(data, folder)
    assert not (folder / "run/stage.safetensors").exists()
    (folder / "bad.toml").write_text("[stage]\nstart_from = 'base.safetensors'\n")
    assert main(["train", str(folder / "bad.toml")]) == 2
    assert f"{folder / 'bad.toml'}: [data]: this table is missing" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_no_number_keeps_the_last_good_checkpoint(folder, monkeypatch, what):
    """A loss, or weights after the last step before a checkpoint, whose loss nobody has seen."""
    real, calls = loop.diffusion_loss, []

    def breaks_at_the_sixth(stage, *given, **more):
        calls.append(1)
        if len(calls) == 6 and what == "weights":
            for parameter in stage.unet.parameters():
                parameter.register_hook(lambda grad: grad * float("nan"))
        factor = float("nan") if len(calls) == 6 and what == "loss" else 1.0
        return factor * real(stage, *given, **more)

    monkeypatch.setattr(loop, "diffusion_loss", breaks_at_the_sixth)
    data = recipe(steps=9, save_every=2, log_every=100, tune={"what": "all"})
    with pytest.raises(DivergedError, match="the last good checkpoint is in .*run/checkpoint"):
        follow(data, folder)
    assert json.loads((folder / "run/checkpoint/progress.json").read_text())["step"] == 4
    assert all(
        tensor.isfinite().all()
        for name in ("checkpoint/weights", "stage")
        for tensor in load_file(folder / f"run/{name}.safetensors").values()
    )


def lines_of(folder, out):
    lines = [json.loads(line) for line in (folder / out / "log.jsonl").read_text().splitlines()]
    return [{k: line[k] for k in ("step", "loss", "grad_norm", "lr")} for line in lines]


def test_stopped_and_gone_on_it_is_the_uninterrupted_run_and_no_log_point_is_lost(folder):
    follow(recipe("whole", steps=13), folder)
    steps = []

    def stop():
        steps.append(1)
        return len(steps) == 7

    with pytest.raises(KeyboardInterrupt, match="stopped at step 7, and saved"):
        follow(recipe("parts", steps=13), folder, replace(QUIET, stop=stop))
    follow(recipe("parts", steps=13), folder)
    assert lines_of(folder, "parts") == lines_of(folder, "whole")
    for name in ("checkpoint/weights", "checkpoint/ema", "checkpoint/optimizer", "lora"):
        one, other = (load_file(folder / run / f"{name}.safetensors") for run in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_a_finished_run_says_so_and_exports_what_a_kill_kept_from_being_exported(folder):
    path = follow(recipe(steps=2), folder)
    made = path.read_bytes()
    path.unlink()
    told = []
    assert follow(recipe(steps=2), folder, replace(QUIET, note=told.append)) == path
    assert path.read_bytes() == made
    assert "this run is finished" in told[-1]


def test_other_settings_on_going_on_are_refused_by_name(folder):
    follow(recipe(steps=2), folder)
    with pytest.raises(
        RecipeError, match=r"optim\.lr: the run in .* was begun with 0\.01, got 0\.1"
    ):
        follow(recipe(steps=4, optim={"lr": 0.1}), folder)
    with pytest.raises(RecipeError, match=r"tune\.rank: .*begun with 4, got 8"):
        follow(recipe(steps=4, tune={"rank": 8}), folder)
    follow(recipe(steps=4), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("run"), r"\[run\]: this table is missing"),
        (lambda r: r["run"].update(batch=3, accumulation=2), r"run\.batch: expected a multiple of"),
        (
            lambda r: r["run"].update(accumulation=0),
            r"run\.accumulation: expected 1 or more, got 0",
        ),
        (lambda r: r["run"].update(seed=-1), r"run\.seed: expected 0 to 9\d+, got -1"),
        (lambda r: r["optim"].update(lr=float("nan")), r"optim\.lr: expected 0 or more, got nan"),
        (lambda r: r["run"].update(log_every=0), r"run\.log_every: expected 1 or more, got 0"),
        (lambda r: r["tune"].update(what="bse"), r"tune\.what: expected one of .*'bse'"),
        (
            lambda r: r["data"].update(text_dropout=2.0),
            r"data\.text_dropout: expected 0 to 1, got 2",
        ),
        (lambda r: r.update(stage={"kind": "base"}), r"stage\.preset: expected a preset"),
        (
            lambda r: r.update(stage={"unet": {"kind": "adm", "chanels": [8]}, "resolution": 16}),
            r"stage\.unet: .*chanels",
        ),
        (
            lambda r: r.update(stage={"preset": "tiny-base", "resolution": 16}),
            r"tune\.what: 'lora' needs weights",
        ),
    ],
)
def test_mistakes_in_a_recipe_are_one_error_before_anything_is_loaded(folder, change, message):
    data = recipe(steps=2)
    change(data)
    with pytest.raises(RecipeError, match=message):
        parse_recipe(data, folder)


def test_a_shape_of_ones_own_and_an_array_of_another_size(folder):
    unet = vars(PRESETS["tiny-base"]) | {"kind": "adm"}
    stage = {"unet": {k: list(v) if isinstance(v, tuple) else v for k, v in unet.items()}}
    data = recipe(steps=1, stage={**stage, "resolution": 16}, tune={"what": "all"})
    assert load_stage(follow(data, folder)).config.unet == PRESETS["tiny-base"]
    np.save(folder / "x.npy", np.zeros((2, 32, 32, 3), np.uint8))
    (folder / "m.json").write_text(json.dumps({"pictures": [{"captions": "a", "weight": 1}] * 2}))
    data["data"] = {"images": "x.npy", "manifest": "m.json", "text_encoder": "t5"}
    data["run"]["out"] = "other"
    with pytest.raises(RecipeError, match=r"x\.npy: expected images of 16 pixels.*got 32 x 32"):
        follow(data, folder)
    np.save(folder / "x.npy", np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(RecipeError, match=r"pictures\[0\]\.captions: expected pairs .*got 'a'"):
        follow(data, folder)


RUN = """
import json, sys, torch
from pathlib import Path
from imagen_nodes.imagen_core.training.loop import train
from imagen_nodes.imagen_core.training.recipe import parse_recipe
torch.set_num_threads(1)
train(parse_recipe(json.loads(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_run_saves_first(folder, number):
    data = recipe(steps=5000, save_every=5000, data={"workers": 1})
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(data), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while "step 5 " not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "KeyboardInterrupt: stopped at step" in error
    assert json.loads((folder / "run/checkpoint/progress.json").read_text())["step"] >= 5


@pytest.mark.slow
def test_two_processes_keep_equal_weights_by_the_first_ones_clock_and_one_goes_on(folder):
    data = recipe(minutes=0.05, save_every=10_000, tune={"what": "all"})
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    script = folder / "run.py"
    script.write_text(
        RUN.replace("train(parse", "path = train(parse")
        + """
import os
from safetensors.torch import save_file
"""
    )
    done = subprocess.run(
        [*command, str(script), json.dumps(data), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    progress = json.loads((folder / "run/checkpoint/progress.json").read_text())
    assert progress["step"] > 1
    time.sleep(0.1)
    data["run"] |= {"minutes": 0.0, "steps": int(progress["step"]) + 2}
    follow(data, folder)
    again = json.loads((folder / "run/checkpoint/progress.json").read_text())
    assert again["step"] == progress["step"] + 2


def test_from_a_folder_to_a_picture_in_a_shell(folder, monkeypatch, capsys):
    monkeypatch.setenv("IMAGEN_MODELS", str(folder / "models"))
    arguments = ["new-cascade", "mine", "--base", str(folder / "base.safetensors")]
    assert main([*arguments, "--text-encoder", str(folder / "t5")]) == 0
    assert main([*arguments, "--text-encoder", str(folder / "t5")]) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.chdir(folder)
    here = ["new-cascade", "./here", *arguments[2:], "--text-encoder", str(folder / "t5")]
    assert main(here) == 0
    assert (folder / "here/cascade.json").is_file(), "a path, as generate reads it"
    sr = StageConfig("sr", 64, 4, PRESETS["tiny-sr"])
    save_stage(random_stage(sr), folder / "sr.safetensors")
    wrong = ["new-cascade", "other", "--like", "mine", "--base", str(folder / "sr.safetensors")]
    assert main(wrong) == 2
    assert "--base: expected a stage of kind base, got sr" in capsys.readouterr().err
    out = folder / "mine.safetensors"
    tune = [
        "finetune",
        "mine",
        "--images",
        str(folder / "pictures"),
        "--steps",
        "3",
        "--batch",
        "2",
    ]
    tune += ["--workers", "0", "--sample", "a dog", "-o", str(out)]
    (folder / "pictures/broken.png").write_bytes(b"")
    with monkeypatch.context() as without_weights:
        without_weights.setattr("imagen_nodes.imagen_core.load_cascade", None)
        assert main([*tune, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "a LoRA of rank 16" in told and "1 files skipped" in told
    assert f"skipped {folder}/pictures/broken.png: cannot be read" in told
    assert re.search(
        r"memory +about [1-9][0-9]*\.[0-9] MiB to train, [1-9][0-9.]* MiB for", told
    ), told
    assert not out.exists()
    assert main(tune) == 0
    told = capsys.readouterr().out
    assert f"made {out} (" in told and f"--lora {out}:0.8" in told
    assert "of training to go, beside 2 grids of samples" in told
    assert main(tune) == 0
    told = capsys.readouterr().out
    assert "to train longer raise --steps or --minutes, to begin anew choose another --out" in told
    assert f"unchanged: {out} (" in told and "made " not in told
    assert main([*tune, "--lr", "0.5"]) == 2
    assert "imagen: --lr: the run in" in capsys.readouterr().err
    assert main([*tune, "--images", str(folder / "nowhere")]) == 2
    assert "imagen: --images: expected a folder of images" in capsys.readouterr().err
    picture = folder / "dog.png"
    made = ["generate", "a dog", "--cascade", "mine", "--upto", "16", "--steps", "2"]
    assert main([*made, "--lora", f"{out}:0.8", "-o", str(picture)]) == 0
    assert Image.open(picture).size == (16, 16)
    (folder / "line.txt").write_text("a dog")
    measured = ["evaluate", "mine", "--prompts", str(folder / "line.txt"), "--steps", "1"]
    assert main([*measured, "-o", str(folder / "evaluation")]) == 0  # known by its name here too


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mix", "pictures"], "expected one of --mix and --prior"),
        (["--stage", "sr256"], "--prior: makes images of a base"),
    ],
)
def test_images_of_prior_prompts_are_put_into_no_folder_of_the_users(
    folder, monkeypatch, capsys, more, message
):
    monkeypatch.chdir(folder)
    asked = ["finetune", "emoji", "--images", "pictures", "--prior", "prior.txt", "--dry-run"]
    assert main([*asked, "-o", "mine.safetensors", *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "length", [("--steps", "0"), ("--steps", "-3"), ("--minutes", "0"), ("--minutes", "nan")]
)
def test_a_length_of_nothing_is_refused(folder, monkeypatch, capsys, length):
    monkeypatch.chdir(folder)
    asked = ["finetune", "emoji", "--images", "pictures", "-o", "mine.safetensors", "--dry-run"]
    assert main([*asked, *length]) == 2
    assert f"{length[0]}: expected a number above 0, got {length[1]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "expected a text file of prompts: No such file"), (" \n", "expected a prompt a line")],
)
def test_a_file_of_no_prior_prompts_is_named_before_anything_is_made(
    folder, monkeypatch, capsys, text, message
):
    monkeypatch.chdir(folder)
    if text:
        (folder / "prior.txt").write_text(text)
    asked = ["finetune", "emoji", "--images", "pictures", "--prior", "prior.txt"]
    assert main([*asked, "-o", "mine.safetensors"]) == 2
    assert f"--prior: prior.txt: {message}" in capsys.readouterr().err
    assert not (folder / "mine.run").exists()


def test_prior_images_are_those_of_the_prompts_as_they_are_now(tmp_path):
    asked = []

    def generate(texts, upto, seed):
        asked.append((seed, list(texts)))
        return torch.full((len(texts), upto, upto, 3), seed / 255)

    cascade = SimpleNamespace(
        generate=generate, base=SimpleNamespace(config=SimpleNamespace(resolution=4))
    )
    prompts, out = tmp_path / "prior.txt", tmp_path / "prior"
    texts = [f"thing {i}" for i in range(20)]
    for given, made in (
        (texts, [(0, texts[:16]), (16, texts[16:])]),
        (texts, []),
        ([*texts[:17], "another"], [(16, ["thing 16", "another"])]),
    ):
        asked.clear()
        prompts.write_text("\n".join(given), "utf-8")
        make_prior(prompts_of(prompts), out, cascade)
        assert asked == made
        captions = [
            path.with_suffix(".txt").read_text("utf-8") for path in sorted(out.glob("*.png"))
        ]
        assert captions == [f"{text}\n" for text in given]


@pytest.mark.parametrize("fast", [False, True])
def test_a_cpu_that_is_slow_in_bfloat16_is_told_of(folder, monkeypatch, fast):
    monkeypatch.setattr(loop, "cpu_computes_bfloat16", lambda: fast)
    notes = []
    watch = Watch(line=lambda line: None, note=notes.append)
    follow(recipe(steps=1, precision="bfloat16"), folder, watch)
    follow(recipe("other", steps=1), folder, watch)
    assert [note for note in notes if "choose float32" in note] == [loop.SLOW_BFLOAT16] * (not fast)


def test_8_bit_adamw_says_what_to_install(folder, monkeypatch):
    data = recipe(optim={"optimizer": "adamw8bit"}, steps=1)
    monkeypatch.setattr("imagen_nodes.imagen_core.training.recipe.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="adamw8bit needs .*pip install bitsandbytes"):
        parse_recipe(data, folder)


def test_8_bit_adamw_goes_on_where_it_was_stopped(folder):
    pytest.importorskip("bitsandbytes")
    optim = {"optimizer": "adamw8bit"}
    whole = follow(recipe("whole", {"rank": 64}, optim=optim, steps=6), folder)
    state = load_file(folder / "whole/checkpoint/optimizer.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in state.values()}
    asked = []
    stopping = replace(QUIET, stop=lambda: asked.append(1) or len(asked) == 3)
    with pytest.raises(KeyboardInterrupt):
        follow(recipe("parts", {"rank": 64}, optim=optim, steps=6), folder, stopping)
    parts = follow(recipe("parts", {"rank": 64}, optim=optim, steps=6), folder)
    for name, tensor in load_file(whole).items():
        assert torch.equal(tensor, load_file(parts)[name]), name


def test_two_runs_at_once_in_one_folder_are_refused(folder):
    held = hold(folder / "run")
    with pytest.raises(RecipeError, match="another training works in this folder"):
        follow(recipe(steps=1), folder)
    held.close()
    follow(recipe(steps=1), folder)
    follow(recipe(steps=2), folder)
