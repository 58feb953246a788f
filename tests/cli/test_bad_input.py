"""Bad input from the shell: one clear report, the right exit code, nothing half-written."""

import errno
import json
from pathlib import Path

import pytest
from PIL import Image

from imagen_nodes.cli.main import main

LOAD = {"class_type": "LoadImage", "inputs": {"image": "x.png"}}
SAVE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a/p"}}
COPY = {"1": LOAD, "2": SAVE}
CASCADE = {"class_type": "ImagenLoadCascade", "inputs": {"cascade": "emoji", "dtype": "auto"}}
TEXT = {
    "class_type": "ImagenT5Encode",
    "inputs": {"text_encoder": ["3", 0], "prompt": "a rocket", "negative_prompt": ""},
}

BASE = {
    "class_type": "ImagenBaseSample",
    "inputs": {"stage": ["3", 1], "text": ["3", 1], "batch_size": 1, "seed": 0, "steps": 1}
    | {"width": 64, "height": 64, "sampler": "ddim", "strength": 1.0},
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3, 2), "red").save(tmp_path / "in" / "x.png")

    def run(graph, *more):
        (tmp_path / "w.json").write_text(graph if isinstance(graph, str) else json.dumps(graph))
        paths = ["-o", str(tmp_path / "out"), "--input", str(tmp_path / "in")]
        return main(["run", str(tmp_path / "w.json"), *paths, *more])

    return run


def left(tmp_path):
    return [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["IMAGEN_ATTENTION", "IMAGEN_NORM", "IMAGEN_CONVOLUTION"])
def test_a_kernel_that_there_is_not_ends_a_command_before_it_begins(
    name, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(name, "winograd")
    assert run(COPY) == 2
    assert f"imagen: {name}: expected " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv(name, "")
    assert run(COPY) == 0


def test_a_good_run_is_0(run, tmp_path):
    assert run(COPY) == 0
    assert left(tmp_path) == ["p_00001_.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"2": {**SAVE, "class_type": "Nope"}}, "node 2 (Nope): this node type is not known"),
        ({"2": {**SAVE, "inputs": {"filename_prefix": "p"}}}, "input images: missing; connect it"),
        ({"1": {**LOAD, "inputs": {"image": "y.png"}}}, "input image: no file 'y.png'"),
        ({"1": {**LOAD, "inputs": {"image": "../w.json"}}}, "input image: expected a name inside"),
        ({"2": {**SAVE, "inputs": {**SAVE["inputs"], "images": ["9", 0]}}}, "is linked to node 9"),
        (
            {"2": {**SAVE, "inputs": {**SAVE["inputs"], "images": ["1", 5]}}},
            "to output 5 of node 1",
        ),
        (
            {"2": {**SAVE, "inputs": {**SAVE["inputs"], "images": ["1", 1]}}},
            "expected IMAGE, got MASK",
        ),
        ({"2": LOAD}, "has no output node"),
        ({"3": CASCADE, "1": BASE}, "(ImagenBaseSample), input text: expected a link that carries"),
    ],
)
def test_a_faulty_workflow_is_2_and_makes_no_folder(run, tmp_path, capsys, change, message):
    assert run({**COPY, **change}) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [0, 1, 40, -1])
def test_a_truncated_workflow_is_2(run, tmp_path, capsys, end):
    assert run(json.dumps(COPY)[:end]) == 2
    assert "w.json: not JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_truncated_picture_is_1_and_names_its_node(run, tmp_path, capsys):
    path = tmp_path / "in" / "x.png"
    path.write_bytes(path.read_bytes()[:50])
    assert run(COPY) == 1
    assert "node 1 (LoadImage):" in capsys.readouterr().err
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "node 2 (SaveImage): [Errno 28]"),
        (OSError(errno.EACCES, "Permission denied"), 1, "node 2 (SaveImage): [Errno 13]"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was left"),
        (KeyboardInterrupt("stopped at step 7, and saved"), 130, "stopped at step 7, and saved"),
    ],
)
def test_a_save_that_fails_leaves_nothing(run, tmp_path, monkeypatch, capsys, fault, code, message):
    assert run(COPY) == 0

    def fail(self, file, **settings):
        Path(file).write_bytes(b"half a picture")
        raise fault

    monkeypatch.setattr(Image.Image, "save", fail)
    assert run(COPY) == code
    assert message in capsys.readouterr().err
    assert left(tmp_path) == ["p_00001_.png"]


def sampled(**changes):
    inputs = {"stage": ["3", 1], "text": ["4", 0], "width": 64, "height": 64, "batch_size": 1}
    inputs |= {"seed": 0, "steps": 1, "sampler": "ddim", "strength": 1.0, **changes}
    node = {"class_type": "ImagenBaseSample", "inputs": inputs}
    save = {**SAVE, "inputs": {**SAVE["inputs"], "images": ["5", 0]}}
    return {"3": CASCADE, "4": TEXT, "5": node, "6": save}


def test_every_fault_of_a_node_is_in_one_report(run, capsys):
    assert run(sampled(seed=-1, steps=-1, sampler="best", width="wide", batch_size=0)) == 2
    said = capsys.readouterr().err
    for message in (
        "node 5 (ImagenBaseSample), input seed: expected at least 0, got -1",
        "node 5 (ImagenBaseSample), input steps: expected at least 0, got -1",
        "node 5 (ImagenBaseSample), input sampler: expected one of",
        "node 5 (ImagenBaseSample), input width: expected a whole number, got 'wide'",
        "node 5 (ImagenBaseSample), input batch_size: expected at least 1, got 0",
    ):
        assert message in said


@pytest.mark.usefixtures("recwarn")  # warnings are shown, not raised
@pytest.mark.parametrize("prompt", ["", "rocket " * 400])
def test_an_empty_prompt_runs_and_a_long_one_is_cut_with_a_warning(run, tmp_path, capsys, prompt):
    graph = sampled()
    graph["4"] = {**TEXT, "inputs": {**TEXT["inputs"], "prompt": prompt}}
    assert run(graph) == 0
    assert left(tmp_path) == ["p_00001_.png"]
    said = capsys.readouterr().err.splitlines()
    told = [line for line in said if line.startswith("warning: prompt: has ")]
    assert len(told) == bool(prompt), said


def test_a_picture_of_one_pixel_is_explained(run, tmp_path, capsys):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "in" / "x.png")
    inputs = {"stage": ["3", 2], "text": ["4", 0], "image": ["1", 0], "seed": 0, "steps": 1}
    inputs |= {"sampler": "ddim", "aug_level": 0.1, "tile": 0}
    node = {"class_type": "ImagenSR256", "inputs": inputs}
    save = {**SAVE, "inputs": {**SAVE["inputs"], "images": ["5", 0]}}
    assert run({"1": LOAD, "3": CASCADE, "4": TEXT, "5": node, "6": save}) == 1
    said = capsys.readouterr().err
    assert "node 5 (ImagenSR256): " in said
    assert "Traceback" not in said
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "hint"), [(["a", "red", "apple"], True), (["a house", "--sed", "3"], False)]
)
def test_a_prompt_without_quotes_is_told_of_them(capsys, words, hint):
    assert main(["generate", *words]) == 2
    said = capsys.readouterr().err
    assert "unrecognized arguments: " + (" ".join(words[1:])) in said
    assert ("put the whole prompt in quotes" in said) == hint


def test_a_folder_that_cannot_be_written_in_is_named_not_the_temporary_file(capsys, monkeypatch):
    def fail(options):
        raise PermissionError(errno.EACCES, "Permission denied", "/out/.a.png.0a-1-0.writing")

    monkeypatch.setattr("imagen_nodes.cli.main.info", fail)
    assert main(["info", "x.png"]) == 1
    assert "imagen: cannot write in the folder /out: Permission denied" in capsys.readouterr().err
