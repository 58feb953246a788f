"""The judge: a small network that puts pictures and captions into one space, and names styles.

It shares nothing with a cascade: its captions are hashed words and letters, not a text encoder's states.
A judge file is one safetensors file that carries its configuration, the captions it chooses among, and
features of real drawings. Contrastive pictures and captions: arXiv:2103.00020, section 2.3.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..formats.cascade import BUNDLED
from ..weights.errors import CheckpointError
from ..weights.files import open_tensors, write_tensors

FORMAT = "imagen_nodes.judge"
SIDE = 64
GROUPS = 8
AT_ONCE = 256


@dataclass(frozen=True)
class JudgeConfig:
    """Everything that a judge file must say about its network.

    styles         that it tells apart
    widths         channels of the stem and of each block, every block at half the side before
    stem           side of the pixels that the stem makes one of
    text_buckets   rows of the table that words and letters are hashed into
    text_width     numbers in each
    dim            of the space that pictures and captions share
    salt           of the hash, so that two judges confuse different words
    """

    styles: tuple[str, ...]
    widths: tuple[int, ...]
    stem: int
    text_buckets: int
    text_width: int
    dim: int
    salt: str = ""


class Block(nn.Module):
    """Two convolutions with a shortcut, to half the side."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, 2, 1, bias=False)
        self.first_norm = nn.GroupNorm(GROUPS, outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(GROUPS, outer)
        self.shortcut = nn.Conv2d(inner, outer, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.shortcut(x) + self.second_norm(self.second(h)))


class Judge(nn.Module):
    """An image tower, a text tower and a style head."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        kernel = config.stem + config.stem % 2 + 1 if config.stem < 4 else config.stem
        pad = (kernel - config.stem + 1) // 2
        self.conv_in = nn.Conv2d(3, widths[0], kernel, config.stem, pad)
        self.blocks = nn.ModuleList(
            Block(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.to_image = nn.Linear(widths[-1], config.dim)
        self.to_style = nn.Linear(widths[-1], len(config.styles))
        self.words = nn.EmbeddingBag(config.text_buckets, config.text_width, mode="mean")
        self.hidden = nn.Linear(config.text_width, 2 * config.dim, bias=False)
        self.to_text = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def trunk(self, x: Tensor) -> Tensor:
        """Features of pictures, each row of mean 0 and variance 1: b w.

        x   b 3 64 64 in [-1, 1]
        """
        x = F.relu(self.conv_in(x))
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x.float().mean((2, 3)), x.shape[1:2])

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions: n dim."""
        bags = [hashed(caption, self.config) for caption in captions]
        lengths = torch.tensor([0, *(len(bag) for bag in bags[:-1])])
        numbers = torch.tensor([number for bag in bags for number in bag])
        words = F.layer_norm(self.words(numbers, lengths.cumsum(0)), self.words.weight.shape[1:])
        return F.normalize(self.to_text(F.gelu(self.hidden(words))), dim=-1)

    @torch.inference_mode()
    def look(self, pictures: Tensor) -> "Looks":
        """What the judge sees in pictures.

        pictures   b h w c in 0..1, any side
        """
        parts = []
        for part in as_seen(pictures).split(AT_ONCE):
            features = self.trunk(part)
            parts.append((features, self.to_image(features), self.to_style(features)))
        features, embeddings, styles = (torch.cat(each) for each in zip(*parts, strict=True))
        return Looks(features, F.normalize(embeddings, dim=-1), styles)


@dataclass(frozen=True)
class Looks:
    """What a judge sees in pictures.

    features     b w, what distances are measured in
    embeddings   b dim, unit vectors in the space of captions
    styles       b s, logits
    """

    features: Tensor
    embeddings: Tensor
    styles: Tensor


@dataclass(frozen=True)
class Expert:
    """A judge with what it compares pictures to.

    judge      the network
    captions   that the right one is looked for among
    features   n w of real drawings, as Looks has them
    """

    judge: Judge
    captions: tuple[str, ...]
    features: Tensor


def as_seen(pictures: Tensor) -> Tensor:
    """Pictures as the image tower takes them: b 3 64 64 in [-1, 1].

    pictures   b h w c in 0..1; larger ones are averaged, an alpha is left out
    """
    x = pictures[..., :3].permute(0, 3, 1, 2).float() * 2 - 1
    if x.shape[2:] == (SIDE, SIDE):
        return x
    if min(x.shape[2:]) > SIDE:
        return F.interpolate(x, (SIDE, SIDE), mode="area")
    return F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)


def hashed(caption: str, config: JudgeConfig) -> list[int]:
    """Rows of the table for a caption's words, neighbouring words and three letters in a row."""
    words = re.findall(r"[^\W_]+", caption.lower())
    parts = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))]
    parts += [f"<{word}>"[i : i + 3] for word in words for i in range(len(word))]
    return [
        zlib.crc32(f"{config.salt}{part}".encode()) % config.text_buckets for part in parts or [""]
    ]


def save_expert(expert: Expert, path: Path) -> None:
    """Write a judge to one safetensors file in half precision; it appears whole or not at all.

    expert   judge, captions and features
    """
    state = {f"judge.{name}": value.half() for name, value in expert.judge.state_dict().items()}
    header = {
        "format": FORMAT,
        "config": json.dumps(asdict(expert.judge.config)),
        "captions": json.dumps(expert.captions, ensure_ascii=False),
    }
    write_tensors(path, {**state, "features": expert.features.half()}, header)


def load_expert(path: Path) -> Expert:
    """The judge that `save_expert` wrote, in float32; another file raises CheckpointError."""
    with open_tensors(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path}: expected a judge file, its header says something else")
        values: dict[str, Any] = json.loads(metadata["config"])
        lists: dict[str, Any] = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        config = JudgeConfig(**{**values, **lists})
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    judge = Judge(config)
    judge.load_state_dict(
        {
            name.removeprefix("judge."): value
            for name, value in tensors.items()
            if name != "features"
        }
    )
    captions = tuple(json.loads(metadata["captions"]))
    return Expert(judge.requires_grad_(False).eval(), captions, tensors["features"])


def compared_to(expert: Expert, captions: Sequence[str], pictures: Tensor) -> Expert:
    """The same judge with another reference.

    captions   that the right one is looked for among
    pictures   b h w c in 0..1
    """
    unique = tuple(dict.fromkeys(captions))
    return replace(expert, captions=unique, features=expert.judge.look(pictures).features)


def bundled(name: str) -> Path:
    """A file that ships beside the emoji cascade's judges."""
    return BUNDLED / "emoji_judge" / name


def bundled_judges() -> list[Path]:
    """The judges that ship, the first of them first."""
    return [bundled(f"{name}.safetensors") for name in ("judge", "second_judge")]
