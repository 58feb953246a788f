"""What is asked of the numbers of a picture or mask; an error says what to give instead."""

import math
from typing import Any

from torch import Tensor

OVERSHOOT = 0.5


def check_tensor(image: Any, name: str) -> None:
    """Raise TypeError unless this is a torch.Tensor."""
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name}: expected a torch.Tensor, got {type(image).__name__}; torch.from_numpy makes one"
        )


def check_numbers(tensor: Tensor, name: str) -> None:
    """Raise ValueError where pictures or masks hold NaN, infinities, or values far outside 0..1.

    tensor   any shape; what resampling adds at edges passes
    """
    least, most = (
        (float(bound) for bound in tensor.detach().aminmax()) if tensor.numel() else (0.0, 1.0)
    )
    if not math.isfinite(least + most):
        raise ValueError(
            f"{name}: has values that are not numbers (NaN or infinite); check the node or file that made it"
        )
    if least < -OVERSHOOT or most > 1 + OVERSHOOT:
        raise ValueError(
            f"{name}: expected values in 0..1, got {least:.3g} to {most:.3g}; {advice(least)}"
        )


def advice(least: float) -> str:
    """How to bring a picture into 0..1, by the smallest of its values."""
    return "divide by 255" if least >= -OVERSHOOT else "of -1..1, take (image + 1) / 2"
