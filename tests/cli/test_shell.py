"""What a person in a shell sees: help, defaults, errors of every kind, warnings, what is installed."""

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from imagen_nodes.cli import doctor
from imagen_nodes.cli import main as cli
from imagen_nodes.cli.generate import picture_path
from imagen_nodes.imagen_core.diffusion.guidance import THRESHOLDS
from imagen_nodes.imagen_core.diffusion.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent.parent
PRETRAINED = ROOT / "imagen_core" / "pretrained" / "emoji"


@pytest.fixture
def command(monkeypatch):
    """Puts a function in the place of `imagen doctor`."""
    return lambda function: monkeypatch.setattr(cli, "doctor", function)


def failing(error):
    def function(options):
        raise error

    return function


ENTRY = "import sys; from imagen_nodes.cli.main import main; sys.exit(main())"


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_a_pipe_that_nobody_reads_stops_nothing(tmp_path, gone):
    """`imagen … --json | true`: the same exit code, and nothing of Python's on the other stream."""
    (tmp_path / "w.json").write_text('{"1": {"class_type": "Nope", "inputs": {}}}')
    command = [sys.executable, "-c", ENTRY, "run", str(tmp_path / "w.json"), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    getattr(process, gone).close()
    kept = process.stderr if gone == "stdout" else process.stdout
    said = kept.read()
    assert process.wait() == 2
    assert "Traceback" not in said
    assert "Broken" not in said
    assert "this node type is not known" in said


def without(*names):
    """importlib.util.find_spec where some packages are not there."""
    find = importlib.util.find_spec
    return lambda name, package=None: None if name in names else find(name, package)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("bad"), 2, "bad"),
        (RuntimeError("out of memory"), 1, "out of memory"),
        (OSError("disk"), 1, "disk"),
        (KeyError("x"), 1, "KeyError: 'x'"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was left"),
    ],
)
def test_a_failure_ends_in_one_json_object_where_json_is_wanted(
    command, capsys, error, code, message
):
    command(failing(error))
    assert cli.main(["doctor", "--json"]) == code
    caught = capsys.readouterr()
    assert json.loads(caught.out) == {"error": message, "exit": code}
    assert caught.err.splitlines()[-1] == f"imagen: {message}"
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--steps", "abc"], "--steps: expected whole numbers, such as 32"),
        (["generate", "x", "--aug-level", "abc"], "--aug-level: expected numbers, such as 0.1"),
        (["generate"], "the following arguments are required: prompt"),
        (["nope"], "invalid choice: 'nope'"),
        (
            ["generate", "x", "--device", "nope"],
            "--device: expected one that is here, such as auto",
        ),
        (
            ["generate", "x", "--device", "meta"],
            "--device: expected one that is here, such as auto",
        ),
        (["generate", "x", "--device", "cuda:99"], "got 'cuda:99'"),
    ],
)
def test_bad_options_are_told_in_a_line_and_in_json(capsys, arguments, message):
    assert cli.main([*arguments, "--json"]) == 2
    caught = capsys.readouterr()
    assert message in caught.err.splitlines()[-1]
    assert "Traceback" not in caught.err
    assert "parse value" not in caught.err
    found = json.loads(caught.out)
    assert message in found["error"]
    assert found["exit"] == 2


def test_training_without_its_packages_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", without("accelerate"))
    assert cli.main(["train", str(tmp_path / "x.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train needs more packages (accelerate): pip install 'imagen-nodes[train]'" in line
    assert "pip install -e '.[train]'" in line


@pytest.mark.skipif(
    (ROOT / "recipes" / "emoji" / "data-everyday").exists(), reason="the data is there"
)
def test_training_without_its_data_says_what_to_make(capsys):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    assert cli.main(["train", str(ROOT / "recipes" / "emoji" / "base64_small.toml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data-everyday/images_64.npy, which is not there; make it first" in line
    assert "fetch.py, then render.py" in line


def test_a_warning_is_shown_as_its_text(command, capsys):
    def function(options):
        warnings.warn("prompt: is cut", stacklevel=1)
        return {"checks": []}

    command(function)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["doctor", "--json"]) == 0
    assert capsys.readouterr().err == "warning: prompt: is cut\n"


def test_help_explains_every_option_and_names_the_choices(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in (*SAMPLERS, *THRESHOLDS))
    (commands,) = (
        a for a in cli.make_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    for option in commands.choices["generate"]._actions:
        assert option.help, option.dest
        given = option.dest not in ("help", "json", "prompt", "timesteps")
        assert not given or "default: " in option.help, option.dest


def test_the_version_is_the_package_s(monkeypatch, capsys):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == "imagen-nodes 1.2.3\n"


def test_a_folder_gets_a_picture_of_the_usual_name(tmp_path):
    assert picture_path(str(tmp_path)) == tmp_path / "imagen.png"
    assert picture_path("new/") == Path("new/imagen.png")
    assert picture_path("new") == Path("new")
    options = cli.make_parser().parse_args(["generate", "x", "-o", "new/"])
    assert options.out == Path("new/imagen.png")


def test_doctor_tells_what_is_optional_and_not_there(tmp_path, monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name):
        if name in ("ftfy", "accelerate"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "9.9" if name in doctor.OPTIONAL else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGEN_MODELS", raising=False)
    (tmp_path / "models" / "text_encoders").mkdir(parents=True)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok   tokenizers: ") for line in lines)
    assert "--   ftfy: not there (optional, for clean_caption): pip install ftfy" in lines
    assert "ok   websockets: 9.9, for the progress of imagen run --comfy" in lines
    folder = tmp_path / "models"
    absent = folder / "diffusion_models"
    assert f"--   models/diffusion_models: not there (optional): {absent}" in lines
    assert f"ok   models/text_encoders: {folder / 'text_encoders'}" in lines


@pytest.mark.parametrize(
    ("stage", "threshold"), [("base", "static"), ("sr256", "static"), ("sr1024", "static")]
)
def test_info_tells_the_threshold_that_a_stage_uses(capsys, stage, threshold):
    assert cli.main(["info", str(PRETRAINED / f"{stage}.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stage"]["defaults"]["threshold"] == threshold


@pytest.mark.parametrize("arguments", [[".", "--version"], ["tools/readme_grid.py", "--help"]])
def test_scripts_of_a_checkout_run_from_its_root(arguments):
    grid = (ROOT / "docs" / "grid.png").read_bytes()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(("imagen-nodes", "usage: readme_grid.py"))
    assert (ROOT / "docs" / "grid.png").read_bytes() == grid
