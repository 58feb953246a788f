"""What nodes ask of their inputs; each error names the node and the input, and says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def require_stage(stage: Any, kind: str | None, node: str) -> None:
    """Raise ValueError unless the wire carries a stage of the kind.

    stage   the input
    kind    "base" or "sr"; None = either
    node    display name, for the error
    """
    if stage is None:
        raise ValueError(
            f"{node}: stage: the loaded cascade has no such stage; "
            f"choose another cascade, or connect Load Imagen Stage"
        )
    if kind is not None:
        try:
            stage.check_kind(kind)
        except ValueError as error:
            raise ValueError(f"{node}: {error}; connect another output of the loader") from None


@contextmanager
def named(node: str) -> Iterator[None]:
    """A ValueError inside the block says which node it comes from.

    node   display name
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node}: {error}") from None


def coloured(image: Any, node: str, name: str = "image") -> Any:
    """The image as RGB, grey in all three channels and alpha dropped; None stays None.

    image   b h w c in 0..1; 1, 3 or 4 channels, else ValueError
    node    display name, for the error
    name    of the input
    """
    if image is None:
        return None
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{node}: {name}: expected batch x height x width x 3 channels, got {list(image.shape)}; "
            f"convert it to RGB"
        )
    require_numbers(image, f"{node}: {name}")
    return image.expand(-1, -1, -1, 3) if image.shape[-1] == 1 else image[..., :3]


def require_mask(mask: Any, image: Any, batch: int, node: str, name: str = "image") -> None:
    """Raise ValueError unless the mask says for each picture what to paint; None passes.

    mask    b h w of any size, one row or one a picture
    image   what is painted in, or None
    batch   pictures
    node    display name, for the error
    name    of the input that is painted in
    """
    if mask is None:
        return
    if image is None:
        raise ValueError(f"{node}: mask: needs an {name} too, whose unmasked part is kept")
    if mask.ndim != 3 or len(mask) not in (1, batch):
        raise ValueError(
            f"{node}: mask: expected 1 or {batch} x height x width, as there are {batch} pictures, got "
            f"{list(mask.shape)}"
        )
    require_numbers(mask, f"{node}: mask")


def require_numbers(tensor: Any, where: str) -> None:
    """Raise ValueError where a tensor has NaN or infinite values.

    tensor   any shape
    where    node and input, for the error
    """
    if not tensor.isfinite().all():
        raise ValueError(
            f"{where}: has values that are not numbers (NaN or infinite); "
            f"look at the node that made it"
        )


def require_input_size(stage: Any, image: Any, node: str) -> None:
    """Raise ValueError where a picture is far smaller than what the stage was trained to enlarge.

    stage   an SR stage
    image   b h w c
    node    display name, for the error
    """
    height, width = image.shape[1:3]
    wanted = stage.config.resolution // stage.config.scale
    if max(height, width) < wanted / 2:
        raise ValueError(
            f"{node}: image: this stage enlarges pictures of about {wanted} x {wanted}, got "
            f"{width} x {height}; put the stage before it in between (Imagen SR 256), or scale the "
            f"picture up"
        )
