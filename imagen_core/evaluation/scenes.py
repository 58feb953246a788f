"""What plain image analysis reads off a composed picture: ground, colour of the thing, how many things.

Colours are compared in Oklab (Ottosson 2020), in which equal steps look equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Lightness, chroma and hue in degrees that a colour word stands for.
COLOURS = {
    "red": (0.60, 0.22, 27.0),
    "orange": (0.74, 0.18, 58.0),
    "yellow": (0.88, 0.17, 95.0),
    "green": (0.66, 0.18, 144.0),
    "blue": (0.60, 0.17, 255.0),
    "purple": (0.55, 0.20, 303.0),
    "pink": (0.77, 0.15, 355.0),
    "brown": (0.47, 0.08, 55.0),
}
GROUNDS = {**COLOURS, "black": (0.20, 0.0, 0.0), "gray": (0.68, 0.0, 0.0), "white": (1.0, 0.0, 0.0)}
LIGHTNESS_WEIGHT = 0.6  # lightness varies with the light, hue does not
APART = 0.08  # Oklab distance from the ground at which a pixel is of a thing
LEAST_CHROMA = 0.04
HUE_BINS, NEAR_BINS = 36, 3
LEAST_AREA = 0.006  # of the picture that a thing covers
TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def to_oklab(rgb: Tensor) -> Tensor:
    """Oklab of sRGB: ... 3, float32.

    rgb   ... 3 in 0..1
    """
    rgb = rgb.float()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = linear @ torch.tensor(TO_LMS).T
    return lms.clamp(min=0) ** (1 / 3) @ torch.tensor(TO_LAB).T


def colour_word(lab: Tensor, words: dict[str, tuple[float, float, float]]) -> str:
    """The word whose colour is nearest.

    lab     3, Oklab
    words   lightness, chroma and hue by word
    """
    weights = torch.tensor([LIGHTNESS_WEIGHT, 1.0, 1.0])
    table = torch.tensor(list(words.values()))
    angle = table[:, 2].deg2rad()
    known = torch.stack([table[:, 0], table[:, 1] * angle.cos(), table[:, 1] * angle.sin()], 1)
    return list(words)[int(((known - lab) * weights).norm(dim=1).argmin())]


def border(picture: Tensor) -> Tensor:
    """The pixels of the outermost two rows and columns: n 3.

    picture   h w 3
    """
    sides = [picture[:2], picture[-2:], picture[2:-2, :2], picture[2:-2, -2:]]
    return torch.cat([side.reshape(-1, 3) for side in sides])


def ground_colour(picture: Tensor) -> str:
    """The word for what most of the border shows.

    picture   h w 3 in 0..1
    """
    return colour_word(border(to_oklab(picture)).median(0).values, GROUNDS)


def of_things(picture: Tensor) -> Tensor:
    """Which pixels are not ground: h w bool.

    picture   h w 3 in 0..1
    """
    lab = to_oklab(picture)
    return (lab - border(lab).median(0).values).norm(dim=-1) > APART


def thing_colour(picture: Tensor) -> str | None:
    """The word for the hue that most of a thing's chroma has; None where there is next to none.

    picture   h w 3 in 0..1
    """
    lab = to_oklab(picture)[of_things(picture)]
    chroma = lab[:, 1:].norm(dim=1)
    lab, chroma = lab[chroma > LEAST_CHROMA], chroma[chroma > LEAST_CHROMA]
    if len(lab) < 12:
        return None
    hue = torch.atan2(lab[:, 2], lab[:, 1]).rad2deg() % 360
    bins = torch.bincount((hue / 360 * HUE_BINS).long() % HUE_BINS, chroma, HUE_BINS)
    near = sum(bins.roll(shift) for shift in range(-NEAR_BINS, NEAR_BINS + 1))
    assert isinstance(near, Tensor)
    centre = (int(near.argmax()) + 0.5) * 360 / HUE_BINS
    own = ((hue - centre + 180) % 360 - 180).abs() <= (NEAR_BINS + 0.5) * 360 / HUE_BINS
    mean = (lab[own] * chroma[own, None]).sum(0) / chroma[own].sum()
    return colour_word(mean, COLOURS)


def components(mask: Tensor) -> Tensor:
    """Sizes of the connected parts of a mask, in pixels, largest first; corners connect.

    mask   h w bool
    """
    labels = torch.arange(1, mask.numel() + 1, dtype=torch.float32).view(1, 1, *mask.shape) * mask
    while True:
        grown = F.max_pool2d(labels, 3, 1, 1) * mask
        if torch.equal(grown, labels):
            sizes = labels[labels > 0].unique(return_counts=True)[1]
            return sizes.sort(descending=True).values
        labels = grown


def count_things(picture: Tensor) -> int:
    """How many connected things of a size worth counting there are.

    picture   h w 3 in 0..1
    """
    mask = of_things(picture)
    closed = F.max_pool2d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0
    sizes = components(closed).tolist()
    least = max(LEAST_AREA * mask.numel(), 0.25 * sizes[0]) if sizes else 0
    return sum(size >= least for size in sizes)
