"""What sampling asks of the text and the pictures that it is given; an error says what to give instead."""

from typing import Any

from torch import Tensor

from .diffusion.respacing import whole
from .settings import Settings
from .stage import Stage
from .tensor_checks import check_numbers, check_tensor
from .text.prompt import EncodedPrompt


def check_base(
    stage: Stage,
    text: EncodedPrompt,
    settings: Settings,
    image: Tensor | None,
    mask: Tensor | None,
    size: tuple[int, int | None, int | None],
) -> tuple[int, int, int]:
    """Pictures, height and width of a run of a base stage, all of whose inputs are checked.

    text       encoded prompt of 1 or as many rows as there are pictures
    image      b h w c in 0..1, which gives batch and size; or None
    mask       b h w, h w or b 1 h w, 1 = repaint; or None
    size       pictures, height and width without an image; None = the stage's own
    """
    stage.check_kind("base")
    check_image(image, "image")
    sides = (stage.config.resolution if side is None else side for side in size[1:])
    given = zip(("batch_size", "height", "width"), (size[0], *sides), strict=True)
    batch, height, width = (whole(name, number) for name, number in given)
    if image is not None:
        batch, height, width = image.shape[:3]
    check_batch(stage, text, batch)
    stage.check_size(height, width, name="width and height" if image is None else "image")
    check_mask(mask, image, batch, "image")
    settings.check(stage.config)
    return batch, height, width


def check_sr(
    stage: Stage,
    text: EncodedPrompt,
    settings: Settings,
    image: Tensor,
    original: Tensor | None,
    mask: Tensor | None,
) -> tuple[int, int, int]:
    """Pictures, height and width of what an SR stage makes, all of whose inputs are checked.

    text       encoded prompt of 1 or b rows
    image      b h w c in 0..1, to be enlarged
    original   b h w c in 0..1, 1 or b rows as large as the result; or None
    mask       b h w, h w or b 1 h w, 1 = repaint; or None
    """
    stage.check_kind("sr")
    check_image(image, "image")
    batch, height, width = image.shape[:3]
    check_batch(stage, text, batch)
    stage.check_size(height, width, name="image")
    check_image(original, "original")
    if original is not None:
        stage.check_original(original.shape, image.shape)
    check_mask(mask, original, batch, "original")
    settings.check(stage.config)
    return batch, stage.config.scale * height, stage.config.scale * width


def check_batch(stage: Stage, text: Any, batch: int) -> None:
    """Raise TypeError or ValueError unless a text is for this stage and this many pictures.

    stage   reads it
    text    an EncodedPrompt, else TypeError
    """
    if not isinstance(text, EncodedPrompt):
        raise TypeError(
            f"text: expected an EncodedPrompt, as text_encoder.encode_prompt gives it, got "
            f"{type(text).__name__}"
        )
    stage.check_text(text.text.embeds)
    if batch < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch}")
    for part in (*(part for p in text.positives for part in (p.text, p.pooled)), text.null_text):
        if len(part) not in (1, batch):
            expected = "1 prompt" if batch == 1 else f"1 prompt or {batch}, one for each image"
            raise ValueError(
                f"text: expected {expected}, got {len(part)}; set batch_size to {len(part)}"
            )


def check_sampled(made: Any, x: Tensor) -> Tensor:
    """What a sampler returned; TypeError or ValueError unless it is like the x that it was given."""
    if not isinstance(made, Tensor):
        raise TypeError(
            f"sampler: expected it to return x at level 0, a tensor, got {type(made).__name__}"
        )
    if made.shape != x.shape:
        raise ValueError(
            f"sampler: expected x at level 0 of shape {list(x.shape)}, got {list(made.shape)}"
        )
    return made


def check_image(image: Tensor | None, name: str) -> None:
    """Raise ValueError unless this is a batch of pictures, grey, RGB or with alpha; None passes.

    image   b h w c in 0..1
    """
    if image is None:
        return
    check_tensor(image, name)
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        first = image.ndim == 4 and image.shape[1] in (1, 3, 4)
        raise ValueError(
            f"{name}: expected batch x height x width x 3 channels in 0..1, got {list(image.shape)}; "
            f"{'put channels last: permute(0, 2, 3, 1)' if first else 'convert it to RGB'}"
        )
    if not image.is_floating_point():
        raise ValueError(
            f"{name}: expected floating-point values in 0..1, got {image.dtype}; divide by 255"
        )
    check_numbers(image, name)


def check_mask(mask: Tensor | None, image: Tensor | None, batch: int, name: str) -> None:
    """Raise ValueError unless the mask says for each picture what to repaint; None passes.

    mask    b h w, h w or b 1 h w of any size, one row or one a picture
    image   what is repainted, or None
    name    of the input that is repainted
    """
    if mask is None:
        return
    if image is None:
        raise ValueError(f"mask: needs an {name} whose unmasked pixels are to be kept, got none")
    check_tensor(mask, "mask")
    rows = 1 if mask.ndim == 2 else len(mask)
    planes = mask.ndim in (2, 3) or (mask.ndim == 4 and mask.shape[1] == 1)
    if not planes or not mask.numel() or rows not in (1, batch):
        raise ValueError(
            f"mask: expected 1 or {batch} x height x width, as there are {batch} images, got "
            f"{list(mask.shape)}"
        )
    check_numbers(mask, "mask")
