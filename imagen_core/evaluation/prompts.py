"""What is asked for: prompts with what their pictures must show, and folders of pictures with captions."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ...files import replacing
from ..formats.pictures import SUFFIXES, upright_rgb

SIDE = 64
LINES = "prompts.jsonl"


@dataclass(frozen=True)
class Prompt:
    """One prompt and what its picture must show; what is None is not measured.

    prompt    the text
    set       prompts of one set share a line of the tables
    seed      that its picture was made from
    caption   that a judge should choose for the picture; None = the prompt, "" = not measured
    style     one of the judge's styles
    thing     name of what is shown
    colour    word for the thing's colour
    ground    word for the background's colour
    count     how many things there are
    left      name of what is left of `right`
    right     name of what is right of `left`
    apart     mean distance between different real drawings of the class that the prompt names
    file      of its picture, relative to the file of prompts
    """

    prompt: str
    set: str = "prompts"
    seed: int = 0
    caption: str | None = None
    style: str | None = None
    thing: str | None = None
    colour: str | None = None
    ground: str | None = None
    count: int | None = None
    left: str | None = None
    right: str | None = None
    apart: float | None = None
    file: str | None = None

    @property
    def sought(self) -> str:
        """The caption that a judge should choose; "" = none."""
        return self.prompt if self.caption is None else self.caption

    def line(self) -> str:
        """The prompt as a line of JSON, without what is not told."""
        told = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(told, ensure_ascii=False)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: one a line as text, or in .jsonl one object a line; "seeds": n asks n times.

    path   of the file; a line that says something unknown raises ValueError that names it
    """
    lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    if path.suffix != ".jsonl":
        return [Prompt(line.strip()) for line in lines]
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            seeds = int(told.pop("seeds", 1))
            prompts += [Prompt(**told)] * seeds
        except (ValueError, TypeError, AttributeError) as error:
            known = ", ".join(field.name for field in fields(Prompt))
            raise ValueError(
                f"{path}, line {number}: expected an object with some of {known}, seeds, got "
                f"{line[:80]!r}: {error}"
            ) from error
    return prompts


def limited(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """The first prompts of each set.

    limit     of each set; None = all
    """
    counts: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        counts[prompt.set] = counts.get(prompt.set, 0) + 1
        if limit is None or counts[prompt.set] <= limit:
            kept.append(prompt)
    return kept


def write_prompts(prompts: Iterable[Prompt], path: Path) -> None:
    """Write prompts as one object a line.

    path      of the .jsonl file
    """
    with replacing(path) as temporary:
        temporary.write_text("".join(prompt.line() + "\n" for prompt in prompts), "utf-8")


def read_folder(folder: Path) -> tuple[list[Prompt], Tensor]:
    """Pictures with their captions: prompts, and b h w c in 0..1 with side 64.

    folder   holds prompts.jsonl whose lines name a `file` each; or pictures, each with its caption in a
             text file of the same name or, where there is none, as its own name
    """
    if (folder / LINES).is_file():
        prompts = read_prompts(folder / LINES)
        for prompt in prompts:
            if prompt.file is None or not (folder / prompt.file).is_file():
                raise ValueError(
                    f"{folder / LINES}: {prompt.prompt!r}: expected the `file` of an image, got "
                    f"{prompt.file!r}"
                )
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        prompts = [Prompt(caption_of(p), file=str(p.relative_to(folder))) for p in files]
    if not prompts:
        raise ValueError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found none")
    return prompts, torch.stack([read_picture(folder / str(prompt.file)) for prompt in prompts])


def caption_of(picture: Path) -> str:
    """The caption beside a picture, or its name with spaces.

    picture   its file
    """
    text = picture.with_suffix(".txt")
    if text.is_file():
        return text.read_text("utf-8").strip()
    return picture.stem.replace("_", " ").replace("-", " ")


def read_picture(path: Path) -> Tensor:
    """A picture upright on white at side 64, cropped to a square: h w 3 in 0..1."""
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = upright_rgb(opened)
    if image.size != (SIDE, SIDE):
        image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BOX if min(image.size) >= 2 * SIDE
                             else Image.Resampling.LANCZOS)  # fmt: skip
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def write_folder(folder: Path, prompts: list[Prompt], pictures: Tensor) -> list[Prompt]:
    """Write pictures and prompts as `read_folder` reads them; the prompts with the names of their files.

    folder     is made
    prompts    one a picture
    pictures   b h w c in 0..1
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    named = []
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        name = f"{i:04d}.png"
        levels = (picture * 255).round().to(torch.uint8).numpy()
        with replacing(folder / name) as temporary:
            Image.fromarray(levels).save(temporary, "PNG")
        named.append(replace(prompt, file=name))
    write_prompts(named, folder / LINES)
    return named
