"""The cascade in one node, seeds, the table of settings, cutting out and putting back, styles."""

import re

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import Guidance, load_cascade
from imagen_nodes.nodes import crop, host, plot, styles
from imagen_nodes.nodes.whole import picture_of

BUNDLED = host.BUNDLED / "emoji"


def node(node_id, **inputs):
    cls = NODE_CLASS_MAPPINGS[node_id]
    return getattr(cls(), cls.FUNCTION)(**inputs)


@pytest.fixture(scope="module")
def emoji():
    return load_cascade(BUNDLED, dtype=torch.float32)


def test_the_cascade_in_one_node_is_the_cascade(emoji):
    given = {"cascade": "emoji", "prompt": "a red apple", "negative_prompt": "", "batch_size": 1}
    given |= {"seed": 5, "steps_64": 3, "steps_256": 2, "aug_level_256": 0.2, "dtype": "float32"}
    large, small = node("ImagenSampleCascade", upto="256", guidance=Guidance(2.0), **given)
    for upto, made in ((64, small), (256, large)):
        steps = [3, 2][: 1 + (upto == 256)]
        expected = emoji.generate(
            "a red apple", upto=upto, seed=5, steps=steps, aug_level=0.2, guidance=Guidance(2.0)
        )
        assert torch.equal(made, expected)
    assert torch.equal(
        node("ImagenSampleCascade", upto="64", guidance=Guidance(2.0), **given)[0], small
    )


def test_the_cascade_in_one_node_is_loaded_once_for_many_seeds(emoji, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        "imagen_nodes.imagen_core.load_cascade", lambda path, **_: loaded.append(path) or emoji
    )
    cascade = NODE_CLASS_MAPPINGS["ImagenSampleCascade"]()  # ComfyUI keeps it from run to run
    given = dict(prompt="a dog", negative_prompt="", upto="64", batch_size=1, steps_64=1)
    for seed, dtype in ((1, "float32"), (2, "float32"), (3, "bfloat16")):
        cascade.sample("emoji", seed=seed, dtype=dtype, **given)
    assert loaded == [BUNDLED] * 2


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("nothing", (7, 7, 7)), ("base", (3, 7, 7)), ("base and sr256", (3, 3, 7))],
)
def test_kept_stages_take_the_kept_seed(keep, expected):
    assert node("ImagenSeeds", seed=7, keep=keep, kept_seed=3) == expected


def validate(**given):
    given = {"columns": "nothing", "rows": "nothing", **given}
    return NODE_CLASS_MAPPINGS["ImagenXYPlot"].VALIDATE_INPUTS(
        **{"input_types": {}, "column_values": "", "row_values": "", **given}
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"columns": "steps", "column_values": "4, many"}, "column_values: expected whole numbers"),
        (
            {"rows": "threshold", "row_values": "static, odd"},
            "row_values: expected one of dynamic, ",
        ),
        ({"columns": "seed", "column_values": " "}, "column_values: expected values of seed, got"),
        ({"columns": "sideways"}, "columns: expected one of nothing, prompt"),
        ({"columns": "aug_level", "column_values": "0.1"}, "connect a super-resolution stage"),
        (
            {"columns": "seed", "rows": "seed", "column_values": "1", "row_values": "2"},
            "rows: expected another setting than columns",
        ),
    ],
)
def test_axes_that_cannot_be_read_are_told_before_the_run(given, said):
    assert said in validate(**given)
    assert validate(columns="guidance_scale", column_values="1.5, 3\n") is True


def test_a_cell_that_cannot_be_made_is_told_by_the_node(emoji):
    given = {"text_encoder": emoji.text_encoder, "prompt": "x", "negative_prompt": "", "seed": 0}
    given |= {"columns": "percentile", "column_values": "2", "rows": "nothing", "row_values": ""}
    with pytest.raises(ValueError, match="^Imagen XY Plot: percentile must be in"):
        node("ImagenXYPlot", **given, stage=emoji.base)
    with pytest.raises(ValueError, match="^Imagen XY Plot: stage: the loaded cascade has no such"):
        node("ImagenXYPlot", **given, stage=None)


def test_values_are_one_a_line_or_separated():
    assert plot.values_of("guidance_scale", "1.5, 3", "x") == [1.5, 3.0]
    assert plot.values_of("prompt", "a cat, sitting; a dog", "x") == ["a cat, sitting", "a dog"]
    assert plot.values_of("prompt", "a cat; one\n\na dog", "x") == ["a cat; one", "a dog"]
    assert plot.values_of("nothing", "whatever", "x") == [None]


def test_each_cell_is_what_the_sampling_node_makes(emoji):
    given = {"text_encoder": emoji.text_encoder, "stage": emoji.base, "prompt": "a red apple"}
    given |= {"negative_prompt": "", "seed": 4, "columns": "guidance_scale", "rows": "steps"}
    sheet, images = node("ImagenXYPlot", **given, column_values="1.5, 4", row_values="1, 2")
    assert images.shape == (4, 64, 64, 3)
    text = emoji.text_encoder.encode_prompt("a red apple")
    guidance = emoji.base.config.guidance()
    for i, (steps, scale) in enumerate([(1, 1.5), (1, 4.0), (2, 1.5), (2, 4.0)]):
        own = plot.replace(guidance, guidance_scale=scale)
        alone = node(
            "ImagenBaseSample", stage=emoji.base, text=text, width=64, height=64, batch_size=1, seed=4,
            steps=steps, sampler="auto", strength=1.0, guidance=own,
        )  # fmt: skip
        torch.testing.assert_close(images[i : i + 1], picture_of(alone), atol=1e-3, rtol=0)
    assert sheet.shape[1] > 2 * 192
    assert sheet.shape[2] > 2 * 192
    left, top = sheet.shape[2] - 2 * 198, sheet.shape[1] - 2 * 198
    assert sheet[0, :top].min() < 0.3, "labels of the columns"
    assert sheet[0, top:, :left].min() < 0.3, "labels of the rows"
    shown = sheet[0, top : top + 192 : 3, left : left + 192 : 3]
    torch.testing.assert_close(shown, images[0], atol=1 / 254, rtol=0)


def test_the_last_preview_of_a_table_is_the_table(emoji, monkeypatch, tmp_path):
    """In ComfyUI, where it stays below the node."""
    seen = []
    monkeypatch.setattr(host, "watched", lambda: True)
    monkeypatch.setattr(host, "progress", lambda: lambda step, of, x0: seen.append(x0))
    kept = host.temporary.set(tmp_path)
    given = {"text_encoder": emoji.text_encoder, "stage": emoji.base, "prompt": "a red apple"}
    given |= {"negative_prompt": "", "seed": 4, "columns": "steps", "rows": "nothing"}
    sheet, _ = node("ImagenXYPlot", **given, column_values="1, 2", row_values="")
    host.temporary.reset(kept)
    torch.testing.assert_close((seen[-1] + 1) / 2, sheet.movedim(3, 1))


def test_a_table_has_a_bound():
    stage = type("Stage", (), {})()
    many = ", ".join(map(str, range(9)))
    with pytest.raises(
        ValueError, match="Imagen XY Plot: .* at most 64 images together, got 9 x 9"
    ):
        node(
            "ImagenXYPlot", text_encoder=None, stage=stage, prompt="", negative_prompt="", seed=0,
            columns="seed", column_values=many, rows="steps", row_values=many,
        )  # fmt: skip


@pytest.fixture
def whole():
    return torch.rand(1, 90, 120, 3, generator=torch.Generator().manual_seed(1))


def test_only_the_mask_changes_and_all_of_its_middle_does(whole):
    mask = torch.zeros(1, 90, 120)
    mask[:, 20:50, 80:110] = 1
    part, part_mask, found = node(
        "ImagenCropForInpaint", image=whole, mask=mask, size=64, surroundings=2.0
    )
    assert part.shape == (1, 64, 64, 3)
    assert (found.height, found.width) == (60, 60)
    assert set(part_mask.unique().tolist()) == {0.0, 1.0}
    painted = torch.ones(1, 256, 256, 3)
    (made,) = node("ImagenStitch", image=painted, crop=found, blend=4)
    assert torch.equal(made[mask == 0], whole[mask == 0])
    assert (made[:, 32:38, 92:98] > 0.999).all()
    edge = made[0, 20, 95]
    assert (edge < 0.999).any(), "the edge is soft"
    (hard,) = node("ImagenStitch", image=torch.ones(1, 8, 8, 3), crop=found, blend=0)
    assert hard[mask == 1].min() > 0.999


def test_a_part_that_is_put_back_unchanged_changes_nothing_much(whole):
    smooth = torch.nn.functional.avg_pool2d(whole.movedim(-1, 1), 9, 1, 4).movedim(1, -1)
    mask = torch.zeros(90, 120)
    mask[30:60, 40:70] = 1
    part, _, found = node(
        "ImagenCropForInpaint", image=smooth, mask=mask, size=256, surroundings=1.5
    )
    (made,) = node("ImagenStitch", image=part, crop=found, blend=4)
    assert (made - smooth).abs().max() < 0.02


@pytest.mark.parametrize(
    ("place", "box"),
    [((0, 10, 0, 10), (0, 0, 20, 20)), ((80, 90, 110, 120), (70, 100, 20, 20))],
)
def test_a_box_at_the_edge_stays_inside(place, box):
    mask = torch.zeros(1, 90, 120)
    mask[:, place[0] : place[1], place[2] : place[3]] = 1
    assert crop.box_of(mask, 2.0) == box
    assert crop.box_of(torch.ones(1, 90, 120), 1.5) == (0, 0, 90, 120)


def test_a_mask_without_white_says_so(whole):
    with pytest.raises(ValueError, match="Imagen Crop for Inpaint: mask: nothing of it is white"):
        node(
            "ImagenCropForInpaint",
            image=whole,
            mask=torch.zeros(1, 90, 120),
            size=64,
            surroundings=1.5,
        )


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 1, 8, 8), "mask: expected 1 or 1 x height x width"),
        (torch.full((8, 8), float("nan")), "mask: has values that are not numbers"),
    ],
)
def test_a_mask_that_cuts_nothing_out_says_why(mask, message):
    given = {"image": torch.rand(1, 30, 50, 3), "size": 64, "surroundings": 1.5}
    with pytest.raises(ValueError, match=f"^Imagen Crop for Inpaint: {message}"):
        node("ImagenCropForInpaint", **given, mask=mask)
    flat = node("ImagenCropForInpaint", **given, mask=torch.ones(8, 8))
    deep = node("ImagenCropForInpaint", **given, mask=torch.ones(1, 1, 8, 8))
    assert torch.equal(flat[1], deep[1])


def test_outpainting_keeps_the_old_picture_at_its_own_size(whole):
    room = {"left": 0.5, "top": 0.0, "right": 0.0, "bottom": 1.0}
    small, mask, found = node("ImagenOutpaint", image=whole, size=64, **room)
    assert found.image.shape == (1, 180, 180, 3)
    assert small.shape == (1, 64, 64, 3)
    assert mask[0, 60, 2] == 1
    assert mask[0, 10, 50] == 0
    (made,) = node("ImagenStitch", image=torch.zeros(1, 1024, 1024, 3), crop=found, blend=4)
    assert torch.equal(made[:, :90, 60:], whole)
    assert made[0, 150, 10].max() < 0.01
    with pytest.raises(
        ValueError, match="Imagen Outpaint: left, top, right, bottom: expected at least one"
    ):
        node("ImagenOutpaint", image=whole, size=64, left=0.0, top=0.0, right=0.0, bottom=0.0)


def test_styles_are_the_pack_s_and_the_user_s(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    (tmp_path / "imagen").mkdir()
    lines = (
        "# mine\n\nink: ink on paper, {prompt}, black\nwood: carved: wood\nnoto: {prompt}!\nbad\n"
    )
    (tmp_path / "imagen" / styles.FILE).write_text(lines)
    offered = NODE_CLASS_MAPPINGS["ImagenStyle"].INPUT_TYPES()["required"]["style"][0]
    assert {"ink", "wood", "none", "clay"} < set(offered)
    assert "bad" not in offered
    write = NODE_CLASS_MAPPINGS["ImagenStyle"]().write
    assert write(" a cat ", "ink") == ("ink on paper, a cat, black",)
    assert write("a cat", "wood") == ("a cat, carved: wood",)
    assert write("a cat", "noto") == ("a cat!",)
    assert write("a cat", "none") == ("a cat",)
    assert NODE_CLASS_MAPPINGS["ImagenStyle"].VALIDATE_INPUTS(style="ink") is True
    said = NODE_CLASS_MAPPINGS["ImagenStyle"].VALIDATE_INPUTS(style="gone")
    assert re.search(r"add a line NAME: TEXT to \S*styles\.txt", said)


def test_white_of_a_grey_file_is_white(emoji):
    """ComfyUI 0.33 reads 255 of one as 0.9961."""
    text = emoji.text_encoder.encode_prompt("a red apple")
    picture = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    small = picture[:, ::4, ::4]
    common = dict(text=text, seed=1, steps=2, sampler="ddim", strength=0.5)
    base = dict(common, stage=emoji.base, image=small, width=64, height=64, batch_size=1)
    sr = dict(common, stage=emoji.sr256, image=small, original=picture, aug_level=0.1, tile=0)
    found = []
    for white in (0.99611, 1.0):
        mask = torch.zeros(1, 64, 64)
        mask[:, :, :32] = white
        region = node("ImagenRegionalPrompt", text=text, region=text, strength=1.0, mask=mask)
        crop = node("ImagenCropForInpaint", image=picture, mask=mask, size=64, surroundings=1.5)
        made = [
            node(node_id, mask=mask, **given)
            for node_id, given in (("ImagenBaseSample", base), ("ImagenSR256", sr))
        ]
        made = [each["result"][0] if isinstance(each, dict) else each[0] for each in made]
        found.append([*made, crop[2].mask, region[0].regions[0].mask])
    for read, meant in zip(*found, strict=True):
        assert torch.equal(read, meant)
