"""What nodes ask of their inputs beyond what the core asks, and the node's name before every error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import host


@contextmanager
def named(node: str) -> Iterator[None]:
    """What the core raises inside the block says which node it comes from."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{node}: {error}") from error


ADVICE = {
    "base": "connect `base` of Load Imagen Cascade",
    "sr": "connect `sr256` or `sr1024` of Load Imagen Cascade",
}


def require_stage(stage: Any, kind: str | None = None, name: str = "stage") -> None:
    """Raise ValueError unless the wire carries a stage of the kind.

    kind    "base" or "sr"; None = either
    name    of the input
    """
    if stage is None:
        raise ValueError(
            f"{name}: the loaded cascade has no such stage; "
            "choose another cascade, or connect Load Imagen Stage"
        )
    if kind is not None:
        try:
            stage.check_kind(kind, name)
        except ValueError as error:
            raise ValueError(f"{error}; {ADVICE[kind]}") from None


def check_links(cls: Any, input_types: dict[str, Any], kind: str) -> bool | str:
    """Before anything runs: True where every link fits and the stage is of the kind, else what to change.

    cls           the node's class
    input_types   of the links, by input; a loader's output says what kind of stage comes there
    kind          "base" or "sr"
    """
    for group in cls.INPUT_TYPES().values():
        for name, (wanted, _) in group.items():
            given = input_types.get(name, wanted)
            if given is not wanted and not host.fits(given, wanted):
                return f"{name}: expected a link that carries {wanted}, got {given}"
    found = getattr(input_types.get("stage"), "kind", kind)
    if found == kind:
        return True
    from ..imagen_core.stage import KINDS

    return f"stage: expected {KINDS[kind]}, got {KINDS[found]}; {ADVICE[kind]}"


def require_places(base: Any, sr256: Any, sr1024: Any) -> None:
    """Raise ValueError where a stage of another kind is connected; None = nothing is."""
    places = {"base": base, "sr256": sr256, "sr1024": sr1024}
    for name, stage in places.items():
        if stage is not None:
            require_stage(stage, "base" if name == "base" else "sr", name)


def require_input_size(stage: Any, image: Any) -> None:
    """Raise ValueError where pictures are far smaller than what an SR stage was trained to enlarge.

    image   b h w c

    In a graph that is a forgotten stage; the core enlarges anything.
    """
    height, width = image.shape[1:3]
    wanted = stage.config.resolution // stage.config.scale
    if max(height, width) < wanted / 2:
        raise ValueError(
            f"image: this stage enlarges images of about {wanted} x {wanted}, got {width} x {height}; "
            f"run the stage before it first (Imagen SR 256), or scale the image up"
        )
