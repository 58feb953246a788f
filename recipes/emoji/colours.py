"""Colours of drawings: the dominant one, and a drawing in another one, in Oklab.

Oklab, Ottosson 2020: lightness, and two axes in which equal steps look equal.
"""

from __future__ import annotations

import numpy as np

from imagen_nodes.imagen_core.evaluation import scenes

COLOURS: dict[str, tuple[float, float, float]] = scenes.COLOURS

GREYS = {"black": (0.20, 0.0, 0.0), "gray": (0.68, 0.0, 0.0)}
HUE_WIDTH = 40.0  # degrees around the dominant hue that are recoloured whole
HUE_EDGE = 25.0  # degrees over which that fades

_TO_LMS, _TO_LAB = np.array(scenes.TO_LMS, np.float32), np.array(scenes.TO_LAB, np.float32)
_FROM_LAB, _FROM_LMS = np.linalg.inv(_TO_LAB), np.linalg.inv(_TO_LMS)


def to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Oklab of sRGB: both ... 3, float32; rgb in 0..1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear.astype(np.float32) @ _TO_LMS.T) @ _TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """The inverse of `to_oklab`, clipped to 0..1."""
    linear = np.clip((lab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def hue_distance(hue: np.ndarray, other: np.ndarray | float) -> np.ndarray:
    """Degrees between two hues, 0..180."""
    return np.abs((hue - other + 180) % 360 - 180)


def dominant_colour(sprite: np.ndarray) -> dict[str, float | str] | None:
    """Lightness, chroma and hue of a drawing's one dominant colour, with its name; None: it has none.

    sprite   h w 4, uint8

    A colour dominates where three quarters of all chroma lie within HUE_WIDTH of one hue and its area is
    three tenths of the drawing's.
    """
    visible = sprite[..., 3] > 128
    if visible.sum() < 64:
        return None
    lab = to_oklab(sprite[visible][:, :3] / np.float32(255))
    chroma, hue = np.hypot(lab[:, 1], lab[:, 2]), np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    if chroma.mean() < 0.03:
        return None
    bins = np.bincount((hue // 10).astype(int), weights=chroma, minlength=36)
    near = sum((np.roll(bins, shift) for shift in range(-3, 4)), np.zeros_like(bins))
    centre = 10.0 * int(near.argmax()) + 5
    own = (hue_distance(hue, centre) <= HUE_WIDTH) & (chroma > 0.04)
    if chroma[own].sum() < 0.75 * chroma.sum() or own.mean() < 0.3:
        return None
    weight = chroma[own]
    mean = (lab[own] * weight[:, None]).sum(0) / weight.sum()
    lightness, strength = float(mean[0]), float(np.hypot(mean[1], mean[2]))
    angle = float(np.degrees(np.arctan2(mean[2], mean[1])) % 360)
    return {"lightness": lightness, "chroma": strength, "hue": angle,
            "name": name_of(lightness, strength, angle)}  # fmt: skip


def name_of(lightness: float, chroma: float, hue: float) -> str:
    """The nearest colour word."""

    def polar(l: float, c: float, h: float) -> np.ndarray:  # noqa: E741
        return np.array([l, c * np.cos(np.radians(h)), c * np.sin(np.radians(h))])

    here = polar(lightness, chroma, hue) * (0.6, 1.0, 1.0)
    return min(COLOURS, key=lambda n: np.linalg.norm(polar(*COLOURS[n]) * (0.6, 1.0, 1.0) - here))


def recolour(sprite: np.ndarray, dominant: dict[str, float], colour: str) -> np.ndarray:
    """A drawing whose dominant colour is another one, shading kept: h w 4, uint8.

    sprite     h w 4, uint8
    dominant   of `dominant_colour`
    colour     a word of COLOURS
    """
    lightness, chroma, hue = COLOURS[colour]
    lab = to_oklab(sprite[..., :3] / np.float32(255))
    c, h = np.hypot(lab[..., 1], lab[..., 2]), np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))
    near = np.clip((HUE_WIDTH + HUE_EDGE - hue_distance(h, dominant["hue"])) / HUE_EDGE, 0, 1)
    near *= np.clip(c / 0.04, 0, 1)
    new_l = np.clip(lab[..., 0] + 0.8 * (lightness - dominant["lightness"]), 0.05, 0.99)
    new_c = c * np.clip(chroma / dominant["chroma"], 0.3, 2.0)
    new_h = np.radians(h + hue - dominant["hue"])
    changed = np.stack([new_l, new_c * np.cos(new_h), new_c * np.sin(new_h)], axis=-1)
    mixed = lab + near[..., None] * (changed - lab)
    rgb = np.rint(from_oklab(mixed) * 255).astype(np.uint8)
    return np.concatenate([rgb, sprite[..., 3:]], axis=-1)


def ground(colour: str, jitter: np.ndarray) -> np.ndarray:
    """A colour for a background: (3,), uint8.

    colour   a word of COLOURS or GREYS
    jitter   (3,) in -1..1: lightness, chroma and hue around what the word stands for
    """
    lightness, chroma, hue = {**COLOURS, **GREYS}[colour]
    lightness += 0.06 * jitter[0]
    chroma *= 1 + 0.2 * jitter[1]
    angle = np.radians(hue + 7 * jitter[2])
    lab = np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])
    return np.rint(from_oklab(lab) * 255).astype(np.uint8)
