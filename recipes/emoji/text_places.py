"""Teach the text encoder where a prompt puts each thing: "a cat left of a tree".

    python recipes/emoji/text_places.py --data DATA_DIR --encoder TEXT_ENCODER --out OUT_DIR --minutes 10

What text_encoder.py makes says of each word what it means, and hardly which word came first: of a linear
probe's answers to "which of the two is on the left?" 53 % were right. A network that only attends to such
states cannot put two things in their places. Here the states of all texts stay what they were, but for the
words of a thing whose place the text tells: those move along one direction for left and right, along
another for top and bottom. DATA_DIR is what fetch.py brought.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from captions import with_article
from colours import COLOURS
from compose import PLACES as CENTRES
from text_corpus import gather
from text_encoder import STYLES, descend, save_student
from text_tokens import Tokens, build_tokenizer, tokenize
from torch import Tensor, nn

LEFT, RIGHT, TOP, BOTTOM, OPEN = (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)
Place = tuple[int, int]  # along x and y, each -1, 0 or 1
# Where the first thing is; the second one is opposite.
RELATIONS: dict[str, Place] = {
    "left of": LEFT,
    "to the left of": LEFT,
    "right of": RIGHT,
    "to the right of": RIGHT,
    "above": TOP,
    "over": TOP,
    "below": BOTTOM,
    "under": BOTTOM,
    "and": OPEN,
    "with": OPEN,
}
PLACES: dict[str, Place] = {
    words: ((x > 0.5) - (x < 0.5), (y > 0.5) - (y < 0.5)) for words, (x, y) in CENTRES.items()
}
TOLD = 0.6  # share of a batch's texts that tell a place
FAR = 0.5  # how far a state moves, in parts of the states' root mean square norm
Part = tuple[str, Place]


def opposite(place: Place) -> Place:
    """The place at the other side."""
    return -place[0], -place[1]


def phrase(nouns: Sequence[str], rng: random.Random) -> str:
    """A thing as prompts name it: "a fox", "a small purple fox"."""
    words = [rng.choice(nouns)]
    if rng.random() < 0.25:
        words.insert(0, rng.choice([*COLOURS]))
    if rng.random() < 0.2:
        words.insert(0, rng.choice(["small", "tiny", "big"]))
    return with_article(" ".join(words), "objects")


def told(nouns: Sequence[str], rng: random.Random) -> list[Part]:
    """A text in parts, each with the place that the text gives it."""
    first = phrase(nouns, rng)
    form = rng.random()
    if form < 0.6:
        relation = rng.choice([*RELATIONS])
        here = RELATIONS[relation]
        parts = [(first, here), (relation, OPEN), (phrase(nouns, rng), opposite(here))]
    elif form < 0.8:
        place = rng.choice([*PLACES])
        parts = [(first, PLACES[place]), (place, OPEN)]
    else:
        place, here = rng.choice([each for each in PLACES.items() if each[1] != OPEN])
        there = opposite(here)
        (other,) = (words for words, at in PLACES.items() if at == there)
        joined = f"{place}{rng.choice([' and', ','])}"
        parts = [(first, here), (joined, OPEN), (phrase(nouns, rng), there), (other, OPEN)]
    if rng.random() < 0.7:
        parts[-1] = (f"{parts[-1][0]},", parts[-1][1])
        parts.append((f"{rng.choice(STYLES)} style", OPEN))
    return parts


def places_of_words(parts: Sequence[Part]) -> list[Place]:
    """The place of each word of the joined parts."""
    return [place for text, place in parts for _ in text.split()]


def directions(states: Tensor) -> Tensor:
    """Two directions in which states hardly vary, at right angles: 2 d.

    states   n d
    """
    _, _, axes = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    length = states.square().sum(-1).mean().sqrt()
    return axes[-2:] * length * FAR


def moved(states: Tensor, words: Tensor, texts: Sequence[Sequence[Part]], axes: Tensor) -> Tensor:
    """The states that texts should have: those that they had, moved to their words' places.

    states   b n d, what the encoder made before
    words    b n, which word each token belongs to, -1 for none
    """
    at = torch.zeros(*words.shape, 2)
    for row, parts in enumerate(texts):
        places = torch.tensor([*places_of_words(parts), OPEN], dtype=torch.float32)
        at[row] = places[words[row]]  # -1, no word, is the last place: none
    return states + at @ axes


class Teaching:
    """The encoder that learns, the same as it was, and the texts of its batches."""

    def __init__(self, encoder: Path, nouns: Sequence[str], others: Sequence[str]):
        from transformers import T5EncoderModel

        self.t5 = T5EncoderModel.from_pretrained(encoder, dtype=torch.float32)
        self.before = T5EncoderModel.from_pretrained(encoder, dtype=torch.float32).eval()
        self.tokenizer = build_tokenizer(encoder / "spiece.model")
        self.nouns, self.others = nouns, others
        ids, mask, _ = self.tokens([[(text, OPEN)] for text in others[:2000]]).batch(
            torch.arange(min(2000, len(others)))
        )
        self.axes = directions(states_of(self.before, ids, mask)[mask])

    def tokens(self, texts: Sequence[Sequence[Part]]) -> Tokens:
        return tokenize(self.tokenizer, [" ".join(text for text, _ in parts) for parts in texts], 0)

    def draw(self, size: int, rng: random.Random) -> list[list[Part]]:
        return [
            told(self.nouns, rng) if rng.random() < TOLD else [(rng.choice(self.others), OPEN)]
            for _ in range(size)
        ]

    def error(self, texts: Sequence[Sequence[Part]]) -> Tensor:
        """Mean square distance of the states of real tokens from what they should be."""
        ids, mask, words = self.tokens(texts).batch(torch.arange(len(texts)))
        with torch.no_grad():
            wanted = moved(states_of(self.before, ids, mask), words, texts, self.axes)
        with torch.autocast("cpu", torch.bfloat16):
            states = states_of(self.t5, ids, mask)
        return (states.float() - wanted)[mask].square().mean()

    @torch.no_grad()
    def found(self, texts: Sequence[Sequence[Part]]) -> float:
        """Share of the words told a place whose states moved to its side."""
        ids, mask, words = self.tokens(texts).batch(torch.arange(len(texts)))
        before = states_of(self.before, ids, mask)
        wanted = (moved(before, words, texts, self.axes) - before) @ self.axes.T
        got = (states_of(self.t5, ids, mask) - before) @ self.axes.T
        at_a_side = wanted.abs() > 0.5 * self.axes[0].square().sum()
        return float((wanted.sign() == got.sign())[at_a_side].float().mean())


def states_of(t5: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """The states of a batch of tokens: b n d."""
    return t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state


def teach(teaching: Teaching, minutes: float, batch: int, peak: float) -> int:
    """Train until the time is used up; the number of steps."""
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(teaching.t5.parameters(), lr=peak, weight_decay=0.0)

    def losses() -> dict[str, Tensor]:
        return {"error": teaching.error(teaching.draw(batch, rng))}

    return descend(teaching.t5, optimizer, losses, minutes, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of fetch.py")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of text_encoder.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    corpus = [line for line in gather(args.data) if line[1].isascii()]
    names = sorted({text for kind, text in corpus if kind == "name" and "," not in text})
    nouns = [text for kind, text in corpus if kind == "noun" and text.count(" ") < 2]
    rng = random.Random(1)
    rng.shuffle(names)
    held, known = names[:100], names[100:]
    others = ["", *(text for kind, text in corpus if len(text.split()) < 9)]
    common = known * (1 + len(nouns) // len(known))
    teaching = Teaching(args.encoder, common + nouns, rng.sample(others, len(others)))
    steps = teach(teaching, args.minutes, args.batch, args.lr)
    texts = [told(held, rng) for _ in range(1000)]
    plain = [[(text, OPEN)] for text in others[:1000]]
    teaching.t5.eval()
    with torch.no_grad():
        kept = float(teaching.error(plain)) ** 0.5
    print(f"{steps} steps; of words of names not seen {teaching.found(texts):.1%} at their side;")
    print(f"states of other texts moved by {kept:.3f} rms")
    save_student(teaching.t5, args.encoder / "spiece.model", args.out)


if __name__ == "__main__":
    main()
