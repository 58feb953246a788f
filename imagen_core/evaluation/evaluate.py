"""Measure pictures against their prompts: by judges, by plain image analysis, by a reference."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..diffusion.guidance import Guidance
from ..diffusion.respacing import Spacing
from ..sampling import sample_base
from ..stage import Stage
from ..text.encoder import TextEncoder
from . import measures, scenes
from .judge import Expert, Looks
from .prompts import Prompt

COPY_RMS = 0.03  # a picture this near to a reference picture is a copy of it
APART_SHARE = (
    0.5  # of the distance between different drawings, over which two seeds are clearly different
)
FEWEST = 16  # pictures of which a kernel distance is measured
FEWEST_FRECHET = 40  # the Frechet distance of fewer says more of their number than of them


@dataclass(frozen=True)
class Reference:
    """Pictures that others are compared to.

    pictures   n 64 64 3 in 0..1, or uint8 in 0..255
    captions   one a picture
    """

    pictures: Tensor
    captions: tuple[str, ...]


@torch.no_grad()
def sample_prompts(
    stage: Stage,
    encoder: TextEncoder,
    prompts: Sequence[Prompt],
    *,
    guidance: Guidance | None = None,
    seed: int = 0,
    steps: Spacing | None = None,
    sampler: str | None = None,
    batch: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[list[Prompt], Tensor]:
    """A picture of each prompt, the i-th from seed + i: the prompts with their seeds, and n h w c in 0..1.

    prompts    at least one, read with their `(word:1.2)`, `[from:to:0.4]` and BREAK
    encoder    the text encoder that it was trained with
    guidance   None = the stage's default
    steps      None = the stage's default
    sampler    None = the stage's default
    batch      pictures in one evaluation of the network
    on_batch   called with the number of pictures that are done
    """
    if not prompts:
        raise ValueError("prompts: expected at least one, got none")
    pictures = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        pictures.append(
            sample_base(
                stage,
                encoder.encode_prompt([prompt.prompt for prompt in part]),
                guidance=guidance, batch_size=len(part), seed=seed + first, steps=steps,
                sampler=sampler,
            )
        )  # fmt: skip
        if on_batch is not None:
            on_batch(first + len(part))
    seeded = [replace(prompt, seed=seed + i) for i, prompt in enumerate(prompts)]
    return seeded, torch.cat(pictures)


def evaluate(
    prompts: Sequence[Prompt],
    pictures: Tensor,
    judges: Mapping[str, Expert],
    reference: Reference | None = None,
) -> dict[str, Any]:
    """The tables of a report: `sets`, what each set of prompts reaches, and `rows`, each picture's figures.

    prompts     one a picture
    pictures    n h w c in 0..1
    judges      by name; the first of them also tells left from right
    reference   training pictures, in which copies are looked for; None = copies are not measured
    """
    rows: list[dict[str, Any]] = [
        {"prompt": p.prompt, "set": p.set, "seed": p.seed} for p in prompts
    ]
    looks = {name: expert.judge.look(pictures) for name, expert in judges.items()}
    for name, expert in judges.items():
        for row, found in zip(rows, judged(expert, looks[name], prompts), strict=True):
            row[name] = found
    for row, prompt, picture in zip(rows, prompts, pictures, strict=True):
        row |= seen(prompt, picture)
    if judges:
        name, expert = next(iter(judges.items()))
        for row, found in zip(rows, sides(expert, prompts, pictures), strict=True):
            row |= found
    if reference is not None:
        distances, which = measures.nearest(pictures, reference.pictures)
        for row, distance, index in zip(rows, distances.tolist(), which.tolist(), strict=True):
            row |= {"nearest": round(distance, 4), "nearest_caption": reference.captions[index]}
    members: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        members[prompt.set].append(i)
    sets = {
        name: summary([rows[i] for i in numbers], list(judges))
        | distances_of(judges, looks, numbers)
        | seeds_of([prompts[i] for i in numbers], pictures[numbers])
        for name, numbers in members.items()
    }
    return {"sets": sets, "rows": rows}


def judged(expert: Expert, looks: Looks, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """A judge's word on each picture: the rank of its caption (0 = first) and the style.

    looks     at the pictures
    prompts   one a picture
    """
    captions = list(dict.fromkeys([*expert.captions, *(p.sought for p in prompts if p.sought)]))
    place = {caption: i for i, caption in enumerate(captions)}
    known = len(expert.captions)
    with torch.inference_mode():
        scores = looks.embeddings @ expert.judge.embed_captions(captions).T
    styles = [expert.judge.config.styles[i] for i in looks.styles.argmax(1).tolist()]
    found: list[dict[str, Any]] = []
    for row, (prompt, style) in enumerate(zip(prompts, styles, strict=True)):
        entry: dict[str, Any] = {"style": style}
        if prompt.style is not None:
            entry["style_right"] = style == prompt.style
        if prompt.sought:
            # Among the judge's captions; those of other prompts are no rivals.
            own = scores[row, place[prompt.sought]]
            rivals = scores[row, :known]
            entry["rank"] = int((rivals > own).sum())
            entry["sees"] = captions[int(rivals.argmax())]
        found.append(entry)
    return found


def seen(prompt: Prompt, picture: Tensor) -> dict[str, Any]:
    """What image analysis reads off a picture, and whether it is what the prompt says.

    prompt    says what is looked for
    picture   h w c in 0..1
    """
    readers = {
        "colour": scenes.thing_colour,
        "ground": scenes.ground_colour,
        "count": scenes.count_things,
    }
    found = {}
    for name, read in readers.items():
        wanted = getattr(prompt, name)
        if wanted is not None:
            value = read(picture)
            found |= {name: value, f"{name}_right": value == wanted}
    return found


def sides(expert: Expert, prompts: Sequence[Prompt], pictures: Tensor) -> list[dict[str, Any]]:
    """Whether the judge rather sees two things on their sides than on each other's.

    prompts    those with `left` and `right` are looked at
    pictures   n h w c in 0..1
    """
    found: list[dict[str, Any]] = [{} for _ in prompts]
    asked = [i for i, p in enumerate(prompts) if p.left is not None and p.right is not None]
    if not asked:
        return found
    halves = torch.cat([half_of(pictures[asked], side) for side in ("left", "right")])
    names = [str(prompts[i].left) for i in asked] + [str(prompts[i].right) for i in asked]
    with torch.inference_mode():
        words = expert.judge.embed_captions(names)
    seen_left, seen_right = expert.judge.look(halves).embeddings.split(len(asked))
    left, right = words.split(len(asked))
    as_told = (seen_left * left).sum(1) + (seen_right * right).sum(1)
    exchanged = (seen_left * right).sum(1) + (seen_right * left).sum(1)
    for i, better in zip(asked, (as_told > exchanged).tolist(), strict=True):
        found[i] = {"sides_right": better}
    return found


def half_of(pictures: Tensor, side: str) -> Tensor:
    """The left or right half of pictures, half as high: n h/2 w/2 c, from the middle rows.

    pictures   n h w c
    """
    height, width = pictures.shape[1:3]
    rows = slice(height // 4, height // 4 + height // 2)
    return (
        pictures[:, rows, : width // 2]
        if side == "left"
        else pictures[:, rows, width - width // 2 :]
    )


def summary(rows: Sequence[dict[str, Any]], judges: Sequence[str]) -> dict[str, Any]:
    """Shares of one set: of right captions, styles, colours and so on, and of copies.

    judges   their names in the rows
    """
    table: dict[str, Any] = {"pictures": len(rows)}
    for name in judges:
        ranks = [row[name]["rank"] for row in rows if "rank" in row[name]]
        if ranks:
            table[f"{name}: caption first"] = share([rank < 1 for rank in ranks])
            table[f"{name}: caption among five"] = share([rank < 5 for rank in ranks])
        styles = [row[name]["style_right"] for row in rows if "style_right" in row[name]]
        if styles:
            table[f"{name}: style"] = share(styles)
    for name in ("colour", "ground", "count", "sides"):
        right = [row[f"{name}_right"] for row in rows if f"{name}_right" in row]
        if right:
            table[name] = share(right)
    near = [row["nearest"] for row in rows if "nearest" in row]
    if near:
        table["copies"] = share([distance < COPY_RMS for distance in near])
        table["nearest rms"] = round(sum(near) / len(near), 4)
    return table


def share(right: Sequence[bool]) -> float:
    """The share of what is right, three decimals.

    right   at least one
    """
    return round(sum(right) / len(right), 3)


def distances_of(
    judges: Mapping[str, Expert], looks: Mapping[str, Looks], numbers: Sequence[int]
) -> dict[str, float]:
    """Frechet and kernel distance of a set's pictures to each judge's reference.

    looks     at all pictures, by judge
    numbers   of the set's pictures
    """
    table: dict[str, float] = {}
    if len(numbers) < FEWEST:
        return table
    for name, expert in judges.items():
        features = looks[name].features[list(numbers)]
        if len(numbers) >= FEWEST_FRECHET:
            mine, theirs = measures.moments(features), measures.moments(expert.features)
            table[f"{name}: Frechet distance"] = round(measures.frechet_distance(*mine, *theirs), 2)
        table[f"{name}: kernel distance"] = round(
            measures.kernel_distance(features, expert.features), 4
        )
    return table


def seeds_of(prompts: Sequence[Prompt], pictures: Tensor) -> dict[str, Any]:
    """How far the pictures of one prompt are from each other, for each prompt that has several.

    pictures   n h w c in 0..1
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        members[prompt.prompt].append(i)
    spreads = {}
    for text, numbers in members.items():
        if len(numbers) < 2:
            continue
        spreads[text] = {
            "seeds": len(numbers),
            "spread": round(measures.spread(pictures[numbers]), 4),
        }
        apart = prompts[numbers[0]].apart
        if apart is not None:
            different = measures.distinct(pictures[numbers], APART_SHARE * apart)
            spreads[text] |= {"class": apart, "clearly different": different}
    return {"spread": spreads} if spreads else {}
