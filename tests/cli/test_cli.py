"""The command line: exit codes, one clear line for bad input, and the same picture by every road."""

import dataclasses
import importlib
import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.cli import generate
from imagen_nodes.cli.generate import generate_graph, numbered, stage_steps
from imagen_nodes.cli.main import main, make_parser
from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.engine import execute
from imagen_nodes.headless.formats.queueing import Draft
from imagen_nodes.headless.formats.workflow import load_workflow
from imagen_nodes.headless.graph import Node
from imagen_nodes.headless.inputs import InputError, set_input
from imagen_nodes.imagen_core import PRESETS, SamplingDefaults, StageConfig
from imagen_nodes.imagen_core.diffusion.schedules import DiscreteSchedule
from imagen_nodes.nodes import host

EXAMPLES = Path(__file__).parent.parent.parent / "example_workflows"


def graph():
    return {
        "1": Node("1", "A", "First", {"x": 1}),
        "2": Node("2", "B", "Same", {"x": 1}),
        "3": Node("3", "B", "Same", {"x": 1}),
        "4": Node("4", "C", "Switch", {"on": True}),
    }


@pytest.mark.parametrize("name", ["1", "First", "A"])
def test_an_input_is_set_by_id_title_or_type(name):
    changed = graph()
    set_input(Draft(changed), f"{name}.x=a=b")
    assert changed["1"].inputs["x"] == "a=b"


@pytest.mark.parametrize(
    ("text", "value"), [("false", False), ("0", False), ("True", True), ("1", True)]
)
def test_a_switch_is_set_by_the_word(text, value):
    changed = graph()
    set_input(Draft(changed), f"Switch.on={text}")
    assert changed["4"].inputs["on"] is value


def test_a_name_that_one_node_alone_has_needs_no_node():
    changed = graph()
    set_input(Draft(changed), "on=false")
    assert changed["4"].inputs["on"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("x", "expected NODE.INPUT=VALUE"),
        ("x=2", r"expected one node with an input 'x', got .*; write \"NODE.x\""),
        ("y=2", "no node has an input 'y'; expected NODE.INPUT=VALUE with one of node 1"),
        ("First.x", "expected NODE.INPUT=VALUE"),
        ("Same.x=1", "2 nodes are called 'Same'"),
        ("Nope.x=1", "0 nodes are called 'Nope'; there are node 1"),
        ("First.y=1", "has no input 'y'; it has x"),
        ("Switch.on=no thanks", "expected true or false, got 'no thanks'"),
    ],
)
def test_a_bad_change_is_explained(change, message):
    with pytest.raises(InputError, match=message):
        set_input(Draft(graph()), change)


def test_names_of_several_pictures():
    assert numbered(Path("a"), 1) == [Path("a.png")]
    assert numbered(Path("d/a.png"), 2) == [Path("d/a_1.png"), Path("d/a_2.png")]
    with pytest.raises(InputError, match=r"expected a \.png file, got a\.jpg"):
        numbered(Path("a.jpg"), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.json"], "absent.json: no such file"),
        (["info", "absent"], "absent: no such file"),
        (["train", "absent.toml"], "not a readable TOML"),
        (["generate", "x", "--cascade", "nope"], "expected one of"),
        (["generate", "x", "--batch", "0"], "--batch: expected at least 1"),
        (["generate", "x", "--upto", "64", "--seed", "-1"], "seed must be an integer from 0"),
        (["generate", "x", "--upto", "64", "--steps", "0"], "steps must be at least 1"),
        (["generate", "x", "--upto", "64", "--percentile", "2"], "percentile must be in"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_info_and_doctor_speak_json(capsys):
    folder = EXAMPLES.parent / "imagen_core/pretrained/emoji"
    kinds = {
        folder: "cascade",
        folder / "base.safetensors": "Imagen stage",
        folder / "text_encoder": "T5 text encoder",
        EXAMPLES / "text_to_64.json": "workflow",
    }
    for path, kind in kinds.items():
        assert main(["info", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == kind
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checks"]


def pixels(path):
    return np.asarray(Image.open(path))


def test_generate_and_its_workflow_in_every_form_give_one_picture(tmp_path, capsys):
    """Bit for bit: `generate`, the PNG that it left, and the same graph in both formats."""
    settings = ["--upto", "256", "--steps", "3,2", "--seed", "5"]
    made = tmp_path / "made.png"
    assert main(["generate", "a red apple, noto style", "-o", str(made), "--json", *settings]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(made)]
    api, ui = tmp_path / "api.json", tmp_path / "ui.json"
    info = Image.open(made).info
    api.write_text(info["prompt"])
    ui.write_text(info["workflow"])
    for name, source in {"png": made, "api": api, "ui": ui}.items():
        assert main(["run", str(source), "-o", str(tmp_path / name)]) == 0
        assert np.array_equal(pixels(tmp_path / name / "imagen_00001_.png"), pixels(made)), name


@pytest.mark.parametrize(
    ("prompt", "both"),
    [("a {red|blue} apple", True), ("|}{", True), ("see http://x.y", False), ("\\{a|b}", False)],
)
def test_a_generated_picture_carries_only_workflows_that_keep_its_prompt(tmp_path, prompt, both):
    """In the UI format braces are choices, and // begins a comment, once it is queued."""
    made = tmp_path / "made.png"
    assert main(["generate", prompt, "-o", str(made), "--upto", "64", "--steps", "1"]) == 0
    assert ("workflow" in Image.open(made).info) == both
    graph, _ = load_workflow(made, default_registry(), prompt_seed=3)
    texts = [n.inputs["prompt"] for n in graph.values() if n.class_type == "ImagenT5Encode"]
    assert texts == [prompt]


def test_a_folder_that_cannot_be_written_to_is_known_before_the_run(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = EXAMPLES / "text_to_64.json"
    assert main(["run", str(path), "-o", str(tmp_path / "file" / "out")]) == 2
    assert "-o: expected a folder that can be written to" in capsys.readouterr().err


def test_pictures_to_load_may_lie_beside_the_workflow(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--set", "Imagen Base Sample.steps=1", "--set", "Imagen SR 256.steps=1"]
    assert main(["run", str(EXAMPLES / "inpaint.json"), "-o", "out", *few]) == 0
    (tmp_path / "input").mkdir()
    assert main(["run", str(EXAMPLES / "inpaint.json"), "-o", "out", *few]) == 2
    assert "no file 'imagen_heart_64.png' in input" in capsys.readouterr().err
    assert main(["run", str(EXAMPLES / "inpaint.json"), "--input", "nowhere"]) == 2
    assert "in nowhere, which is not there; name a folder with --input" in capsys.readouterr().err


@pytest.fixture
def deepfloyd_names(tmp_path, monkeypatch):
    """Empty files under the names that DeepFloyd IF's example graphs choose."""
    for name in (
        "diffusion_models/IF-I-XL-v1.0/config.yml",
        "diffusion_models/IF-II-L-v1.0/config.yml",
        "text_encoders/t5-v1_1-xxl/config.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))


@pytest.mark.usefixtures("deepfloyd_names")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_example_workflows_are_the_same_graph_in_both_formats(path):
    from imagen_nodes.headless.comfy_nodes.folders import Folders, folders
    from imagen_nodes.headless.engine.validate import validate
    from imagen_nodes.nodes import host

    registry = default_registry()
    token, own = folders.set(Folders(EXAMPLES / "input")), host.inputs.set(EXAMPLES / "input")
    try:
        ui, workflow = load_workflow(path, registry)
        api, none = load_workflow(EXAMPLES / "api" / path.name, registry)
        assert workflow is not None
        assert none is None
        assert ui == api
        assert validate(ui, registry)
    finally:
        folders.reset(token)
        host.inputs.reset(own)


def test_timesteps_are_told_stage_by_stage_and_written_into_the_graph(monkeypatch):
    of = {"schedule": DiscreteSchedule(), "prediction": "eps"}
    configs = [
        StageConfig("base", 64, 1, PRESETS["tiny-base"], **of),
        StageConfig("sr", 256, 4, PRESETS["tiny-sr"], defaults=SamplingDefaults("smart50"), **of),
    ]
    monkeypatch.setattr(generate, "chosen_cascade", lambda name: (name, configs))
    arguments = ["generate", "x", "--steps", "9,8", "--timesteps", "smart27", "--timesteps", ""]
    options = make_parser().parse_args(arguments)
    assert stage_steps(options, 2) == ["smart27", 8]
    base, sr = (n.inputs for n in generate_graph(options).values() if "sampler" in n.inputs)
    assert (base["timesteps"], sr["steps"], "timesteps" in sr) == ("smart27", 8, False)
    options.steps, options.timesteps = None, []
    base, sr = (n.inputs for n in generate_graph(options).values() if "sampler" in n.inputs)
    assert (base["steps"], "timesteps" in base) == (32, False)
    assert (sr["steps"], sr["timesteps"]) == (32, "smart50")
    options.timesteps, options.quality = [], "fast"
    base, sr = (n.inputs for n in generate_graph(options).values() if "sampler" in n.inputs)
    assert (base["quality"], sr["quality"], sr["sampler"]) == ("fast", "fast", "unipc")
    options.timesteps = ["never"]
    with pytest.raises(ValueError, match="timesteps: expected a number, one of fast27"):
        generate_graph(options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.jpg"], "--out: expected a .png file, got x.jpg"),
        (["-o", "n" * 300], "File name too long"),
        (["-o", f"{'n' * 300}/x.png"], "File name too long"),
        (["-o", "file/x.png"], "-o: expected a folder that can be written to"),
        (["--aug-level", "2"], "--aug-level must be in [0, 1], got 2.0"),
        (["--aug-level", "0.1,2"], "--aug-level must be in [0, 1], got 2.0"),
        (["--tile", "3"], "tile must be 0 (whole image) or at least"),
        (["--tile", "3", "--upto", "64"], "tile must be 0 (whole image) or at least"),
        (["--aug-level", "2", "--upto", "64"], "--aug-level must be in [0, 1], got 2.0"),
        (["--steps", "1,0", "--upto", "256"], "steps must be at least 1, got 0"),
        (["--sampler", "euler"], "sampler must be one of"),
        (["--timesteps", "smart27"], "leave timesteps empty and set steps"),
        (["--upto", "65"], "upto must be one of [64, 256, 1024], got 65"),
        (["--guidance", "-1"], "--guidance must be at least 0"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(
    tmp_path, monkeypatch, capsys, arguments, message
):
    def never(*given):
        raise AssertionError("loaded")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(execute, "execute", never)
    assert main(["generate", "x", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_text_encoder_leaves_before_a_network_enters(tmp_path, monkeypatch):
    """The chosen device is each network's in its turn, as in the executor's every run."""
    seen = []

    @contextmanager
    def on_device(module, needed=0, role="unet"):
        seen.append((role, host.compute_device().type))
        yield
        seen.append("out")

    monkeypatch.setattr(host, "on_device", on_device)
    monkeypatch.setattr(generate, "chosen_device", lambda name: torch.device("meta"))
    settings = ["--upto", "256", "--steps", "1", "-o", str(tmp_path / "a.png")]
    try:
        assert main(["generate", "a rocket", "--dtype", "float32", *settings]) == 0
    finally:
        host.chosen_device.set(None)
    assert seen == [
        ("text_encoder", "meta"),
        "out",
        ("unet", "meta"),
        "out",
        ("unet", "meta"),
        "out",
    ]


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fail(*given, **named):
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    made = tmp_path / "new" / "a.png"
    assert main(["generate", "x", "-o", str(made), "--upto", "64", "--steps", "1"]) == 1
    assert "disk full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own_cascade(tmp_path):
    """A cascade of one stage, in a folder of its own, whose T5 is the bundled cascade's."""
    emoji, mine = EXAMPLES.parent / "imagen_core/pretrained/emoji", tmp_path / "there" / "mine"
    mine.mkdir(parents=True)
    shutil.copy(emoji / "base.safetensors", mine)
    names = {"text_encoder": str(emoji / "text_encoder"), "stages": ["base.safetensors"]}
    (mine / "cascade.json").write_text(json.dumps(names))
    return mine


def test_a_picture_of_a_cascade_anywhere_can_be_made_again(
    own_cascade, tmp_path, monkeypatch, capsys
):
    """By a relative path here, from another folder there; only a cascade's folder, and only by its path."""
    monkeypatch.chdir(own_cascade.parent)
    assert main(["generate", "a rocket", "--cascade", "mine", "-o", "a.png", "--steps", "1"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["run", "there/a.png", "-o", "out"]) == 0
    assert np.array_equal(pixels("there/a.png"), pixels("out/imagen_00001_.png"))
    for name in ("there/mine", "mine", str(tmp_path / "there"), "//host/mine"):
        change = f"Load Imagen Cascade.cascade={name}"
        assert main(["run", "there/a.png", "-o", "out", "--set", change]) == 2
        assert "is not there; put its folder into" in capsys.readouterr().err


def test_a_cascade_among_the_models_has_one_name_everywhere(
    own_cascade, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEN_MODELS", "models")
    (tmp_path / "models").mkdir()
    own_cascade.parent.rename(tmp_path / "models" / "imagen")
    assert main(["doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {"what": "cascades", "found": "emoji, mine", "ok": True} in checks
    for i, name in enumerate(("mine", "models/imagen/mine")):
        options = ["--cascade", name, "--steps", "1", "-o", f"{i}.png"]
        assert main(["generate", "a rocket", *options]) == 0
        loader = json.loads(Image.open(f"{i}.png").info["prompt"])["1"]
        assert loader["inputs"]["cascade"] == "mine"
        assert main(["run", f"{i}.png", "-o", f"out{i}"]) == 0
        assert np.array_equal(pixels(f"{i}.png"), pixels(f"out{i}/imagen_00001_.png"))
    assert main(["generate", "x", "--cascade", "yours"]) == 2
    assert "--cascade: expected one of emoji, mine, or a folder" in capsys.readouterr().err


def test_in_comfyui_a_cascade_is_never_named_by_a_path(own_cascade, monkeypatch):
    check = NODE_CLASS_MAPPINGS["ImagenLoadCascade"].VALIDATE_INPUTS
    assert check(cascade=str(own_cascade)) is True
    folders = SimpleNamespace(folder_names_and_paths={}, models_dir=str(own_cascade.parent.parent))
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    assert "is not there; put its folder into" in check(cascade=str(own_cascade))


def test_nodes_of_example_workflows_do_not_overlap():
    for path in EXAMPLES.glob("*.json"):
        nodes = json.loads(path.read_text())["nodes"]
        boxes = [(*n["pos"], n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]) for n in nodes]
        for i, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:i]:
                apart = (
                    right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
                )
                assert apart, path.name


def test_what_is_only_looked_at_goes_to_the_temp_folder_of_the_output(
    tmp_path, monkeypatch, capsys
):
    """Cascade View finds the runner's folder, not the one that the shell is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "in" / "x.png")
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "ImagenCascadeView", "inputs": {"image_64": ["1", 0]}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    options = ["--input", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"]
    assert main(["run", str(tmp_path / "graph.json"), *options]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert Path(file).parent == tmp_path / "out" / "temp"
    assert Image.open(file).getpixel((4, 4)) == (255, 0, 0)
    assert not (tmp_path / "temp").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upto", "64", "--steps", "1,2,3,4,5"], "--steps: expected one value, or one for each"),
        (["--aug-level", "0.1,0.2,0.3"], "--aug-level: expected one value, or one for each stage"),
        (["--sampler", "eulr"], "--sampler"),
        (["--device", "gpu"], "--device: expected one that is here, such as auto, cpu"),
    ],
)
def test_a_slip_in_an_option_is_named_by_the_option(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "x", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "privateuseone" not in error


@pytest.mark.parametrize(
    ("command", "option", "module", "name"),
    [
        ("batch", "--rows", "headless.jobs.rows", "KINDS"),
        ("batch", "--format", "headless.jobs.output", "FORMATS"),
        ("convert", "--layout", "imagen_core.formats.convert", "LAYOUTS"),
        ("evaluate", "--threshold", "imagen_core.diffusion.guidance", "THRESHOLDS"),
        ("finetune", "--stage", "imagen_core.formats.cascade", "STAGES"),
        ("finetune", "--optimizer", "imagen_core.training.optim", "STATE_BYTES"),
        ("generate", "--dtype", "nodes.host", "DTYPES"),
        ("generate", "--quality", "imagen_core.settings", "QUALITIES"),
        ("generate", "--threshold", "imagen_core.diffusion.guidance", "THRESHOLDS"),
    ],
)
def test_choices_that_are_listed_without_the_library_are_the_librarys(
    command, option, module, name
):
    action = option_of(command, option)
    known = getattr(importlib.import_module(f"imagen_nodes.{module}"), name)
    assert set(action.choices) == set(known) - {"folder"}  # rows: seen, never said


def test_a_fine_tunings_choices_and_defaults_are_the_librarys():
    from imagen_nodes.imagen_core.training.finetune import STEPS, Wishes

    own, hints = Wishes(), get_type_hints(Wishes)
    for field in dataclasses.fields(Wishes):
        action = option_of("finetune", f"--{field.name.replace('_', '-')}")
        if action is None or field.name == "lr":
            continue
        assert (action.default or None) == (getattr(own, field.name) or None), field.name
        if action.choices:
            assert set(action.choices) == set(get_args(hints[field.name])), field.name
    assert f"default: {STEPS}" in option_of("finetune", "--steps").help


def option_of(command, option):
    """The parser's action of an option; None where there is none."""
    commands = next(a for a in make_parser()._actions if isinstance(a.choices, dict))
    actions = commands.choices[command]._actions
    return next((action for action in actions if option in action.option_strings), None)
