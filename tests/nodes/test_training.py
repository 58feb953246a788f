"""Training in the graph: the dataset, what a tuning shows and makes, how it stops and continues, figures."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import (
    PRESETS,
    SamplingDefaults,
    Stage,
    StageConfig,
    apply_lora,
    load_text_encoder,
    sample_base,
)
from imagen_nodes.imagen_core.training import processes
from imagen_nodes.nodes import host
from imagen_nodes.nodes.tuning import chain_of, loss_chart

NAMES = ("a red apple", "a dog", "a blue heart", "a hill", "a green pear")


def node(node_id, **inputs):
    cls = NODE_CLASS_MAPPINGS[node_id]
    return getattr(cls(), cls.FUNCTION)(**inputs)


def stage_of(kind="base", side=16):
    torch.manual_seed(0)
    scale, few = 4 if kind == "sr" else 1, SamplingDefaults(steps=2)
    stage = Stage(StageConfig(kind, side, scale, PRESETS[f"tiny-{kind}"], defaults=few))
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    stage.unet.requires_grad_(False)
    return stage


@pytest.fixture
def place(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "input/pictures").mkdir(parents=True)
    for name in NAMES:
        pixels = np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"input/pictures/{name}.png")
    (tmp_path / "input/pictures/broken.png").write_bytes(b"none")
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path / "models"))
    tokens = host.inputs.set(tmp_path / "input"), host.temporary.set(tmp_path / "temp")
    yield tmp_path
    host.inputs.reset(tokens[0])
    host.temporary.reset(tokens[1])


def dataset(**more):
    given = dict(folder="pictures", trigger="", ground="white", random_crop=True, buckets=False)
    return node("ImagenDatasetFromFolder", **{**given, "held_out": 0.0, **more})


def tuned(stage, t5_folder, **more):
    given = dict(
        stage=stage, dataset=dataset(**more.pop("data", {}))["result"][0],
        text_encoder=load_text_encoder(t5_folder), name="mine", steps=6, minutes=0.0,
        learning_rate=1e-2, rank=4, batch_size=2, seed=0, sample_prompts="a dog\na hill",
        sample_every=3,
    )  # fmt: skip
    return node("ImagenFineTuneStage", **{**given, **more})


def test_a_folder_is_listed_shown_and_its_broken_file_named(place):
    assert host.image_folders() == ["pictures"]
    made = dataset(trigger="noto style")
    data, sheet, report = made["result"]
    assert data.trigger == "noto style"
    assert sheet.shape[0] == 1
    assert sheet.shape[3] == 3
    assert "5 images, 5 captions, 0 masks" in report
    assert "1 files skipped" in report
    assert "broken.png: cannot be read" in report
    assert made["ui"]["text"] == [report]
    assert (place / "temp" / made["ui"]["images"][0]["filename"]).is_file()


def test_what_is_wrong_with_a_folder_its_ground_or_a_wire_is_said(place, t5_folder):
    for name in NAMES:
        (place / f"input/pictures/{name}.png").unlink()
    with pytest.raises(
        ValueError, match=r"all 1 were skipped, such as broken\.png: cannot be read: no"
    ):
        dataset()
    with pytest.raises(ValueError, match="ground: expected a colour such as white.*'whte'"):
        dataset(ground="whte")
    Image.new("RGB", (64, 64)).save(place / "input/pictures/black.png")
    with pytest.raises(
        ValueError, match="base: expected a base stage, got a super-resolution stage"
    ):
        tuned(stage_of(), t5_folder, base=stage_of("sr", 64))
    with pytest.raises(ValueError, match="sr256: expected a super-resolution stage, got a base"):
        tuned(stage_of(), t5_folder, sr256=stage_of())


def test_a_folder_stays_below_the_input_folder_and_changes_are_seen(place, monkeypatch):
    cls = NODE_CLASS_MAPPINGS["ImagenDatasetFromFolder"]
    assert cls.VALIDATE_INPUTS("pictures") is True
    for name in ("../models", "", ".", "gone"):
        assert "expected a folder inside" in cls.VALIDATE_INPUTS(name)
    assert cls.VALIDATE_INPUTS(str(place / "input/pictures")) is True, "in a shell a whole path"
    paths = SimpleNamespace(get_input_directory=lambda: str(place / "input"))
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    assert "expected a folder inside" in cls.VALIDATE_INPUTS(str(place))
    before = cls.IS_CHANGED("pictures")
    assert cls.IS_CHANGED("pictures") == before
    (place / "input/pictures/a dog.txt").write_text("a red dog")
    assert cls.IS_CHANGED("pictures") != before


def test_a_tuned_stage_is_the_stage_with_the_lora_that_came_out(place, t5_folder):
    stage, told = stage_of(), []
    token = host.reporter.set(lambda *step: told.append(step))
    with torch.inference_mode():  # as ComfyUI runs nodes
        made = tuned(stage, t5_folder)
    host.reporter.reset(token)
    assert told[-1][:2] == (1000, 1000)
    with_lora, lora, loss = made["result"]
    assert len(loss["loss"]) == 6
    assert lora.rank == 4
    text = load_text_encoder(t5_folder).encode_prompt("a dog")

    def drawn(stage):
        return sample_base(stage, text, width=16, height=16, steps=2)

    assert torch.equal(drawn(with_lora), drawn(apply_lora(stage, lora)))
    assert (drawn(with_lora) - drawn(stage)).abs().max() > 1e-3
    shown = Image.open(place / "temp" / made["ui"]["images"][0]["filename"])
    assert shown.width == 512
    assert shown.height > 300, "samples above the chart"
    assert "step 6" in made["ui"]["text"][0]
    again = tuned(stage, t5_folder)["ui"]["images"][0]["filename"]
    assert Image.open(place / "temp" / again).height > 300, "a finished run shows its samples"
    assert not [name for name in host.stage_names() if "training" in name]


def test_interrupted_it_keeps_a_checkpoint_and_goes_on_when_queued_again(
    place, t5_folder, monkeypatch
):
    class Interrupted(BaseException):
        pass

    asked = []

    def stop():
        raise Interrupted

    monkeypatch.setattr(host, "interrupted", lambda: asked.append(1) or len(asked) == 4)
    monkeypatch.setattr(host, "stop_if_interrupted", stop)
    with pytest.raises(Interrupted):
        tuned(stage_of(), t5_folder)
    folder = place / "models/imagen/training/mine"
    assert json.loads((folder / "checkpoint/progress.json").read_text())["step"] == 4
    monkeypatch.setattr(host, "interrupted", lambda: False)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # of a process that was killed
    parts = tuned(stage_of(), t5_folder, seed=7)["result"]  # as ComfyUI draws one after each run
    whole = tuned(stage_of(), t5_folder, name="whole")["result"]
    assert parts[2] == whole[2]
    for name, update in whole[1].updates.items():
        assert torch.equal(update.up, parts[1].updates[name].up), name
    again = tuned(stage_of(), t5_folder)["result"]  # finished: nothing is trained
    assert again[2] == parts[2]
    with pytest.raises(ValueError, match=r"Fine-Tune Imagen Stage: optim\.lr: .*another name"):
        tuned(stage_of(), t5_folder, learning_rate=1e-3)
    other = stage_of()
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(2)
    with pytest.raises(ValueError, match=r"stage\.start_from: .*begun with 'weights"):
        tuned(other, t5_folder)


def test_the_task_of_a_super_resolution_stage_and_its_samples(place, t5_folder):
    """Alone it enlarges the data's images; behind a base it makes the whole cascade's."""
    stage, base = stage_of("sr", 64), stage_of()
    (one,) = (tuned(stage, t5_folder, steps=2, sample_every=2, crop=32)["ui"]["images"],)
    assert Image.open(place / "temp" / one[0]["filename"]).height > 300
    chained = tuned(stage, t5_folder, steps=2, name="chained", base=base, crop=32)
    assert chained["result"][1].config.kind == "sr"
    assert chain_of(stage, (None, None, None)) == ([], 0)
    last = stage_of("sr", 256)
    assert chain_of(stage, (base, None, last)) == ([base, stage, last], 1)
    assert chain_of(last, (base, stage, None)) == ([base, stage, last], 2)
    assert chain_of(base, (None, stage, last)) == ([base, stage, last], 0)


def test_a_stage_with_a_lora_is_refused(place, t5_folder):
    with_lora, *_ = tuned(stage_of(), t5_folder, steps=1)["result"]
    with pytest.raises(ValueError, match="Fine-Tune Imagen Stage: stage: expected one without a"):
        tuned(with_lora, t5_folder, name="twice")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_accelerate_training_is_the_same(place, t5_folder, monkeypatch, precision):
    import imagen_nodes.imagen_core.training.finetune as finetune

    real = finetune.parse_recipe

    def parse(tables, folder):
        tables["run"]["precision"] = precision
        return real(tables, folder)

    monkeypatch.setattr(finetune, "parse_recipe", parse)
    _, expected, _ = tuned(stage_of(), t5_folder, steps=3)["result"]
    used = []
    alone = processes.OneProcess
    monkeypatch.setattr(processes, "OneProcess", lambda *a: used.append(a) or alone(*a))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    _, found, _ = tuned(stage_of(), t5_folder, steps=3, name="alone")["result"]
    assert used == [(precision == "bfloat16", True)]
    for name, update in expected.updates.items():
        assert torch.equal(update.up, found.updates[name].up), name


def test_a_chart_follows_the_loss():
    lines = [{"step": 1 + i, "loss": 1.0 - i / 10} for i in range(5)]
    lines[-1]["held_out"] = 0.9
    chart = loss_chart(lines)
    assert chart.shape == (160, 512, 3)
    green = torch.tensor([0x5F, 0xC9, 0xA8]) / 255
    rows, columns = ((chart - green).abs().amax(dim=2) < 0.01).nonzero(as_tuple=True)
    first, last = rows[columns.argmin()], rows[columns.argmax()]
    assert first < last, "a falling loss is drawn falling"
    assert loss_chart([]).shape == (160, 512, 3)


def test_figures_of_a_base_and_copies_of_its_data(place, t5_folder):
    made = node(
        "ImagenEvaluateCascade", stage=stage_of(), text_encoder=load_text_encoder(t5_folder),
        prompts="a dog\na red apple", limit=0, seed=0, batch_size=2, steps=1,
        reference=dataset()["result"][0],
    )  # fmt: skip
    report, images = made["result"]
    assert images.shape == (2, 16, 16, 3)
    assert "prompts (2)" in report
    assert "copies" in report
    assert made["ui"]["text"] == [report]
