"""From prompts and pictures to tables and a page."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core.evaluation.evaluate import (
    Reference,
    evaluate,
    half_of,
    judged,
    seeds_of,
    sides,
)
from imagen_nodes.imagen_core.evaluation.judge import Expert, Judge, JudgeConfig, Looks, save_expert
from imagen_nodes.imagen_core.evaluation.prompts import (
    Prompt,
    read_folder,
    read_prompts,
    write_folder,
)
from imagen_nodes.imagen_core.evaluation.report import html_report
from imagen_nodes.imagen_core.training.folder import open_rgb

CAPTIONS = ("an apple", "a fox", "a house", "a red rocket", "two cats", "a pear")


@pytest.fixture(scope="module")
def expert():
    torch.manual_seed(0)
    config = JudgeConfig(("noto", "flat"), (8, 16), 4, 300, 16, 12)
    judge = Judge(config).requires_grad_(False).eval()
    return Expert(judge, CAPTIONS, judge.look(torch.rand(20, 64, 64, 3)).features)


def looks_like(expert, captions, styles):
    """What the judge would see in pictures of these captions and styles."""
    logits = torch.eye(2)[[expert.judge.config.styles.index(style) for style in styles]]
    return Looks(torch.randn(len(captions), 16), expert.judge.embed_captions(captions), logits)


def test_a_judge_that_sees_the_caption_ranks_it_first(expert):
    prompts = [
        Prompt("a fox", style="flat"),
        Prompt("a red fox on a hill", caption="a fox"),
        Prompt("a goat"),
        Prompt("an animal", caption=""),
    ]
    looks = looks_like(expert, ["a fox", "an apple", "a goat", "a fox"], ["flat", "noto"] * 2)
    found = judged(expert, looks, prompts)
    assert (found[0]["rank"], found[0]["sees"], found[0]["style_right"]) == (0, "a fox", True)
    assert found[1]["rank"] >= 1 and found[1]["sees"] == "an apple"
    assert found[2]["rank"] == 0, "a caption that is none of the judge's is ranked among them"
    assert "rank" not in found[3] and "style_right" not in found[3]


def test_sides_are_told_by_what_each_half_shows(expert, monkeypatch):
    pictures = torch.zeros(2, 64, 64, 3)
    pictures[0, :, 32:] = 1  # dark left, light right
    pictures[1, :, :32] = 1

    def look(self, seen):
        names = ["a fox" if picture.mean() < 0.5 else "a house" for picture in seen]
        return looks_like(expert, names, ["flat"] * len(names))

    monkeypatch.setattr(Judge, "look", look)
    prompts = [Prompt("a fox left of a house", left="a fox", right="a house")] * 2
    found = sides(expert, [*prompts, Prompt("a fox")], pictures)
    assert found == [{"sides_right": True}, {"sides_right": False}, {}]


def test_halves_are_squares_of_the_picture():
    picture = torch.arange(64.0).expand(1, 64, 64)[..., None]
    assert half_of(picture, "left").shape == half_of(picture, "right").shape == (1, 32, 32, 1)
    assert half_of(picture, "left").max() == 31 and half_of(picture, "right").min() == 32


def test_seeds_are_compared_where_a_prompt_has_several():
    levels = torch.tensor([0.0, 1.0, 0.5, 0.5])
    pictures = levels[:, None, None, None].expand(4, 8, 8, 3)
    prompts = [Prompt("an animal", apart=0.8)] * 2 + [Prompt("a fox"), Prompt("a cat")]
    assert seeds_of(prompts, pictures) == {
        "spread": {"an animal": {"seeds": 2, "spread": 1.0, "class": 0.8, "clearly different": 2}}
    }


def test_the_tables_say_what_is_right(expert):
    pictures = torch.ones(20, 64, 64, 3)
    pictures[:10, 16:48, 16:48] = torch.tensor([0.85, 0.15, 0.15])
    pictures[10:, 8:24, 8:24] = pictures[10:, 8:24, 40:56] = torch.tensor([0.2, 0.4, 0.9])
    prompt = Prompt("a red fox", "colours", colour="red", ground="white")
    prompts = [prompt] * 10 + [replace(prompt, set="counts", ground="red", count=2)] * 10
    reference = Reference((pictures[[10, 0]] * 255).to(torch.uint8), ("two foxes", "a fox"))
    report = evaluate(prompts, pictures, {"judge": expert}, reference)
    colours, counts = report["sets"]["colours"], report["sets"]["counts"]
    assert (colours["colour"], colours["ground"], "count" in colours) == (1.0, 1.0, False)
    assert (counts["colour"], counts["ground"], counts["count"]) == (0.0, 0.0, 1.0)
    assert colours["copies"] == 1.0 and report["rows"][0]["nearest_caption"] == "a fox"
    assert "judge: Frechet distance" not in colours, "ten pictures are too few"
    pictures[0] += 0.05
    assert evaluate(prompts, pictures, {}, reference)["sets"]["colours"]["copies"] == 0.9


def test_prompts_come_from_lines_of_text_or_of_json(tmp_path):
    (tmp_path / "a.txt").write_text("a fox\n\n two cats \n")
    assert [p.prompt for p in read_prompts(tmp_path / "a.txt")] == ["a fox", "two cats"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "an animal", "seeds": 3, "set": "open"}\n')
    assert read_prompts(tmp_path / "a.jsonl") == [Prompt("an animal", "open")] * 3
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "color": "red"}\n')
    with pytest.raises(ValueError, match=r"b\.jsonl, line 2: expected .*colour.*, got .*color"):
        read_prompts(tmp_path / "b.jsonl")


def test_pictures_come_back_from_their_folder(tmp_path):
    pictures = (torch.rand(2, 64, 64, 3) * 255).round() / 255
    written = write_folder(tmp_path / "a", [Prompt("a fox", seed=3), Prompt("a cat")], pictures)
    prompts, read = read_folder(tmp_path / "a")
    assert prompts == written and prompts[0].seed == 3
    assert torch.allclose(read, pictures, atol=1e-6)
    (tmp_path / "a" / "prompts.jsonl").unlink()
    (tmp_path / "a" / "0000.txt").write_text("a fox\n")
    assert [p.prompt for p in read_folder(tmp_path / "a")[0]] == ["a fox", "0001"]
    with pytest.raises(ValueError, match="found none"):
        read_folder(tmp_path / "none")


def test_pictures_are_read_as_training_reads_them(tmp_path):
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    two = Image.new("RGB", (64, 64), "red")
    two.paste("blue", (0, 0, 64, 32))
    turned = Image.Exif()
    turned[0x0112] = 6
    two.save(tmp_path / "turned.jpg", exif=turned)
    Image.new("LA", (64, 64), (10, 0)).save(tmp_path / "clear.png")
    prompts, pictures = read_folder(tmp_path)
    for prompt, picture in zip(prompts, pictures, strict=True):
        seen = np.asarray(open_rgb(str(tmp_path / prompt.file)))
        assert np.array_equal((picture.numpy() * 255).round(), seen), prompt.file


def test_the_command_measures_a_folder_and_writes_a_page(expert, tmp_path, capsys):
    save_expert(expert, tmp_path / "mine.safetensors")
    prompts = [Prompt("a fox", style="flat"), Prompt("<b>two</b> cats", "counts", count=2)]
    write_folder(tmp_path / "seen", prompts, torch.rand(2, 64, 64, 3))
    common = ["--judge", str(tmp_path / "mine.safetensors"), "--json"]
    folder = str(tmp_path / "seen")
    assert main(["evaluate", "--images", folder, *common, "-o", str(tmp_path / "first")]) == 0
    beside = ["--beside", str(tmp_path / "first" / "report.json"), "--reference", folder]
    assert (
        main(["evaluate", "--images", folder, *common, *beside, "-o", str(tmp_path / "out")]) == 0
    )
    sets = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]
    assert sets["prompts"]["copies"] == 1.0 and "count" in sets["counts"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2 and "<th>first" in page
    assert "&lt;b&gt;two" in page and "<b>two" not in page
    assert "http" not in page, "the page needs nothing from elsewhere"


def test_the_command_makes_the_pictures_of_a_cascade(expert, tmp_path, capsys):
    save_expert(expert, tmp_path / "mine.safetensors")
    (tmp_path / "prompts.txt").write_text("a red apple, noto style\na (rocket:1.6)\na house\n")
    told = [
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--judge",
        str(tmp_path / "mine.safetensors"),
    ]
    out = ["--limit", "2", "--steps", "1", "--seed", "5", "-o", str(tmp_path / "out")]
    assert main(["evaluate", "emoji", *told, *out]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["seed"] for row in report["rows"]] == [5, 6]
    _, pictures = read_folder(tmp_path / "out" / "pictures")
    picture = tmp_path / "one.png"
    made = [
        "generate",
        "a (rocket:1.6)",
        "--seed",
        "6",
        "--steps",
        "1",
        "--upto",
        "64",
        "-o",
        str(picture),
    ]
    assert main(made) == 0
    alone = torch.tensor(list(Image.open(picture).convert("RGB").getdata())).view(64, 64, 3) / 255
    assert (pictures[1] - alone).abs().max() < 0.02, "the seed says which picture, not the batch"


def test_bad_input_is_named(tmp_path, capsys):
    assert main(["evaluate"]) == 2
    assert "expected a CASCADE or --images DIR" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("[]")
    given = ["evaluate", "emoji", "--judge", str(tmp_path / "none.safetensors")]
    assert main(given) != 0
    assert "none.safetensors: no such file" in capsys.readouterr().err
    for option in ("--limit", "--batch"):
        assert main(["evaluate", "emoji", option, "0"]) == 2
        assert f"{option}: expected at least 1, got 0" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    assert main(["evaluate", "emoji", "--prompts", str(tmp_path / "empty.txt")]) == 2
    assert "prompts: expected at least one, got none" in capsys.readouterr().err


def test_what_is_right_is_framed(expert):
    prompts = [Prompt("a", count=1), Prompt("b", count=0)]
    pictures = torch.ones(2, 64, 64, 3)
    report = {"settings": {}, **evaluate(prompts, pictures, {})}
    page = html_report(report, pictures, {})
    assert page.count("figure class=right") == page.count("figure class=wrong") == 1
