"""Texts as tokens, for the training of the text encoder: which word of a text each token belongs to."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAX_LENGTH = 32
CHUNK = 5000


@dataclass(frozen=True)
class Tokens:
    """Tokenized texts.

    ids    n MAX_LENGTH, int16, padded with the tokenizer's own pad
    mask   n MAX_LENGTH, bool
    words  n MAX_LENGTH, int8: which word of the text a token belongs to; -1 for none
    """

    ids: Tensor
    mask: Tensor
    words: Tensor

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows' ids (int64), mask and words, cut to the longest among them."""
        mask = self.mask[rows]
        length = int(mask.sum(1).max())
        ids = self.ids[rows, :length].long()
        return ids, mask[:, :length], self.words[rows, :length].long()

    def to(self, device: str) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device), self.words.to(device))


def build_tokenizer(spiece: Path):
    """The SentencePiece model as a `tokenizers.Tokenizer` that reads what it reads and appends </s>."""
    from tokenizers.processors import TemplateProcessing

    from imagen_nodes.imagen_core.formats.tokenizer import read_spiece

    tokenizer = read_spiece(spiece.read_bytes())
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    return tokenizer


def write_tokenizer(spiece: Path, out: Path) -> None:
    """Write spiece.model, tokenizer.json and tokenizer_config.json into a folder."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = build_tokenizer(spiece)
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.save(str(out / "tokenizer.json"))
    shutil.copyfile(spiece, out / "spiece.model")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **special,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def tokenize(tokenizer, texts: list[str], pad_id: int, length: int = MAX_LENGTH) -> Tokens:
    """Tokens of texts split at spaces, so that two tokenizers agree on which word is which."""
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    ids = np.full((len(texts), MAX_LENGTH), pad_id, np.int16)
    mask = np.zeros((len(texts), MAX_LENGTH), bool)
    words = np.full((len(texts), MAX_LENGTH), -1, np.int8)
    encodings = tokenizer.encode_batch([text.split() for text in texts], is_pretokenized=True)
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        ids[row, :length] = encoding.ids
        mask[row, :length] = True
        words[row, :length] = [-1 if word is None else word for word in encoding.word_ids]
    return Tokens(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(words))


def tokenize_all(
    tokenizer, texts: list[str], pad_id: int, workers: int, length: int = MAX_LENGTH
) -> Tokens:
    """The same as `tokenize`, by several processes; start it before a device is in use."""
    chunks = [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]
    job = functools.partial(_tokenize_arrays, tokenizer, pad_id, length)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        parts = pool.map(job, chunks, chunksize=1)
    return Tokens(*(torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)))


def _tokenize_arrays(
    tokenizer, pad_id: int, length: int, texts: list[str]
) -> tuple[np.ndarray, ...]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokens = tokenize(tokenizer, texts, pad_id, length)
    return tokens.ids.numpy(), tokens.mask.numpy(), tokens.words.numpy()
