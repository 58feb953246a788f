"""DeepFloyd IF's example workflows, run on tiny random weights under the names that they choose."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_nodes.cli.main import main
from imagen_nodes.headless.comfy_nodes.png import to_bytes
from imagen_nodes.imagen_core import load_cascade, sample_base

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
SIZES = {
    "if_text_to_picture": 128,
    "if_image_to_image": 256,
    "if_inpaint": 256,
    "if_upscale": 256,
    "if_into_bundled_sr": 512,
}


def test_every_deepfloyd_workflow_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("if_*.json")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_deepfloyd_workflow_runs(deepfloyd_models, quick, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("IMAGEN_MODELS", str(deepfloyd_models))
    graph = quick(json.loads((EXAMPLES / "api" / f"{name}.json").read_text("utf-8")))
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    arguments = ["run", str(tmp_path / "graph.json"), "-o", str(tmp_path / "out")]
    code = main([*arguments, "--input", str(EXAMPLES / "input"), "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    (file,) = json.loads(told.out.splitlines()[-1])["files"]
    assert Image.open(file).size == (SIZES[name], SIZES[name])


def test_without_the_weights_the_loaders_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    assert main(["run", str(EXAMPLES / "if_text_to_picture.json"), "-o", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "input text_encoder" in told
    assert "input stage" in told


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (7.0, "dynamic", 0.95, 1.5)),
        (["--percentile", "0.9", "--guidance", "3"], (3.0, "dynamic", 0.9, 1.5)),
        (["--max-value", "100"], (7.0, "dynamic", 0.95, 100.0)),
        (["--threshold", "static"], (7.0, "static", 0.95, 1.5)),
    ],
)
def test_generate_takes_the_stage_s_own_threshold_where_nothing_is_said(
    deepfloyd_models, tmp_path, capsys, options, expected
):
    """The picture is that of the base node without guidance, where nothing is said."""
    cascade = {"text_encoder": "text_encoders/t5-v1_1-xxl", "base": "diffusion_models/IF-I-XL-v1.0"}
    (deepfloyd_models / "cascade.json").write_text(json.dumps(cascade))
    made = tmp_path / "made.png"
    arguments = [
        "generate",
        "a red apple",
        "--cascade",
        str(deepfloyd_models),
        "--upto",
        "64",
        *options,
    ]
    code = main([*arguments, "--timesteps", "[999, 500, 100]", "-o", str(made)])
    assert code == 0, capsys.readouterr().err
    graph = json.loads(Image.open(made).info["prompt"])
    (threshold,) = (n for n in graph.values() if n["class_type"] == "ImagenDynamicThreshold")
    names = ("guidance_scale", "threshold", "percentile", "max_value")
    assert tuple(threshold["inputs"][name] for name in names) == expected
    loaded = load_cascade(deepfloyd_models)
    text = loaded.text_encoder.encode_prompt("a red apple")
    plain = sample_base(loaded.base, text, steps="[999, 500, 100]")[0]
    same = np.array_equal(np.asarray(Image.open(made)), to_bytes(plain))
    assert same is (options == [])
