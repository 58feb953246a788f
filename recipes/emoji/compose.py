"""Pictures composed while training: scenes of one to three drawings, and the caption that says so.

A scene is drawn at any side from the same numbers, so that a base at 64 and an SR stage at 256 see one
world. What a caption leaves open (style, place, size, mirroring, ground) is drawn at random; a ground that
it does not name is white.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from captions import with_article
from colours import COLOURS, GREYS, ground, recolour
from PIL import Image

# How often a picture is of each kind.
KINDS = {
    "plain": 0.58,
    "class": 0.05,
    "colour": 0.10,
    "ground": 0.07,
    "colour and ground": 0.03,
    "place": 0.03,
    "count": 0.06,
    "pair": 0.08,
}
# How often a drawing of each group is drawn, for each of its concepts.
GROUP_WEIGHT = {
    "animals": 1.6,
    "food": 1.6,
    "travel": 1.0,
    "activities": 1.0,
    "objects": 1.0,
    "smileys": 0.7,
    "symbols": 0.25,
}
EVERYDAY = Path(__file__).with_name("everyday.txt")
CONCEPTS = Path(__file__).with_name("concepts.txt")
CONCEPT_WEIGHT = 6.0  # of the names in CONCEPTS
CLOCK_WEIGHT = 0.1  # of two dozen clock faces
COMPOSED_GROUPS = ("animals", "food", "travel", "activities", "objects")
# Words for a whole sub-group of emojibase, each a prompt that leaves the thing open.
CLASSES = {
    "animal-mammal": ("an animal", "a mammal"),
    "animal-bird": ("an animal", "a bird"),
    "animal-amphibian": ("an animal",),
    "animal-reptile": ("an animal", "a reptile"),
    "animal-marine": ("an animal", "a sea animal"),
    "animal-bug": ("an animal", "an insect"),
    "plant-flower": ("a plant", "a flower"),
    "plant-other": ("a plant",),
    "food-fruit": ("a fruit", "food"),
    "food-vegetable": ("a vegetable", "food"),
    "food-prepared": ("a meal", "food"),
    "food-asian": ("a meal", "food"),
    "food-sweet": ("a dessert", "food"),
    "drink": ("a drink",),
    "place-building": ("a building",),
    "transport-ground": ("a vehicle",),
    "transport-water": ("a boat", "a vehicle"),
    "transport-air": ("a flying vehicle", "a vehicle"),
    "sport": ("a sport",),
    "clothing": ("clothes",),
    "musical-instrument": ("a musical instrument",),
    "tool": ("a tool",),
    "face-smiling": ("a face", "a smiling face"),
    "face-concerned": ("a face", "a sad face"),
    "cat-face": ("a face",),
    "heart": ("a heart",),
}
# Names that are one of several of a kind: the kind's word is a caption of each.
KIN = {"house": "a house", "tree": "a tree", "heart": "a heart", "car": "a car", "train": "a train"}
NUMBERS = {1: "one", 2: "two", 3: "three"}
PLACES = {  # centre of the drawing, in parts of the side
    "on the left": (0.27, 0.5),
    "on the right": (0.73, 0.5),
    "at the top": (0.5, 0.27),
    "at the bottom": (0.5, 0.73),
    "in the middle": (0.5, 0.5),
}
RELATIONS = {"left of": 0.32, "right of": 0.32, "above": 0.1, "below": 0.1, "and": 0.16}
HELD_OUT_PART = 10  # one of so many (thing, colour) and (thing, ground) pairs is held out
WHITE = (255, 255, 255)
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Piece:
    """One drawing in a scene.

    row        of the drawings
    centre     x, y in parts of the scene's side
    size       side in parts of the scene's
    mirrored   left and right exchanged
    colour     word of COLOURS; None = the drawing's own
    """

    row: int
    centre: tuple[float, float] = (0.5, 0.5)
    size: float = 1.0
    mirrored: bool = False
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a picture shows: pieces on a ground (its RGB), what the caption says, and of which kind."""

    pieces: tuple[Piece, ...]
    caption: str
    kind: str
    ground: tuple[int, int, int] = WHITE
    facts: dict = field(default_factory=dict)


def held_out(what: str, name: str, colour: str) -> bool:
    """Whether a pair of a thing and a colour is one that no training sees.

    what   "colour" of the thing, or "ground" behind it
    """
    digest = hashlib.sha256(f"{what}/{name}/{colour}".encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 // HELD_OUT_PART


def held_out_pairs() -> list[tuple[str, str, str]]:
    """Every held-out pair of a name in CONCEPTS: what, name, colour (held_out_pairs.tsv lists them)."""
    grounds = (*COLOURS, *GREYS)
    return [
        (what, name, colour)
        for what, colours in (("colour", tuple(COLOURS)), ("ground", grounds))
        for name in sorted(concepts())
        for colour in colours
        if held_out(what, name, colour)
    ]


def plural(name: str) -> str:
    """More than one of a thing."""
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


class Drawings:
    """The drawings of sprites.py, smaller sides kept at hand."""

    def __init__(self, folder: Path):
        self.rows: list[dict] = json.loads((folder / "sprites.json").read_text("utf-8"))
        self.sides = {
            side: np.load(folder / f"sprites_{side}.npy", mmap_mode="r", allow_pickle=False)
            for side in (1024, 256, 128, 64)
            if (folder / f"sprites_{side}.npy").is_file()
        }

    def source(self, row: int, size: float) -> np.ndarray:
        """One drawing at the least side that is enough: side side 4, uint8."""
        large = self.rows[row].get("large")
        enough = [
            side for side in self.sides if side >= size and (side < 1024 or large is not None)
        ]
        side = min(enough) if enough else 256
        return np.asarray(self.sides[side][large if side == 1024 else row])

    def render(self, scene: Scene, side: int, window: Window | None = None) -> np.ndarray:
        """A scene as a picture, or a window of that picture: h w 3, uint8.

        side     of the whole picture
        window   left, top, width and height in its pixels; None = all of it
        """
        left, top, width, height = window or (0, 0, side, side)
        canvas = Image.new("RGBA", (width, height), scene.ground)
        for piece in scene.pieces:
            size = max(1, round(piece.size * side))
            x, y = (round(c * side - size / 2) for c in piece.centre)
            seen = _overlap(x - left, size, width), _overlap(y - top, size, height)
            if all(first < last for first, last in seen):
                self._put(canvas, piece, size, (x - left, y - top), seen)
        return np.asarray(canvas.convert("RGB"))

    def _put(
        self,
        canvas: Image.Image,
        piece: Piece,
        size: int,
        corner: tuple[int, int],
        seen: tuple[tuple[int, int], tuple[int, int]],
    ) -> None:
        """Lay a drawing over a picture.

        size     of the drawing in pixels
        corner   x, y of its first pixel
        seen     first and last pixel of the picture that it covers, in x and in y
        """
        source = self.source(piece.row, size)
        source = source[:, ::-1] if piece.mirrored else source
        scale = len(source) / size
        (x, x_end), (y, y_end) = seen
        left, top = corner
        box = (
            scale * (x - left),
            scale * (y - top),
            scale * (x_end - left),
            scale * (y_end - top),
        )
        image = Image.fromarray(np.ascontiguousarray(source))
        if scale != 1 or (x_end - x, y_end - y) != image.size:
            image = image.resize((x_end - x, y_end - y), Image.Resampling.HAMMING, box=box)
        if piece.colour is not None:
            dominant = self.rows[piece.row]["colour"]
            image = Image.fromarray(recolour(np.asarray(image), dominant, piece.colour))
        canvas.alpha_composite(image, (x, y))


def _overlap(first: int, size: int, side: int) -> tuple[int, int]:
    """What a piece that begins at `first` covers of a picture: its first pixel and the one after the last."""
    return max(0, first), min(side, first + size)


class Scenes:
    """Scenes drawn at random; a scene is a function of the generator's state alone."""

    def __init__(self, drawings: Drawings, split: str = "train", large: bool = False):
        """Choose among the drawings of a split, or only among those that are there at 1024."""
        self.drawings = drawings
        self.rows = [
            row
            for row in drawings.rows
            if row["split"] == split and (not large or row.get("large") is not None)
        ]
        weights = np.array([_weight(row) for row in self.rows])
        self.all = _Choice(self.rows, weights)
        composed = np.array([row["group"] in COMPOSED_GROUPS for row in self.rows])
        coloured = np.array([row["colour"] is not None for row in self.rows])
        classes = np.array([bool(_classes(row)) for row in self.rows])
        self.things = _Choice(self.rows, weights * composed)
        self.coloured = _Choice(self.rows, weights * composed * coloured)
        self.classes = _Choice(self.rows, weights * classes)
        self.styles = {
            style: _Choice(
                self.rows, weights * composed * np.array([r["style"] == style for r in self.rows])
            )
            for style in sorted({row["style"] for row in self.rows})
        }
        self.make = {
            "plain": self._plain,
            "class": self._class,
            "colour": self._colour,
            "ground": self._ground,
            "colour and ground": self._colour_and_ground,
            "place": self._place,
            "count": self._count,
            "pair": self._pair,
        }
        self.kinds = list(KINDS), np.cumsum(list(KINDS.values())) / sum(KINDS.values())

    def draw(self, rng: np.random.Generator) -> Scene:
        """One scene of any kind."""
        names, cdf = self.kinds
        kind = names[int(np.searchsorted(cdf, rng.random(), side="right"))]
        return replace(self.make[kind](rng), kind=kind)

    def _plain(self, rng: np.random.Generator) -> Scene:
        row = self.all.draw(rng)
        texts, shares = zip(*row["captions"], strict=True)
        caption = texts[int(np.searchsorted(np.cumsum(shares) / sum(shares), rng.random()))]
        return Scene((_whole(row, rng),), caption, "plain")

    def _class(self, rng: np.random.Generator) -> Scene:
        row = self.classes.draw(rng)
        caption = rng.choice(_classes(row))
        return Scene((_whole(row, rng),), _styled(str(caption), row, rng), "class")

    def _colour(self, rng: np.random.Generator) -> Scene:
        row, colour = self._pair_of("colour", self.coloured, tuple(COLOURS), rng)
        own = row["colour"]["name"] == colour and rng.random() < 0.5
        piece = replace(_whole(row, rng), colour=None if own else colour)
        caption = _styled(_article(f"{colour} {row['name']}"), row, rng)
        return Scene((piece,), caption, "colour", facts={"thing": row["name"], "colour": colour})

    def _ground(self, rng: np.random.Generator) -> Scene:
        row, colour = self._pair_of("ground", self.all, (*COLOURS, *GREYS), rng)
        caption = _styled(f"{_noun(row)} on a {colour} background", row, rng)
        piece = replace(_whole(row, rng), size=float(rng.uniform(0.72, 0.98)))
        facts = {"thing": row["name"], "ground": colour}
        return Scene((piece,), caption, "ground", _ground(colour, rng), facts)

    def _colour_and_ground(self, rng: np.random.Generator) -> Scene:
        while True:
            row, colour = self._pair_of("colour", self.coloured, tuple(COLOURS), rng)
            under = str(rng.choice([*COLOURS, *GREYS]))
            if under != colour and not held_out("ground", row["name"], under):
                break
        thing = _article(f"{colour} {row['name']}")
        caption = _styled(f"{thing} on a {under} background", row, rng)
        piece = replace(_whole(row, rng), size=float(rng.uniform(0.72, 0.95)), colour=colour)
        facts = {"thing": row["name"], "colour": colour, "ground": under}
        return Scene((piece,), caption, "colour and ground", _ground(under, rng), facts)

    def _place(self, rng: np.random.Generator) -> Scene:
        row = self.things.draw(rng)
        place = str(rng.choice(list(PLACES)))
        word = str(rng.choice(["", "small", "tiny"]))
        size = {"": rng.uniform(0.42, 0.55), "small": rng.uniform(0.34, 0.46)}.get(
            word, rng.uniform(0.24, 0.32)
        )
        x, y = PLACES[place]
        centre = (float(x + rng.uniform(-0.04, 0.04)), float(y + rng.uniform(-0.04, 0.04)))
        thing = _article(f"{word} {row['name']}") if word else _noun(row)
        piece = Piece(row["row"], centre, float(size), _may_mirror(row, rng))
        facts = {"thing": row["name"], "place": place}
        return Scene((piece,), _styled(f"{thing} {place}", row, rng), "place", facts=facts)

    def _count(self, rng: np.random.Generator) -> Scene:
        row = self.things.draw(rng)
        count = int(rng.integers(1, 4))
        size = {1: 0.6, 2: 0.45, 3: 0.4}[count] * float(rng.uniform(0.9, 1.0))
        mirrored = _may_mirror(row, rng)
        pieces = tuple(Piece(row["row"], c, size, mirrored) for c in _spread(count, rng))
        name = row["name"] if count == 1 else plural(row["name"])
        caption = _styled(f"{NUMBERS[count]} {name}", row, rng)
        return Scene(pieces, caption, "count", facts={"thing": row["name"], "count": count})

    def _pair(self, rng: np.random.Generator) -> Scene:
        first = self.things.draw(rng)
        second = self.styles[first["style"]].draw(rng)
        relation = str(rng.choice(list(RELATIONS), p=list(RELATIONS.values())))
        here, there = _two_places(relation, rng)
        sizes = rng.uniform(0.4, 0.47, 2)
        pieces = tuple(
            Piece(row["row"], place, float(size), _may_mirror(row, rng))
            for row, place, size in zip((first, second), (here, there), sizes, strict=True)
        )
        caption = _styled(f"{_noun(first)} {relation} {_noun(second)}", first, rng)
        facts = {"things": [first["name"], second["name"]], "relation": relation}
        return Scene(pieces, caption, "pair", facts=facts)

    def _pair_of(
        self, what: str, among: _Choice, colours: tuple[str, ...], rng: np.random.Generator
    ) -> tuple[dict, str]:
        """A drawing and a colour whose pair is not held out."""
        while True:
            row, colour = among.draw(rng), str(rng.choice(colours))
            if not held_out(what, row["name"], colour):
                return row, colour


class _Choice:
    """Weighted draws of rows."""

    def __init__(self, rows: list[dict], weights: np.ndarray):
        self.rows, self.cdf = rows, np.cumsum(weights) / weights.sum()

    def draw(self, rng: np.random.Generator) -> dict:
        index = int(np.searchsorted(self.cdf, rng.random(), side="right"))
        return self.rows[min(index, len(self.rows) - 1)]


def _weight(row: dict) -> float:
    weight = GROUP_WEIGHT[row["group"]]
    weight *= CONCEPT_WEIGHT if row["name"] in concepts() else 1
    return weight * (CLOCK_WEIGHT if re.search(r"o'clock|-thirty", row["name"]) else 1)


@cache
def concepts() -> frozenset[str]:
    """Names that most draws are of: everyday things, and what is held out in one style."""
    return frozenset(CONCEPTS.read_text("utf-8").splitlines())


@cache
def everyday() -> frozenset[str]:
    """Names of everyday things."""
    return frozenset(EVERYDAY.read_text("utf-8").split("\n"))


def _classes(row: dict) -> list[str]:
    words = list(CLASSES.get(row["kind"], ()))
    return words + [word for last, word in KIN.items() if row["name"].split()[-1] == last]


def _whole(row: dict, rng: np.random.Generator) -> Piece:
    """A drawing as it is, or a little smaller and aside."""
    mirrored = _may_mirror(row, rng)
    if rng.random() < 0.5:
        return Piece(row["row"], mirrored=mirrored)
    size = float(rng.uniform(0.8, 1.0))
    free = (1 - size) / 2
    x, y = (float(0.5 + rng.uniform(-free, free)) for _ in range(2))
    return Piece(row["row"], (x, y), size, mirrored)


def _may_mirror(row: dict, rng: np.random.Generator) -> bool:
    """Half of the drawings of animals, food and vehicles are mirrored; others may hold letters."""
    alike = row["group"] in ("animals", "food") or row["kind"].startswith("transport-")
    return bool(alike and rng.random() < 0.5)


def _noun(row: dict) -> str:
    return with_article(row["name"], row["group"])


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _styled(caption: str, row: dict, rng: np.random.Generator) -> str:
    """Six of seven captions name the style."""
    return f"{caption}, {row['style']} style" if rng.random() < 6 / 7 else caption


def _ground(colour: str, rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in ground(colour, rng.uniform(-1, 1, 3)))
    return red, green, blue


def _spread(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of so many drawings side by side, or three as a triangle."""
    if count == 1:
        centres = [(0.5, 0.5)]
    elif count == 2:
        centres = [(0.26, 0.5), (0.74, 0.5)]
    else:
        centres = [(0.26, 0.7), (0.74, 0.7), (0.5, 0.28)]
    moved = [[float(c + rng.uniform(-0.02, 0.02)) for c in centre] for centre in centres]
    return [(x, y) for x, y in moved]


def _two_places(
    relation: str, rng: np.random.Generator
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centres of the first and the second thing."""
    if relation == "and":
        relation = str(rng.choice([*RELATIONS][:-1]))
    near, far, middle = (float(v + rng.uniform(-0.03, 0.03)) for v in (0.26, 0.74, 0.5))
    return {
        "left of": ((near, middle), (far, middle)),
        "right of": ((far, middle), (near, middle)),
        "above": ((middle, near), (middle, far)),
        "below": ((middle, far), (middle, near)),
    }[relation]


if __name__ == "__main__":
    print(*("\t".join(pair) for pair in held_out_pairs()), sep="\n")
