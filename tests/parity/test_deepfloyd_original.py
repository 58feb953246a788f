"""Against DeepFloyd IF's own code (PyPI: deepfloyd-if, installed without its dependencies): networks,
respaced diffusion, presets. Skipped where it is not installed.
"""

import ast
import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from imagen_nodes.imagen_core import (
    EncodedPrompt,
    Guidance,
    Inpainting,
    TextEmbedding,
    load_stage,
    sample_base,
    super_resolve,
)
from imagen_nodes.imagen_core.diffusion.respacing import SECTIONS, timesteps
from imagen_nodes.imagen_core.formats.convert import convert
from imagen_nodes.imagen_core.formats.deepfloyd import read_yaml

pytest.importorskip("deepfloyd_if", reason="pip install --no-deps deepfloyd-if")
ORIGINAL = Path(importlib.util.find_spec("deepfloyd_if").origin).parent
SEED = 5


def module(name):
    """One file of the original; the package's door would import all that it depends on."""
    return importlib.import_module(f"deepfloyd_if.model.{name}")


def diffusion(spacing=""):
    return module("respace").create_gaussian_diffusion(
        steps=1000,
        learn_sigma=True,
        noise_schedule="cosine",
        rescale_timesteps=True,
        rescale_learned_sigmas=True,
        timestep_respacing=spacing,
    )


@pytest.fixture(scope="module", params=[1, 2])
def pair(request, deepfloyd, tmp_path_factory):
    """Stage number, the original's network and ours, of the same weights."""
    folder = tmp_path_factory.mktemp("original") / "model"
    convert(deepfloyd(request.param).folder, folder, "original")
    params = read_yaml(folder / "config.yml")["params"]
    unet = module("unet")
    build = {1: unet.UNetModel, 2: partial(unet.SuperResUNetModel, diffusion())}[request.param]
    theirs = build(**params)
    theirs.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    return request.param, theirs.eval(), load_stage(folder)


def texts(seed=3):
    cond, null = torch.randn(2, 1, 77, 64, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, 77, dtype=torch.bool)
    return EncodedPrompt(TextEmbedding(cond, mask), TextEmbedding(null, mask))


@torch.no_grad()
def test_the_network_is_the_original(pair):
    number, theirs, stage = pair
    x, lowres = torch.randn(2, 1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    t, k, text = torch.tensor([857.0]), torch.tensor([250]), texts().text
    context = stage.unet.prepare(text)
    if number == 1:
        ours, expected = stage.unet(x, t, context), theirs(x, t, text_emb=text.embeds)
    else:
        theirs.low_res_diffusion.q_sample = lambda image, steps: image
        ours = stage.unet(x, t, context, lowres, k)
        expected = theirs(x, t, lowres, aug_level=0.25, text_emb=text.embeds)
    assert (ours - expected).abs().max() <= 1e-5 * expected.std()


class Draws:
    """Noise in the order in which one generator gives it."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(SEED)

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def like(self, x):
        return self(*x.shape)


def guided(network, text, scale, **options):
    """The original's guidance, of one picture."""
    embeds = torch.cat([text.text.embeds, text.null_text.embeds])

    def model(x, t, **ignored):
        given = {
            name: value.expand(2, -1, -1, -1)
            for name, value in options.items()
            if name == "low_res"
        }
        plain = {name: value for name, value in options.items() if name != "low_res"}
        output = network(torch.cat([x, x]), t.expand(2), text_emb=embeds, **given, **plain)
        (cond, null), rest = output[:, :3].chunk(2), output[:1, 3:]
        return torch.cat([null + scale * (cond - null), rest], dim=1)

    return model


def run(diffusion, model, noise, monkeypatch, draws, c, mask=None):
    """The original's ancestral loop, its noise from our generator: b c h w in [-1, 1]."""
    monkeypatch.setattr(torch, "randn_like", draws.like)
    options = dict(dynamic_thresholding_p=0.95, dynamic_thresholding_c=c, inpainting_mask=mask)
    return diffusion.p_sample_loop(model, noise.shape, noise=noise, device="cpu", **options)


def difference(ours, theirs):
    return (2 * ours.movedim(-1, 1) - 1 - theirs).abs().max()


@pytest.mark.parametrize("spacing", ["smart27", pytest.param("smart50", marks=pytest.mark.slow)])
def test_respaced_diffusion_gives_the_same_picture(pair, monkeypatch, spacing):
    """Stage II draws the noise of its conditioning anew at each step."""
    number, network, stage = pair
    text, draws, respaced = texts(), Draws(), diffusion(",".join(map(str, SECTIONS[spacing])))
    if number == 1:
        model = guided(network, text, 7.0)
        expected = run(respaced, model, draws(1, 3, 16, 24), monkeypatch, draws, 1.5)
        ours = sample_base(stage, text, width=24, height=16, steps=spacing, seed=SEED)
    else:
        table = diffusion()
        monkeypatch.setattr(
            network.low_res_diffusion,
            "q_sample",
            lambda image, k: (
                type(table)
                .q_sample(table, image[:1], k[:1], draws.like(image[:1]))
                .expand(2, -1, -1, -1)
            ),
        )
        image = torch.rand(1, 8, 12, 3, generator=torch.Generator().manual_seed(8))
        small = image.movedim(-1, 1) * 2 - 1
        model = guided(network, text, 4.0, low_res=small, aug_level=0.25)
        expected = run(respaced, model, draws(1, 3, 32, 48), monkeypatch, draws, 1.0)
        ours = super_resolve(stage, image, text, steps=spacing, seed=SEED, aug_noise="each step")
    assert expected.std() > 0.1
    assert difference(ours, expected) <= 2e-4


def test_inpainting_gives_the_same_picture(pair, monkeypatch):
    number, network, stage = pair
    if number == 2:
        pytest.skip("of stage I")
    sections = "4,4,4,4,4,0,0,0,0,0"
    text, draws, respaced = texts(), Draws(), diffusion(sections)
    image = torch.rand(1, 16, 24, 3, generator=torch.Generator().manual_seed(8))
    known = image.movedim(-1, 1) * 2 - 1
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 4:, 4:16] = 1
    last = torch.tensor([len(timesteps(sections)) - 1])
    start = torch.where(mask == 1, respaced.q_sample(known, last, draws.like(known)), known)
    model = guided(network, text, 10.0)
    expected = run(respaced, model, start, monkeypatch, draws, 1.5, mask.expand_as(known))
    ours = sample_base(
        stage, text, image=image, mask=mask[0], steps=sections, seed=SEED,
        guidance=Guidance(10.0, percentile=0.95, max_value=1.5), inpainting=Inpainting("clean"),
    )  # fmt: skip
    assert difference(ours, expected) <= 2e-4


def test_all_presets_are_the_original_ones():
    tree = ast.parse((ORIGINAL / "modules" / "base.py").read_text("utf-8"))
    (published,) = (
        ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "respacing_modes"
    )
    assert len(published) == 8
    for name, sections in published.items():
        assert set(timesteps(name)) == module("respace").space_timesteps(1000, sections)
        assert SECTIONS[name] == tuple(int(count) for count in sections.split(","))
    for spelled in ("100", "ddim50", "10,10,10,10,10,10,10,10,0,0"):
        assert set(timesteps(spelled)) == module("respace").space_timesteps(1000, spelled)


ABSENT = ("torchvision", "torchvision.transforms", "matplotlib", "matplotlib.pyplot", "omegaconf")


@pytest.fixture
def stage_class(monkeypatch):
    """The original's base class of all stages; what it imports to load, filter and show is stood in for.

    Its filter of finished pictures, CLIP, passes everything.
    """
    for name in ABSENT:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    clip = MagicMock()
    clip.load.return_value = (MagicMock(), None)
    monkeypatch.setitem(sys.modules, "clip", clip)
    package = ModuleType("deepfloyd_if.modules")  # its door would import every stage
    package.__path__ = [str(ORIGINAL / "modules")]
    monkeypatch.setitem(sys.modules, "deepfloyd_if.modules", package)
    for name in ("base", "utils"):
        monkeypatch.delitem(sys.modules, f"deepfloyd_if.modules.{name}", raising=False)
    base = importlib.import_module("deepfloyd_if.modules.base")
    for name in ("base", "utils"):
        monkeypatch.delitem(sys.modules, f"deepfloyd_if.modules.{name}")
    cls = base.IFBaseModule
    cls.wm_pil_img.load()  # and closed
    monkeypatch.setattr(cls, "_IFBaseModule__validate_generations", lambda self, made: made)
    monkeypatch.setattr(cls, "seed_everything", staticmethod(lambda seed: seed))
    return cls


@pytest.mark.parametrize("mixed", ["second", "style", "both"])
def test_positive_mixer_and_style_give_the_same_picture(pair, stage_class, monkeypatch, mixed):
    """Through the original's own embeddings_to_image, whose rows share one picture's noise here.

    A style is pooled in place of the prompt; the second prompt keeps its own, unless it is the style.
    """
    number, network, stage = pair
    if number == 2:
        pytest.skip("of stage I")
    text, other, generator = texts(), texts(4).text, torch.Generator().manual_seed(SEED)
    second, style = mixed in ("second", "both"), mixed in ("style", "both")
    random, sections = torch.randn, "4,4,4,4,4"

    def drawn(shape, **options):
        return random(1, *shape[1:], generator=generator).expand(shape).clone()

    theirs = stage_class.__new__(stage_class)
    theirs.model, theirs.device = network, torch.device("cpu")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", drawn)
        patched.setattr(torch, "randn_like", lambda x: drawn(x.shape))
        expected, _ = theirs.embeddings_to_image(
            text.text.embeds, negative_t5_embs=text.null_text.embeds,
            positive_t5_embs=other.embeds if second else None,
            style_t5_embs=other.embeds if style else None,
            positive_mixer=0.3, sample_timestep_respacing=sections, aspect_ratio="3:2", img_size=16,
            progress=False,
        )  # fmt: skip
    prompt = EncodedPrompt(
        text.text, text.null_text, other if second else None, 0.3 if second else 0.0,
        other if style else None,
    )  # fmt: skip
    ours = sample_base(stage, prompt, width=24, height=16, steps=sections, seed=SEED)
    plain = sample_base(stage, text, width=24, height=16, steps=sections, seed=SEED)
    assert expected.std() > 0.1
    assert difference(ours, expected) <= 2e-4
    assert difference(plain, expected) > 0.01
