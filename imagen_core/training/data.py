"""Pictures and captions that live on the training device, and batches drawn from them.

A batch is a pure function of (seed, step): a resumed run draws what the killed one would have drawn,
and several processes share one draw.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.lowres import Lowres, augment, upsample
from ..diffusion.schedules import AnySchedule
from ..text.embedding import TextEmbedding
from ..text.encoder import TextEncoder
from .loss import stratified_t
from .recipe import DataSection

NULL_ROW = 0  # of the table of encoded captions: the empty prompt


@dataclass(frozen=True)
class Pairs:
    """A data set on one device.

    images      n h w 3, uint8
    embeds      m tokens d: the encoded captions, NULL_ROW first
    mask        m tokens, bool
    rows        n k: each picture's captions as rows of embeds
    caption_cdf n k: running sum of each picture's caption weights, ending in 1
    picture_cdf (n,): running sum of picture weights, ending in 1
    """

    images: Tensor
    embeds: Tensor
    mask: Tensor
    rows: Tensor
    caption_cdf: Tensor
    picture_cdf: Tensor

    @property
    def device(self) -> torch.device:
        """Where the data is."""
        return self.images.device


class Batch(NamedTuple):
    """One training batch.

    x0      b 3 h w in [-1, 1]
    text    b rows
    t       (b,) in [0, 1)
    noise   b 3 h w
    lowres  conditioning of an SR stage
    """

    x0: Tensor
    text: TextEmbedding
    t: Tensor
    noise: Tensor
    lowres: Lowres | None


def load_pairs(section: DataSection, encoder: TextEncoder, device: torch.device) -> Pairs:
    """The data of a recipe, every distinct caption encoded once.

    section   names the files
    encoder   the frozen text encoder
    device    where the data is to live
    """
    images = np.load(section.images, mmap_mode="r", allow_pickle=False)
    pictures = read_manifest(section, len(images))
    texts = ["", *sorted({text for picture in pictures for text, _ in picture["captions"]} - {""})]
    index = {text: i for i, text in enumerate(texts)}
    parts = [encoder.encode(texts[i : i + 256]) for i in range(0, len(texts), 256)]
    most = max(len(picture["captions"]) for picture in pictures)
    rows = torch.zeros(len(pictures), most, dtype=torch.long)
    weights = torch.zeros(len(pictures), most, dtype=torch.float64)
    for i, picture in enumerate(pictures):
        for k, (text, weight) in enumerate(picture["captions"]):
            rows[i, k], weights[i, k] = index[text], weight
    picture_weights = torch.tensor([p["weight"] for p in pictures], dtype=torch.float64)
    half = torch.float16 if device.type == "cuda" else torch.float32
    return Pairs(
        images=torch.from_numpy(np.array(images)).to(device),
        embeds=torch.cat([part.embeds for part in parts]).to(device, half),
        mask=torch.cat([part.mask for part in parts]).to(device),
        rows=rows.to(device),
        caption_cdf=(weights.cumsum(1) / weights.sum(1, keepdim=True)).float().to(device),
        picture_cdf=(picture_weights.cumsum(0) / picture_weights.sum()).float().to(device),
    )


def read_manifest(section: DataSection, count: int) -> list[dict]:
    """The manifest's entries in the order of the image array.

    section   names the manifest, and its field that holds a picture's row
    count     rows of the array
    """
    pictures = json.loads(Path(section.manifest).read_text("utf-8"))["pictures"]
    if section.row:
        pictures = [picture for picture in pictures if picture[section.row] is not None]
        pictures.sort(key=lambda picture: picture[section.row])
    if len(pictures) != count:
        raise ValueError(
            f"data.manifest: expected one picture for each of the {count} images of "
            f"{section.images}, got {len(pictures)}"
        )
    return pictures


def draw_batch(
    pairs: Pairs,
    section: DataSection,
    schedule: AnySchedule,
    scale: int,
    batch: int,
    seed: int,
    step: int,
) -> Batch:
    """Batch number `step` of a run.

    pairs      the data
    section    crop, dropout and augmentation
    schedule   of the stage, for noise on the low-resolution conditioning
    scale      of the stage; 1 = a base, no conditioning
    batch      pictures
    seed, step the batch is a function of these
    """
    # A CPU generator keeps 32 bits of its seed; a prime stride keeps runs of nearby seeds apart.
    generator = torch.Generator(pairs.device).manual_seed((seed * 1_000_003 + step) % 2**32)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=pairs.device)

    pictures = torch.searchsorted(pairs.picture_cdf, uniform(batch)).clamp_max(
        len(pairs.images) - 1
    )
    choice = torch.searchsorted(pairs.caption_cdf[pictures], uniform(batch, 1))
    rows = pairs.rows[pictures].gather(1, choice.clamp_max(pairs.rows.shape[1] - 1)).squeeze(1)
    rows = torch.where(uniform(batch) < section.text_dropout, NULL_ROW, rows)
    text = TextEmbedding(pairs.embeds[rows].float(), pairs.mask[rows])
    x0 = crop_images(pairs.images, pictures, section.crop, scale, uniform(2, batch))
    t = stratified_t(batch, uniform(1))
    noise = torch.randn(x0.shape, generator=generator, device=pairs.device)
    if scale == 1:
        return Batch(x0, text, t, noise, None)
    small = blur(F.avg_pool2d(x0, scale), section.blur_max * uniform(batch))
    aug_noise = torch.randn(x0.shape, generator=generator, device=pairs.device)
    lowres = augment(upsample(small, scale), aug_noise, section.aug_max * uniform(batch), schedule)
    return Batch(x0, text, t, noise, lowres)


def crop_images(images: Tensor, pictures: Tensor, crop: int, scale: int, place: Tensor) -> Tensor:
    """Crops of the pictures at multiples of the scale: b 3 crop crop in [-1, 1], channels last.

    images     n h w 3, uint8
    pictures   (b,) indices
    crop       side in pixels; 0 = whole pictures
    scale      first pixels are multiples of this
    place      2 b in [0, 1): where the crop lies
    """
    if crop == 0:
        cropped = images[pictures]
    else:
        free = torch.tensor([(side - crop) // scale + 1 for side in images.shape[1:3]]).to(place)
        top, left = (place * free[:, None]).long() * scale
        offsets = torch.arange(crop, device=images.device)
        rows = (top[:, None] + offsets)[:, :, None]
        columns = (left[:, None] + offsets)[:, None, :]
        cropped = images[pictures[:, None, None], rows, columns]
    return cropped.permute(0, 3, 1, 2).float() / 127.5 - 1


def blur(small: Tensor, amount: Tensor) -> Tensor:
    """Pictures mixed with their own 3x3 binomial blur, as an imperfect stage might leave them.

    small    b 3 h w
    amount   (b,) part of the blurred picture, 0..1
    """
    kernel = torch.tensor([1.0, 2.0, 1.0], device=small.device) / 4
    weight = torch.outer(kernel, kernel).expand(small.shape[1], 1, 3, 3)
    padded = F.pad(small, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(padded, weight, groups=small.shape[1])
    return torch.lerp(small, blurred, amount[:, None, None, None])
