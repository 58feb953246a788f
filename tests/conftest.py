"""A tiny random T5 and tiny stages, shared by all tests."""

from pathlib import Path

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
    fill(T5EncoderModel(config)).save_pretrained(folder, safe_serialization=True)
    return folder
