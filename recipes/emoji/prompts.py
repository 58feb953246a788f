"""Write the prompts that the emoji cascade is measured by, with real pictures of each.

    python recipes/emoji/prompts.py SPRITES_DIR OUT_DIR [--part N]

Writes OUT_DIR/prompts.jsonl; OUT_DIR/real, one real picture of each prompt, on which the measures are
validated; and OUT_DIR/reference, every training drawing, in which copies are looked for. SPRITES_DIR is
what sprites.py wrote. Then

    imagen evaluate --images OUT_DIR/real -o OUT_DIR/report_real
    imagen evaluate emoji --prompts OUT_DIR/prompts.jsonl --reference OUT_DIR/reference \\
        --beside OUT_DIR/report_real/report.json -o evaluation
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from captions import with_article
from colours import COLOURS, GREYS, ground
from compose import (
    CLASSES,
    COMPOSED_GROUPS,
    KIN,
    NUMBERS,
    Drawings,
    Piece,
    Scene,
    concepts,
    everyday,
    held_out,
    plural,
)

from imagen_nodes.imagen_core.evaluation.measures import spread
from imagen_nodes.imagen_core.evaluation.prompts import LINES, Prompt, write_folder, write_prompts

SIDE = 64
SEEDS = 8
CLASS_PROMPTS = (("an animal", None), ("a fruit", "flat"), ("a house", None))
COUNT_SIZES = {1: 0.6, 2: 0.47, 3: 0.4}
COUNT_CENTRES = {
    1: ((0.5, 0.5),),
    2: ((0.26, 0.5), (0.74, 0.5)),
    3: ((0.26, 0.7), (0.74, 0.7), (0.5, 0.28)),
}


@dataclass(frozen=True)
class Case:
    """A prompt and a scene that it describes."""

    prompt: Prompt
    scene: Scene


class Cases:
    """Cases of every set, drawn in a fixed order.

    drawings   of sprites.py
    part       cases of each composed set
    """

    def __init__(self, drawings: Drawings, part: int):
        self.drawings, self.part = drawings, part
        self.rng = np.random.default_rng(2205)
        self.train = [row for row in drawings.rows if row["split"] == "train"]
        self.things = [
            row
            for row in self.train
            if row["name"] in everyday() and row["group"] in COMPOSED_GROUPS
        ]

    def all(self) -> list[Case]:
        """The cases of every set."""
        known = {row["name"] for row in self.train}
        lost = [row for row in self.drawings.rows if row["split"] == "heldout"]
        cases = [self.plain(row, "held-out drawings") for row in lost if row["name"] in known]
        known_well = [row for row in self.train if row["name"] in concepts()]
        trained = self.rng.choice(
            len(known_well), min(2 * self.part, len(known_well)), replace=False
        )
        cases += [self.plain(known_well[i], "trained drawings") for i in sorted(trained)]
        for held, told in ((False, "trained"), (True, "held out")):
            cases += self.coloured(f"colours, {told}", held)
            cases += self.grounds(f"grounds, {told}", held)
        return cases + self.counts() + self.pairs() + self.classes()

    def plain(self, row: dict, of: str) -> Case:
        """A drawing by its name and style."""
        caption = f"{row['name']}, {row['style']} style"
        prompt = Prompt(caption, of, style=row["style"], thing=row["name"])
        return Case(prompt, Scene((Piece(row["row"]),), caption, "plain"))

    def some(self, rows: list[dict]) -> dict:
        """One of the rows."""
        return rows[int(self.rng.integers(len(rows)))]

    def pairs_of(
        self, what: str, words: list[str], rows: list[dict], held: bool
    ) -> list[tuple[dict, str]]:
        """Drawings with colours that are not theirs, held out or not, at most `part` of them."""
        fit = [
            (row, word)
            for row in rows
            for word in words
            if held_out(what, row["name"], word) == held
            and word != (row["colour"] or {}).get("name")
        ]
        chosen = self.rng.choice(len(fit), min(self.part, len(fit)), replace=False) if fit else []
        return [fit[i] for i in chosen]

    def coloured(self, of: str, held: bool) -> list[Case]:
        """Things in a colour that is not theirs."""
        rows, cases = [row for row in self.things if row["colour"]], []
        for row, word in self.pairs_of("colour", list(COLOURS), rows, held):
            thing = article(f"{word} {row['name']}")
            text = f"{thing}, {row['style']} style"
            prompt = told_of(row, text, of, colour=word)
            cases.append(Case(prompt, Scene((Piece(row["row"], colour=word),), text, "colour")))
        return cases

    def grounds(self, of: str, held: bool) -> list[Case]:
        """Things on a background."""
        cases = []
        for row, word in self.pairs_of("ground", [*COLOURS, *GREYS], self.things, held):
            text = f"{noun(row)} on a {word} background, {row['style']} style"
            red, green, blue = (int(v) for v in ground(word, self.rng.uniform(-1, 1, 3)))
            scene = Scene((Piece(row["row"], size=0.85),), text, "ground", (red, green, blue))
            cases.append(Case(told_of(row, text, of, ground=word), scene))
        return cases

    def counts(self) -> list[Case]:
        """One to three of a thing."""
        cases = []
        for i in range(self.part):
            row, count = self.some(self.things), i % 3 + 1
            name = row["name"] if count == 1 else plural(row["name"])
            text = f"{NUMBERS[count]} {name}, {row['style']} style"
            pieces = tuple(Piece(row["row"], c, COUNT_SIZES[count]) for c in COUNT_CENTRES[count])
            cases.append(
                Case(told_of(row, text, "counts", count=count), Scene(pieces, text, "count"))
            )
        return cases

    def pairs(self) -> list[Case]:
        """One thing left or right of another."""
        cases = []
        for i in range(self.part):
            first = self.some(self.things)
            others = [
                row
                for row in self.things
                if row["style"] == first["style"] and row["name"] != first["name"]
            ]
            second = self.some(others)
            relation = ("left of", "right of")[i % 2]
            text = f"{noun(first)} {relation} {noun(second)}, {first['style']} style"
            left, right = (first, second) if relation == "left of" else (second, first)
            prompt = Prompt(text, "left and right", caption="", style=first["style"],
                            left=left["name"], right=right["name"])  # fmt: skip
            pieces = Piece(left["row"], (0.26, 0.5), 0.46), Piece(right["row"], (0.74, 0.5), 0.46)
            cases.append(Case(prompt, Scene(pieces, text, "pair")))
        return cases

    def classes(self) -> list[Case]:
        """Prompts that leave the thing open, each with several seeds."""
        cases = []
        for word, style in CLASS_PROMPTS:
            rows = [
                row for row in self.train if word in words_of(row) and style in (None, row["style"])
            ]
            text = f"{word}, {style} style" if style else word
            chosen = [
                rows[i] for i in self.rng.choice(len(rows), min(64, len(rows)), replace=False)
            ]
            scenes = [Scene((Piece(row["row"]),), text, "class") for row in chosen]
            pictures = torch.stack([self.picture(scene) for scene in scenes])
            prompt = Prompt(
                text, "classes", caption="", style=style, apart=round(spread(pictures), 4)
            )
            cases += [Case(prompt, scenes[i % len(scenes)]) for i in range(SEEDS)]
        return cases

    def picture(self, scene: Scene) -> torch.Tensor:
        """A scene as the judges take it: h w c in 0..1."""
        return torch.from_numpy(self.drawings.render(scene, SIDE).astype(np.float32) / 255)


def told_of(row: dict, text: str, of: str, **facts: object) -> Prompt:
    """A prompt about one drawing, whose plain caption a judge should choose."""
    plain = f"{row['name']}, {row['style']} style"
    return Prompt(text, of, caption=plain, style=row["style"], thing=row["name"], **facts)


def words_of(row: dict) -> list[str]:
    """The class words that fit a drawing."""
    last = row["name"].split()[-1]
    return [*CLASSES.get(row["kind"], ()), *(word for key, word in KIN.items() if key == last)]


def noun(row: dict) -> str:
    """A drawing's name with its article."""
    return with_article(row["name"], row["group"])


def article(phrase: str) -> str:
    """A phrase with "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sprites", type=Path, help="folder that sprites.py wrote")
    parser.add_argument("out", type=Path, help="folder for the prompts and pictures")
    parser.add_argument("--part", type=int, default=24, help="prompts of each composed set")
    args = parser.parse_args()
    drawings = Drawings(args.sprites)
    cases = Cases(drawings, args.part)
    drawn = cases.all()
    unique: dict[str, Case] = {}
    for case in drawn:
        if case.prompt.set != "classes":
            unique.setdefault(case.prompt.prompt, case)
    drawn = [*unique.values(), *(case for case in drawn if case.prompt.set == "classes")]
    write_prompts([case.prompt for case in drawn], args.out / LINES)
    pictures = torch.stack([cases.picture(case.scene) for case in drawn])
    write_folder(args.out / "real", [case.prompt for case in drawn], pictures)
    known = [cases.plain(row, "reference") for row in cases.train]
    pictures = torch.stack([cases.picture(case.scene) for case in known])
    prompts = [replace(case.prompt, thing=None) for case in known]
    write_folder(args.out / "reference", prompts, pictures)
    counts: dict[str, int] = {}
    for case in drawn:
        counts[case.prompt.set] = counts.get(case.prompt.set, 0) + 1
    print(counts, len(drawn))


if __name__ == "__main__":
    main()
