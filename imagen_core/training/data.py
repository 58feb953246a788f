"""Pictures and captions, and training batches drawn from them.

A batch is a pure function of (seed, step): a resumed run draws what the killed one would have drawn,
and several processes share one draw. Pictures come from a `Source`: arrays that live on the training device
(`Pairs`), or ones that a worker process makes while the network trains (`Stream`).
"""

import hashlib
import json
import signal
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.lowres import Lowres, augment, upsample
from ..diffusion.noise import sent
from ..diffusion.schedules import AnySchedule
from ..text.embedding import TextEmbedding
from ..text.encoder import TextEncoder
from ..weights.files import open_tensors, write_tensors
from .loss import stratified_t
from .recipe import DataSection, RecipeError

MakePicture = Callable[[np.random.Generator], tuple[np.ndarray, str]]
NULL_ROW = 0  # of the table of encoded captions: the empty prompt


class Drawn(NamedTuple):
    """Pictures of one batch.

    images   b h w 3, uint8; or b h w 4, whose last channel weighs the loss
    text     b rows; a tenth or so is the empty prompt
    """

    images: Tensor
    text: TextEmbedding


class Source(Protocol):
    """Where a run's pictures and captions come from."""

    @property
    def device(self) -> torch.device:
        """Where the pictures are handed out."""
        ...

    def batches(
        self, section: DataSection, scale: int, batch: int, seed: int, step: int
    ) -> Generator[Drawn]:
        """Batch number `step` of a run and all that follow."""
        ...


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

    def batches(
        self, section: DataSection, scale: int, batch: int, seed: int, step: int
    ) -> Generator[Drawn]:
        """Batch number `step` of a run and all that follow."""
        while True:
            yield self.draw(section, scale, batch, generator_of(self.device, seed, step))
            step += 1

    def draw(
        self, section: DataSection, scale: int, batch: int, generator: torch.Generator
    ) -> Drawn:
        """Pictures, and captions of theirs, by their weights."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=self.device)

        last = len(self.images) - 1
        pictures = torch.searchsorted(self.picture_cdf, uniform(batch)).clamp_max(last)
        choice = torch.searchsorted(self.caption_cdf[pictures], uniform(batch, 1))
        rows = self.rows[pictures].gather(1, choice.clamp_max(self.rows.shape[1] - 1)).squeeze(1)
        rows = torch.where(uniform(batch) < section.text_dropout, NULL_ROW, rows)
        text = TextEmbedding(self.embeds[rows].float(), self.mask[rows])
        images = crop_images(self.images, pictures, section.crop, scale, uniform(2, batch))
        return Drawn(images, text)


class Batch(NamedTuple):
    """One training batch.

    x0      b 3 h w in [-1, 1]
    text    b rows
    t       (b,) in [0, 1)
    noise   b 3 h w
    lowres  conditioning of an SR stage
    weight  b 1 h w in 0..1, of the loss at each pixel; None = 1
    """

    x0: Tensor
    text: TextEmbedding
    t: Tensor
    noise: Tensor
    lowres: Lowres | None
    weight: Tensor | None = None


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
    try:
        pictures = json.loads(Path(section.manifest).read_text("utf-8"))["pictures"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"data.manifest: {section.manifest}: expected JSON with a list pictures: {error!r}"
        ) from error
    for row, picture in enumerate(pictures):
        check_picture(section.manifest, row, picture, section.row)
    if section.row:
        pictures = [picture for picture in pictures if picture[section.row] is not None]
        pictures.sort(key=lambda picture: picture[section.row])
    if len(pictures) != count:
        raise ValueError(
            f"data.manifest: expected one entry for each of the {count} images of "
            f"{section.images}, got {len(pictures)}"
        )
    return pictures


def check_picture(manifest: str, row: int, picture: Any, row_key: str) -> None:
    """Raise RecipeError unless an entry of a manifest has captions and a weight."""
    where = f"data.manifest: {manifest}: pictures[{row}]"
    if not isinstance(picture, dict):
        raise RecipeError(f"{where}: expected an object, got {picture!r}")
    for key in ("captions", "weight", *([row_key] if row_key else [])):
        if key not in picture:
            raise RecipeError(f"{where}: {key} is missing")
    weight, captions = picture["weight"], picture["captions"]
    if not isinstance(weight, (int, float)) or weight < 0:
        raise RecipeError(f"{where}.weight: expected a number of at least 0, got {weight!r}")
    pairs = captions if isinstance(captions, list) and captions else [captions]
    for pair in pairs:
        fits = isinstance(pair, list) and len(pair) == 2
        if not (fits and isinstance(pair[0], str) and isinstance(pair[1], (int, float))):
            raise RecipeError(f"{where}.captions: expected pairs such as [text, 1.0], got {pair!r}")


def generator_of(device: torch.device, seed: int, step: int, use: int = 0) -> torch.Generator:
    """A generator of one batch of a run: of its pictures (use 0), or of its noise (use 1)."""
    # A CPU generator keeps 32 bits of its seed; a prime stride keeps runs of nearby seeds apart.
    return torch.Generator(device).manual_seed((2 * (seed * 1_000_003 + step) + use) % 2**32)


class Stream:
    """Pictures that another process makes while the network trains; their captions are encoded here."""

    def __init__(
        self,
        make: MakePicture,
        encoder: TextEncoder,
        device: torch.device,
        workers: int = 1,
        kept: Path | None = None,
    ):
        """Bind a maker of pictures to a text encoder.

        make      a picture, h w 3 uint8, and its caption; runs in the workers
        device    where pictures and states are handed out
        workers   processes that make pictures; 0 = this one
        kept      folder where states of captions are kept from run to run
        """
        self.make, self.prompts, self.workers = make, Prompts(encoder, kept=kept), workers
        self.device = device

    def batches(
        self, section: DataSection, scale: int, batch: int, seed: int, step: int
    ) -> Generator[Drawn]:
        """Batch number `step` of a run and all that follow."""
        loader = torch.utils.data.DataLoader(
            _Steps(self.make, batch, seed),
            batch_size=None,
            sampler=range(step, 2**31),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_leave_signals,
        )
        for number, (images, captions) in enumerate(loader, step):
            rng = np.random.default_rng((seed, number, 1))
            dropped = rng.random(batch) < section.text_dropout
            texts = ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]
            text = self.prompts.encode(texts)
            embeds, mask = (sent(part, self.device) for part in (text.embeds, text.mask))
            yield Drawn(sent(images, self.device), TextEmbedding(embeds, mask))


def _leave_signals(_worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach every process of a run, to the one that saves."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Steps(torch.utils.data.Dataset):
    """Whole batches by their number."""

    def __init__(self, make: MakePicture, batch: int, seed: int):
        self.make, self.batch, self.seed = make, batch, seed

    def __getitem__(self, step: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng((self.seed, step))
        together = getattr(self.make, "batch", None)  # of a maker whose pictures differ in size
        made = (
            together(rng, self.batch) if together else [self.make(rng) for _ in range(self.batch)]
        )
        images, captions = zip(*made, strict=True)
        return torch.from_numpy(np.stack(images)), list(captions)


class Prompts:
    """States of captions, those in use kept in half precision; on disk too where a folder is given.

    A file is named by how the encoder reads a probe, so runs with the same encoder share it.
    """

    def __init__(self, encoder: TextEncoder, keep: int = 60_000, kept: Path | None = None):
        self.encoder, self.keep, self.kept = encoder, keep, kept
        self.states: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        if kept is not None:
            self.name = encoder_name(encoder)
            for path in sorted(kept.glob(f"{self.name}-*.safetensors")):
                self.states |= read_states(path)

    def encode(self, texts: list[str]) -> TextEmbedding:
        """States of the texts, float32."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.states]
        for first in range(0, len(missing), 128):
            part = missing[first : first + 128]
            found = self.encoder.encode(part)
            rows = zip(found.embeds.half(), found.mask, strict=True)
            self.states |= zip(part, rows, strict=True)
        if missing and self.kept is not None:
            write_states(self.kept, self.name, {text: self.states[text] for text in missing})
        for text in texts:
            self.states.move_to_end(text)
        embeds, mask = zip(*(self.states[text] for text in texts), strict=True)
        while len(self.states) > self.keep:
            self.states.popitem(last=False)
        return TextEmbedding(torch.stack(embeds).float(), torch.stack(mask))


def encoder_name(encoder: TextEncoder) -> str:
    """What tells an encoder from others: a digest of how it reads a probe."""
    states = encoder.encode(["two red cats"]).embeds
    shape = "x".join(str(side) for side in states.shape[1:])
    return f"{shape}-{hashlib.sha256(states.half().numpy().tobytes()).hexdigest()[:16]}"


def read_states(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """States of texts in a shard."""
    with open_tensors(path) as file:
        texts = json.loads(file.metadata()["texts"])
        embeds, mask = file.get_tensor("embeds"), file.get_tensor("mask")
    return dict(zip(texts, zip(embeds, mask, strict=True), strict=True))


def write_states(folder: Path, name: str, states: dict[str, tuple[Tensor, Tensor]]) -> None:
    """A new shard, named by its texts; one that is there holds the same."""
    texts = list(states)
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    embeds, mask = (torch.stack(part) for part in zip(*states.values(), strict=True))
    path = folder / f"{name}-{digest}.safetensors"
    if not path.exists():
        write_tensors(path, {"embeds": embeds, "mask": mask}, {"texts": json.dumps(texts)})


def add_noise(
    drawn: Drawn,
    section: DataSection,
    schedule: AnySchedule,
    scale: int,
    seed: int,
    step: int,
    align_corners: bool = False,
) -> Batch:
    """A training batch of drawn pictures: noise times, noise and low-resolution conditioning.

    section      augmentation of the conditioning
    schedule     of the stage, for noise on the conditioning
    scale        of the stage; 1 = a base, no conditioning
    seed, step   the noise is a function of these
    align_corners   as the stage up-samples when it is used
    """
    generator = generator_of(drawn.images.device, seed, step, use=1)
    pixels = drawn.images.permute(0, 3, 1, 2).float()
    x0, weight = pixels[:, :3] / 127.5 - 1, None
    if pixels.shape[1] == 4:
        weight = pixels[:, 3:] / 255
    batch, device = len(x0), x0.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    t = stratified_t(batch, uniform(1))
    noise = torch.randn(x0.shape, generator=generator, device=device)
    if scale == 1:
        return Batch(x0, drawn.text, t, noise, None, weight)
    small = blur(F.avg_pool2d(x0, scale), section.blur_max * uniform(batch))
    aug_noise = torch.randn(x0.shape, generator=generator, device=device)
    large = upsample(small, scale, align_corners)
    lowres = augment(large, aug_noise, section.aug_max * uniform(batch), schedule)
    return Batch(x0, drawn.text, t, noise, lowres, weight)


def crop_images(images: Tensor, pictures: Tensor, crop: int, scale: int, place: Tensor) -> Tensor:
    """Crops of the pictures at multiples of the scale: b crop crop 3, uint8.

    images     n h w 3, uint8
    pictures   (b,) indices
    crop       side in pixels; 0 = whole pictures
    scale      first pixels are multiples of this
    place      2 b in [0, 1): where the crop lies
    """
    if crop == 0:
        cropped = images[pictures]
    else:
        free = [(side - crop) // scale + 1 for side in images.shape[1:3]]
        top, left = ((part * count).long() * scale for part, count in zip(place, free, strict=True))
        offsets = torch.arange(crop, device=images.device)
        rows = (top[:, None] + offsets)[:, :, None]
        columns = (left[:, None] + offsets)[:, None, :]
        cropped = images[pictures[:, None, None], rows, columns]
    return cropped


def blur(small: Tensor, amount: Tensor) -> Tensor:
    """Pictures mixed with their own 3x3 binomial blur, as an imperfect stage might leave them.

    small    b 3 h w
    amount   (b,) part of the blurred picture, 0..1
    """
    # 1 2 1, made on the device: a list would be sent there, and waited for.
    kernel = (2.0 - (torch.arange(3, device=small.device) - 1).abs()) / 4
    weight = torch.outer(kernel, kernel).expand(small.shape[1], 1, 3, 3)
    padded = F.pad(small, (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(padded, weight, groups=small.shape[1])
    return torch.lerp(small, blurred, amount[:, None, None, None])
