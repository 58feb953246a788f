"""A table of pictures with labels: two settings against each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import host
from .checks import check_links, named, require_stage
from .conditioning import ImagenT5Encode
from .sampling import ImagenBaseSample, ImagenSR256
from .whole import picture_of
from .widgets import AUTO, OWN_LEVEL, OWN_STEPS, SAMPLERS, SEED, choice, string, wire

if TYPE_CHECKING:
    from torch import Tensor

AXES = [
    "nothing", "prompt", "guidance_scale", "threshold", "percentile", "steps", "sampler", "seed",
    "aug_level",
]  # fmt: skip
NUMBERS = {"guidance_scale": float, "percentile": float, "aug_level": float}
NUMBERS |= {"steps": int, "seed": int}
WORDS = {"threshold": ["dynamic", "static", "none"], "sampler": [AUTO, *SAMPLERS]}
MOST = 64  # cells
SMALLEST = 160  # pixels of a cell's longer side; smaller pictures are enlarged by a whole number
FONT, MARGIN = 15, 6


class ImagenXYPlot:
    """Pictures in rows and columns, a setting along each."""

    DESCRIPTION = (
        "Compares two settings in a table with labels: guidance, threshold, steps, sampler, seed, "
        "prompt, or the noise of a super-resolution stage. Rows and columns each take a list of "
        "values; all else stays the same, the seed too."
    )
    CATEGORY = "imagen"
    FUNCTION = "plot"
    RETURN_TYPES = ("IMAGE", "IMAGE")
    RETURN_NAMES = ("table", "images")
    OUTPUT_TOOLTIPS = ("All in one image, with labels.", "The images alone, row by row.")
    SEARCH_ALIASES = ["xy plot", "x/y/z plot", "grid", "sweep", "compare settings"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        encoder = ImagenT5Encode.INPUT_TYPES()["required"]
        values = (
            "One value a line, or separated by commas; prompts one a line, or separated by "
            "semicolons."
        )
        return {
            "required": {
                "text_encoder": encoder["text_encoder"],
                "stage": wire("IMAGEN_STAGE", "A base stage, from a loader."),
                "prompt": encoder["prompt"],
                "negative_prompt": encoder["negative_prompt"],
                "seed": SEED,
                "columns": choice(AXES, "guidance_scale", "What changes from left to right."),
                "column_values": string("1.5, 3, 6", values, multiline=True),
                "rows": choice(AXES, "threshold", "What changes from top to bottom."),
                "row_values": string("static, dynamic", values, multiline=True),
            },
            "optional": {
                "guidance": wire(
                    "IMAGEN_GUIDANCE",
                    "From Dynamic-Threshold Guidance: what stays the same of it; else the stage's own.",
                ),
                "sr_stage": wire(
                    "IMAGEN_STAGE",
                    "A super-resolution stage that enlarges every image; aug_level needs one.",
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        input_types: dict[str, Any],
        columns: str = AXES[0],
        rows: str = AXES[0],
        column_values: str = "",
        row_values: str = "",
    ) -> bool | str:
        """Whether the axes can be read and the stages are of the right kinds."""
        base = {**input_types}
        sr = base.pop("sr_stage", None)
        if getattr(sr, "kind", "sr") != "sr":
            return "sr_stage: expected a super-resolution stage, got a base stage; connect `sr256`"
        given = {"columns": columns, "rows": rows}
        texts = {"columns": column_values, "rows": row_values}
        for name, axis in given.items():
            if axis not in AXES:
                return f"{name}: expected one of {', '.join(AXES)}, got {axis!r}"
            try:
                values_of(axis, texts[name], f"{name[:-1]}_values")
            except ValueError as error:
                return str(error)
        if columns == rows != "nothing":
            return f"rows: expected another setting than columns, got {rows} for both"
        if sr is None and "aug_level" in (columns, rows):
            return "aug_level: connect a super-resolution stage to sr_stage; the base has no such noise"
        return check_links(cls, base, "base")

    def plot(
        self,
        text_encoder: Any,
        stage: Any,
        prompt: str,
        negative_prompt: str,
        seed: int,
        columns: str,
        column_values: str,
        rows: str,
        row_values: str,
        guidance: Any = None,
        sr_stage: Any = None,
    ) -> tuple:
        """The table, and the pictures row by row."""
        import torch

        with named("Imagen XY Plot"):
            across = values_of(columns, column_values, "column_values")
            down = values_of(rows, row_values, "row_values")
            if len(across) * len(down) > MOST:
                raise ValueError(
                    f"column_values and row_values: expected at most {MOST} images together, got "
                    f"{len(across)} x {len(down)}"
                )
        start = {"prompt": prompt, "seed": seed}
        cells = [{**start, rows: y, columns: x} for y in down for x in across]
        calls = [base_call(cell, text_encoder, stage, negative_prompt, guidance) for cell in cells]
        images = [picture_of(ImagenBaseSample().sample(**call)) for call in calls]
        if sr_stage is not None:
            larger = [
                {"stage": sr_stage, "image": image, "text": call["text"], "seed": call["seed"],
                 "steps": OWN_STEPS, "sampler": AUTO, "tile": 0,
                 "aug_level": cell.get("aug_level", OWN_LEVEL)}
                for cell, call, image in zip(cells, calls, images, strict=True)
            ]  # fmt: skip
            images = [picture_of(ImagenSR256().enlarge(**call)) for call in larger]
        batch = torch.cat(images)
        labels = [titles(columns, across), titles(rows, down)]
        sheet = table(batch, *labels)
        if host.watched():  # the last preview is what stays below the node: not the last image's
            host.progress()(1, 1, 2 * sheet.movedim(3, 1) - 1)
        return sheet, batch


def base_call(
    cell: dict[str, Any], encoder: Any, stage: Any, negative_prompt: str, guidance: Any
) -> dict[str, Any]:
    """The arguments of Imagen Base Sample for a cell.

    cell       settings that differ from cell to cell
    guidance   what the cell's own are put into; None = the stage's
    """
    encoded = ImagenT5Encode().encode(encoder, cell["prompt"], negative_prompt)
    own = {
        name: cell[name] for name in ("guidance_scale", "threshold", "percentile") if name in cell
    }
    with named("Imagen XY Plot"):
        require_stage(stage, "base")
        guidance = replace(guidance or stage.config.guidance(), **own) if own else guidance
    side = stage.config.resolution
    return {
        "stage": stage, "text": picture_of(encoded), "width": side, "height": side, "batch_size": 1,
        "seed": cell["seed"], "steps": cell.get("steps", OWN_STEPS),
        "sampler": cell.get("sampler", AUTO), "strength": 1.0, "guidance": guidance,
    }  # fmt: skip


def values_of(axis: str, text: str, name: str) -> list[Any]:
    """The values of an axis; ValueError names what cannot be read.

    axis   one of AXES
    text   one value a line, or all on one line, separated by commas, prompts by semicolons
    name   of the input
    """
    if axis == "nothing":
        return [None]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = [part.strip() for part in lines[0].split(";" if axis == "prompt" else ",")]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{name}: expected values of {axis}, got none")
    try:
        found = [NUMBERS[axis](line) if axis in NUMBERS else line for line in lines]
    except ValueError:
        kind = "whole numbers" if NUMBERS[axis] is int else "numbers"
        raise ValueError(f"{name}: expected {kind} for {axis}, got {text.strip()!r}") from None
    for value in found if axis in WORDS else ():
        if value not in WORDS[axis]:
            raise ValueError(f"{name}: expected one of {', '.join(WORDS[axis])}, got {value!r}")
    return found


def titles(axis: str, values: list[Any]) -> list[str]:
    """What stands beside the rows or above the columns."""
    if axis == "nothing":
        return [""]
    if axis in ("prompt", "threshold", "sampler"):
        return [str(value) for value in values]
    return [
        f"{axis.replace('_', ' ')} {value:g}" if axis != "seed" else f"seed {value}"
        for value in values
    ]


def table(images: Tensor, across: list[str], down: list[str]) -> Tensor:
    """The pictures in rows, with labels above and beside them: 1 h w 3 in 0..1.

    images   b h w 3, row by row
    across   labels of the columns
    down     labels of the rows
    """
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

    height, width = images.shape[1:3]
    factor = max(1, -(-SMALLEST // max(height, width)))
    height, width = factor * height, factor * width
    font = ImageFont.load_default(FONT)
    left = (
        0 if down == [""] else 2 * MARGIN + max(min(width, round(font.getlength(t))) for t in down)
    )
    top = 0 if across == [""] else 3 * FONT + 2 * MARGIN
    size = (left + len(across) * (width + MARGIN), top + len(down) * (height + MARGIN))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(across if top else ()):
        lines = wrapped(text, font, width, 3)
        place = (left + i * (width + MARGIN) + width // 2, top - MARGIN)
        draw.multiline_text(place, lines, "black", font, anchor="md", align="center")
    for i, text in enumerate(down if left else ()):
        lines = wrapped(text, font, left - 2 * MARGIN, 8)
        place = (MARGIN, top + i * (height + MARGIN) + height // 2)
        draw.multiline_text(place, lines, "black", font, anchor="lm")
    pixels = (images * 255).round().clamp(0, 255).byte().cpu().numpy()
    for i, picture in enumerate(pixels):
        cell = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        row, column = divmod(i, len(across))
        sheet.paste(cell, (left + column * (width + MARGIN), top + row * (height + MARGIN)))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255)[None]


def wrapped(text: str, font: Any, width: int, most: int) -> str:
    """A text in lines that fit a width, the last cut with … where there are too many.

    most   lines
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return "\n".join(lines)
