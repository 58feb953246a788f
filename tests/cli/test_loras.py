"""LoRAs on the command line: which stage, how strong, merged, described."""

import json

import pytest
import torch

from imagen_nodes.cli.generate import generate_graph
from imagen_nodes.cli.loras import parse_lora
from imagen_nodes.cli.main import main, make_parser
from imagen_nodes.imagen_core import load_cascade, load_stage, merge_loras, save_lora
from imagen_nodes.imagen_core.lora import LoRA, Update, apply_lora


@pytest.fixture(scope="module")
def emoji():
    return load_cascade("emoji")


def lora_of(stage, layers=("pooled_text.proj",)):
    updates = {}
    for name in layers:
        rows, columns = stage.unet.get_submodule(name).weight.shape[:2]
        updates[name] = Update(torch.randn(2, columns), torch.randn(rows, 2))
    return LoRA(stage.config, updates)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, "")),
        ("a.safetensors:0.8", ("a.safetensors", 0.8, "")),
        ("C:\\a.safetensors:-1", ("C:\\a.safetensors", -1.0, "")),
        ("C:\\a.safetensors", ("C:\\a.safetensors", 1.0, "")),
        ("a:stage=sr256:0.5", ("a", 0.5, "sr256")),
        ("a:0.5:stage=base", ("a", 0.5, "base")),
    ],
)
def test_file_strength_and_stage(text, expected):
    assert parse_lora(text) == expected


def options(*arguments):
    return make_parser().parse_args(["generate", "a dog", *arguments])


def test_the_graph_has_a_node_for_each_behind_the_stage_it_fits(emoji, tmp_path):
    save_lora(lora_of(emoji.base), tmp_path / "base.safetensors")
    save_lora(lora_of(emoji.sr256), tmp_path / "sr.safetensors")
    base, sr = (str(tmp_path / f"{name}.safetensors") for name in ("base", "sr"))
    graph = generate_graph(
        options("--lora", f"{base}:0.8", "--lora", sr, "--lora", f"{base}:-1", "--upto", "256")
    )
    loads = {k: n.inputs for k, n in graph.items() if n.class_type == "ImagenLoadLoRA"}
    found = [(inputs["lora"], inputs["strength"]) for inputs in loads.values()]
    assert found == [(base, 0.8), (base, -1.0), (sr, 1.0)]
    sampled = {n.class_type: n.inputs["stage"] for n in graph.values() if "stage" in n.inputs}
    first, second, third = loads
    assert loads[second]["stage"].node == first
    assert sampled["ImagenBaseSample"].node == second
    assert sampled["ImagenSR256"].node == third


def test_a_lora_changes_the_picture_and_strength_zero_does_not(emoji, tmp_path):
    save_lora(lora_of(emoji.base), tmp_path / "base.safetensors")
    pictures = []
    for name, more in (("a", ()), ("b", (":0",)), ("c", (":1",))):
        given = [x for m in more for x in ("--lora", f"{tmp_path / 'base.safetensors'}{m}")]
        out = tmp_path / f"{name}.png"
        assert (
            main(["generate", "a dog", "--upto", "64", "--steps", "2", "-o", str(out), *given]) == 0
        )
        from PIL import Image

        pictures.append(Image.open(out).convert("RGB").tobytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_evaluate_measures_the_base_with_a_lora(emoji, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\n")
    save_lora(lora_of(emoji.base), tmp_path / "base.safetensors")
    pictures = []
    for strength in (None, 0, 1):
        given = (
            [] if strength is None else ["--lora", f"{tmp_path / 'base.safetensors'}:{strength}"]
        )
        out = tmp_path / str(strength)
        told = ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "1", "-o", str(out)]
        assert main(["evaluate", "emoji", *told, *given]) == 0
        pictures += [path.read_bytes() for path in (out / "pictures").glob("*.png")]
    assert pictures[0] == pictures[1] != pictures[2]
    assert json.loads((out / "report.json").read_text())["settings"]["lora"].endswith(":1")


def test_what_fits_nothing_or_several_is_said_at_once(emoji, tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    save_lora(lora_of(emoji.sr1024), file)
    assert main(["generate", "a", "--upto", "64", "--lora", str(file)]) == 2
    assert "none of the stages that run (base)" in capsys.readouterr().err
    assert main(["generate", "a", "--lora", str(tmp_path / "gone")]) == 2
    assert "no such file, nor one of that name" in capsys.readouterr().err
    assert main(["generate", "a", "--lora", f"{file}:stage=sr9"]) == 2
    assert "expected one of base, sr256, sr1024, got 'sr9'" in capsys.readouterr().err


def test_merging_is_what_the_layers_compute(emoji, tmp_path, capsys):
    from imagen_nodes.imagen_core.formats.cascade import BUNDLED

    lora = lora_of(emoji.base)
    save_lora(lora, tmp_path / "l.safetensors")
    source = str(BUNDLED / "emoji" / "base.safetensors")
    target = tmp_path / "merged.safetensors"
    arguments = ["convert", source, str(target), "--lora", f"{tmp_path / 'l.safetensors'}:0.5"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loras"] == 1
    plain = load_stage(source)
    expected = merge_loras(apply_lora(plain, lora, 0.5)).unet.state_dict()
    found = load_stage(target).unet.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["pooled_text.proj.weight"], plain.unet.pooled_text.proj.weight)
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_info_says_what_a_lora_is_for(emoji, tmp_path, capsys):
    save_lora(lora_of(emoji.sr256), tmp_path / "l.safetensors")
    assert main(["info", str(tmp_path / "l.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["kind"], found["for"]) == ("LoRA", "a super-resolution stage (256)")
    assert (found["layers"], found["ranks"]) == (1, [2])
