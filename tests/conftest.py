"""A tiny random T5, and tiny random DeepFloyd IF networks by diffusers, shared by all tests."""

import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

TEXT = "red green blue apple pear heart dog cat sat on a the hill style noto , picture of an emoji"
WORDS = TEXT.split()


def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter from a fixed generator, so that numbers do not depend on a library's start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="session")
def as_trained() -> Callable[[Any], Any]:
    """Makes a stage of a configuration; layers that training starts from zero are small, as after it."""
    from imagen_nodes.imagen_core import Stage

    def make(config: Any) -> Stage:
        torch.manual_seed(0)
        stage = Stage(config)
        with torch.no_grad():
            for parameter in stage.unet.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
        stage.unet.requires_grad_(False)  # as a loader gives it
        return stage

    return make


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """A T5 encoder in the Hugging Face layout: d_model 16, eight tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    vocab += [("\u2581" + word, -2.0 - i / 10) for i, word in enumerate(WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=8, **special
    ).save_pretrained(folder)
    config = T5Config(
        vocab_size=len(vocab),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    encoder = T5EncoderModel(config)
    fill(encoder)
    encoder.save_pretrained(folder, safe_serialization=True)
    return folder


IF_COMMON = {
    "out_channels": 6,
    "attention_head_dim": 16,
    "cross_attention_dim": 128,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 64,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}
DOWN, UP = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
CROSS_DOWN, CROSS_UP = ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D")
IF_STAGES = {
    1: {
        **IF_COMMON,
        "in_channels": 3,
        "sample_size": 64,
        "block_out_channels": (32, 64, 96, 128),
        "layers_per_block": 3,
        "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP, UP),
    },
    2: {
        **IF_COMMON,
        "in_channels": 6,
        "sample_size": 256,
        "block_out_channels": (32, 64, 96, 128, 192),
        "layers_per_block": (2, 2, 3, 5, 5),
        "down_block_types": (DOWN, DOWN, DOWN, CROSS_DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, CROSS_UP, UP, UP, UP),
        "class_embed_type": "timestep",
        "time_embedding_dim": 192,
        "time_embedding_act_fn": "gelu",
        "only_cross_attention": True,
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 1 / 0.7071,
        "mid_block_scale_factor": 1 / 0.7071,
    },
}


class Published(NamedTuple):
    """A tiny DeepFloyd IF stage as it is published: diffusers' network, and its folder."""

    number: int
    peer: Any
    folder: Path


@pytest.fixture(scope="session")
def deepfloyd(tmp_path_factory) -> Callable[[int], Published]:
    """DeepFloyd IF's stage I or II, random: uneven norms and biases, nothing left at zero.

    Layers that training starts from zero are small, as they are after it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        diffusers.utils.logging.set_verbosity_error()

    @cache
    def make(number: int) -> Published:
        torch.manual_seed(number)
        peer = diffusers.UNet2DConditionModel(**IF_STAGES[number]).eval()
        with torch.no_grad():
            for name, parameter in peer.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                if ".conv2." in name or ".to_out." in name:
                    parameter.mul_(0.25)
        assert all(parameter.any() for parameter in peer.parameters())
        folder = tmp_path_factory.mktemp(f"if{number}")
        peer.save_pretrained(folder / "unet")
        return Published(number, peer, folder)

    return make


@pytest.fixture(scope="session")
def deepfloyd_models(deepfloyd, t5_folder, tmp_path_factory) -> Path:
    """A models folder with a tiny stage I, stage II and T5 under the names that the examples choose."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("models")
    for number, name in ((1, "IF-I-XL-v1.0"), (2, "IF-II-L-v1.0")):
        shutil.copytree(deepfloyd(number).folder, folder / "diffusion_models" / name)
    encoder = folder / "text_encoders" / "t5-v1_1-xxl"
    shutil.copytree(t5_folder, encoder)
    config = T5Config.from_pretrained(t5_folder)
    config.d_model = 64
    T5EncoderModel(config).save_pretrained(encoder, safe_serialization=True)
    return folder


@pytest.fixture
def quick() -> Callable[[dict], dict]:
    """Gives a graph few steps, and a small first picture where it starts from noise."""

    def shorten(graph: dict) -> dict:
        for node in graph.values():
            inputs = node["inputs"]
            if inputs.get("timesteps"):
                inputs["timesteps"] = "leading2"
            if inputs.get("prompt"):
                inputs["prompt"] = "a red apple"
            if "steps" in inputs:
                inputs["steps"] = 1
            if "width" in inputs and node["class_type"] == "ImagenBaseSample":
                inputs["width"] = inputs["height"] = 32
        return graph

    return shorten


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    """A CPU without bfloat16, so that "auto" computes alike wherever the tests run."""
    from imagen_nodes.imagen_core.kernels import precision

    monkeypatch.setattr(precision, "cpu_computes_bfloat16", lambda: False)
