"""Train the judge of `imagen evaluate` on real drawings: pictures and captions in one space.

    python recipes/emoji/judge.py SPRITES_DIR OUT.safetensors [--second] [--minutes N]

SPRITES_DIR is what sprites.py wrote. Drawings that are held out of the cascade's training are held out of
the judge's; on them it prints how often it finds the right caption. --second makes one of another shape,
hash and seed, to be kept apart from whatever is chosen by the first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import compose
import numpy as np
import torch
import torch.nn.functional as F
from colours import COLOURS, GREYS
from compose import Scenes
from torch import Tensor

from imagen_nodes.imagen_core.evaluation.judge import Expert, Judge, JudgeConfig, save_expert
from imagen_nodes.imagen_core.evaluation.measures import ranks
from imagen_nodes.imagen_core.training.optim import lr_factor, make_optimizer

STYLES = ("noto", "fluent", "flat", "3d", "openmoji")
BATCH, OTHERS = 192, 1024  # pictures in a step, and captions beside their own
LR, WORDS_LR, WEIGHT_DECAY, LABEL_SMOOTHING = 1e-2, 2e-2, 0.05, 0.05
WARMUP_STEPS, DECAY = 30, 0.7
GROUND_SHARE, PLAIN_SHARE, BLUR_SHARE, HUE_SHARE = 0.25, 0.3, 0.15, 0.25
SCENES = 36  # pictures of a batch that are composed as the cascade's are
SCENE_KINDS = ("colour", "colour", "ground", "colour and ground", "place", "count", "count")
KEPT_FEATURES = 800
UNFLIPPED = ("symbols",)


class Drawings:
    """The drawings in memory, premultiplied, with their rows.

    rows     of sprites.json
    images   n 4 side side, uint8
    """

    def __init__(self, folder: Path):
        self.rows = json.loads((folder / "sprites.json").read_text("utf-8"))
        stored = np.load(folder / "sprites_64.npy", mmap_mode="r")
        x = torch.from_numpy(stored[[row["row"] for row in self.rows]]).permute(0, 3, 1, 2)
        self.images = x.contiguous()
        for part in self.images.split(512):
            part[:, :3] = (part[:, :3].float() * (part[:, 3:].float() / 255)).round()

    def where(self, *splits: str) -> list[int]:
        """The numbers of the drawings of these splits."""
        return [i for i, row in enumerate(self.rows) if row["split"] in splits]

    def unseen(self) -> list[int]:
        """The numbers of held-out drawings whose thing is drawn in other styles."""
        known = {row["name"] for row in self.rows if row["split"] == "train"}
        return [i for i in self.where("heldout") if self.rows[i]["name"] in known]

    def on_white(self, numbers: list[int]) -> Tensor:
        """Drawings as the cascade is shown them: n h w c in 0..1, side 64."""
        x = self.images[numbers].float() / 255
        return (x[:, :3] + 1 - x[:, 3:]).permute(0, 2, 3, 1).clamp(0, 1)


def varied(images: Tensor, flips: Tensor, hues: Tensor, rng: torch.Generator) -> Tensor:
    """Drawings moved, scaled, turned, recoloured a little and put on grounds: b 3 64 64 in [-1, 1].

    images   b 4 h w, uint8, premultiplied
    flips    b bool, which may be mirrored
    hues     b bool, which may have other colours
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=rng) * (high - low) + low

    zoom = uniform(0.92, 1.2) * torch.where(uniform(0, 1) < 0.15, uniform(1.2, 2.0), torch.ones(n))
    turn = uniform(-0.15, 0.15)
    mirror = torch.where(flips & (uniform(0, 1) < 0.5), -1.0, 1.0)
    room = (0.06 + 0.8 * (zoom - 1.1).clamp(min=0))[:, None]
    matrix = torch.stack(
        [zoom * mirror * turn.cos(), -zoom * turn.sin(), zoom * mirror * turn.sin(), zoom * turn.cos()],
        1,
    ).view(n, 2, 2)  # fmt: skip
    theta = torch.cat([matrix, (uniform(-1, 1, 2) * room)[..., None]], 2)
    grid = F.affine_grid(theta, [n, 4, 64, 64], align_corners=False)
    x = F.grid_sample(images.float() / 255, grid, align_corners=False)
    ground = torch.where(uniform(0, 1, 1) < GROUND_SHARE, uniform(0, 1, 3), torch.ones(n, 3))
    x = x[:, :3] + (1 - x[:, 3:]) * ground[..., None, None]
    x = turned_hues(
        x, torch.where(hues & (uniform(0, 1) < HUE_SHARE), uniform(0, 6.3), uniform(-0.1, 0.1))
    )
    gain, shift = uniform(0.85, 1.15, 3, 1, 1), uniform(-0.05, 0.05, 1, 1, 1)
    x = 1 - (1 - x) * gain + shift
    soft = torch.nonzero(uniform(0, 1) < BLUR_SHARE)[:, 0]
    x[soft] = F.avg_pool2d(F.pad(x[soft], (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(x.shape, generator=rng) * uniform(0, 0.04, 1, 1, 1)
    return (x + noise).clamp(0, 1) * 2 - 1


def turned_hues(x: Tensor, angles: Tensor) -> Tensor:
    """Pictures with their colours turned around the grey axis: b 3 h w.

    x        b 3 h w
    angles   b, radians
    """
    along = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    turn = cosine * torch.eye(3) + sine * across + (1 - cosine) * along
    return torch.einsum("bij,bjhw->bihw", turn, x)


def canonical(row: dict) -> str:
    """The caption by which a drawing is looked for."""
    return f"{row['name']}, {row['style']} style"


class Batches:
    """Batches of varied drawings with captions, each drawing once an epoch.

    drawings   all of them
    scenes     compositions of those that the cascade is trained on
    numbers    those that are trained on
    """

    def __init__(self, drawings: Drawings, scenes: Scenes, numbers: list[int], seed: int):
        self.drawings, self.scenes, self.numbers = drawings, scenes, numbers
        self.rng = torch.Generator().manual_seed(seed)
        self.picks = np.random.default_rng(seed)
        self.order: list[int] = []
        rows = drawings.rows
        self.names = sorted({row["name"] for row in rows})
        self.number_of = {name: i for i, name in enumerate(self.names)}
        self.flips = torch.tensor([row["group"] not in UNFLIPPED for row in rows])
        words = {*COLOURS, *GREYS, "white"}
        self.hues = torch.tensor([words.isdisjoint(row["name"].split()) for row in rows])

    def caption(self, row: dict) -> tuple[str, bool]:
        """One of a drawing's captions, and whether it tells the style."""
        texts, shares = zip(*row["captions"], strict=True)
        if self.picks.random() > PLAIN_SHARE:
            return canonical(row), True
        weights = np.array(shares)
        text = texts[self.picks.choice(len(texts), p=weights / weights.sum())]
        return text, "style" in text

    def scene(self) -> tuple[Tensor, dict]:
        """A composed picture of one thing, 3 64 64 in [-1, 1], and the row of its drawing."""
        scene = self.scenes.make[str(self.picks.choice(SCENE_KINDS))](self.picks)
        picture = torch.from_numpy(self.scenes.drawings.render(scene, 64).astype(np.float32))
        row = self.scenes.drawings.rows[scene.pieces[0].row]
        return picture.permute(2, 0, 1) / 127.5 - 1, row

    def draw(self) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """Pictures, captions (their own first), which captions are not wrong, and styles."""
        if len(self.order) < BATCH:
            self.order = self.picks.permutation(self.numbers).tolist()
        chosen, self.order = self.order[: BATCH - SCENES], self.order[BATCH - SCENES :]
        images = varied(
            self.drawings.images[chosen], self.flips[chosen], self.hues[chosen], self.rng
        )
        composed, pieces = zip(*(self.scene() for _ in range(SCENES)), strict=True)
        images = torch.cat([images, torch.stack(composed)])
        rows = [*(self.drawings.rows[i] for i in chosen), *pieces]
        own, told = zip(*(self.caption(row) for row in rows), strict=True)
        # No caption that is held out: as a rival alone it would be learned to be never right.
        others = [
            self.drawings.rows[i] for i in self.picks.choice(self.numbers, OTHERS, replace=False)
        ]
        all_names = torch.tensor([self.number_of[row["name"]] for row in [*rows, *others]])
        all_styles = torch.tensor([STYLES.index(row["style"]) for row in [*rows, *others]])
        name, style = all_names[: len(rows)], all_styles[: len(rows)]
        vague = ~torch.tensor(told)
        same_name = name[:, None] == all_names
        same_style = style[:, None] == all_styles
        caption_vague = torch.cat([vague, torch.zeros(OTHERS, dtype=torch.bool)])
        fits = same_name & (same_style | caption_vague | vague[:, None])
        return images, [*own, *map(canonical, others)], fits, style


def loss_of(judge: Judge, batch: tuple[Tensor, list[str], Tensor, Tensor]) -> Tensor:
    """Contrastive loss in both directions, and that of the styles."""
    images, captions, fits, style = batch
    with torch.autocast("cpu", torch.bfloat16):
        features = judge.trunk(images.contiguous(memory_format=torch.channels_last))
    seen = F.normalize(judge.to_image(features), dim=-1)
    read = judge.embed_captions(captions)
    logits = judge.log_scale.clamp(max=4.0).exp() * seen @ read.T
    n = torch.arange(len(images))
    wrong = fits.clone()
    wrong[n, n] = False  # others that fit as well are no negatives
    logits = logits.masked_fill(wrong, float("-inf"))
    return (
        F.cross_entropy(logits, n)
        + 0.5 * F.cross_entropy(logits[:, : len(n)].T, n)
        + F.cross_entropy(judge.to_style(features), style, label_smoothing=LABEL_SMOOTHING)
    )


@torch.inference_mode()
def found(judge: Judge, drawings: Drawings, numbers: list[int], captions: list[str]) -> dict:
    """How often the judge finds the right caption and style of real drawings."""
    rows = [drawings.rows[i] for i in numbers]
    looks = judge.look(drawings.on_white(numbers))
    place = {caption: i for i, caption in enumerate(captions)}
    right = torch.tensor([place[canonical(row)] for row in rows])
    rank = ranks(looks.embeddings @ judge.embed_captions(captions).T, right)
    style = torch.tensor([STYLES.index(row["style"]) for row in rows])
    told = looks.styles.argmax(1) == style
    return {
        "n": len(rows),
        "top1": round(float((rank < 1).float().mean()), 3),
        "top5": round(float((rank < 5).float().mean()), 3),
        "style": round(float(told.float().mean()), 3),
    }


def train(
    drawings: Drawings, scenes: Scenes, config: JudgeConfig, minutes: float, seed: int
) -> Judge:
    """A judge trained for so many minutes of processor time; its weights are a running average."""
    torch.manual_seed(seed)
    judge = Judge(config).to(memory_format=torch.channels_last)
    average = Judge(config).requires_grad_(False).eval()
    average.load_state_dict(judge.state_dict())
    batches = Batches(drawings, scenes, drawings.where("train", "other"), seed)
    judge.words.requires_grad_(False)  # a table of rows is no matrix for Muon
    optimizers = [
        make_optimizer(judge, "muon", LR, WEIGHT_DECAY),
        make_optimizer(judge.words.requires_grad_(True), "adamw", WORDS_LR, 0.0),
    ]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group["peak"] = group["lr"]
    captions = [canonical(row) for row in drawings.rows if row["split"] != "other"]
    start, step, shown = time.process_time(), 0, 0.0
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        for group in groups:
            group["lr"] = group["peak"] * lr_factor(step, done, WARMUP_STEPS, DECAY)
        loss = loss_of(judge, batches.draw())
        judge.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        decay = min(0.99, 1 - 1 / (1 + step / 4))
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), judge.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)
        if done - shown > 0.1:
            shown = done
            held = found(average, drawings, drawings.unseen(), captions)
            rate = step * BATCH / (time.process_time() - start)
            told = f"{done:.0%} step {step} loss {loss.item():.3f} {rate:.0f} pictures/s"
            print(told, held, flush=True)
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sprites", type=Path, help="folder that sprites.py wrote")
    parser.add_argument("out", type=Path, help="the judge's file")
    parser.add_argument("--second", action="store_true", help="the one that is kept apart")
    parser.add_argument("--minutes", type=float, default=8.0, help="of processor time")
    args = parser.parse_args()
    first = JudgeConfig(STYLES, (32, 64, 128, 176), 2, 3500, 96, 128)
    second = JudgeConfig(STYLES, (64, 128, 192), 4, 4500, 80, 96, "second ")
    drawings = Drawings(args.sprites)
    config, seed = (second, 11) if args.second else (first, 5)
    scenes = Scenes(compose.Drawings(args.sprites))
    judge = train(drawings, scenes, config, args.minutes, seed)
    captions = [canonical(row) for row in drawings.rows if row["split"] != "other"]
    known = drawings.where("train")
    for split, numbers in (("held out", drawings.unseen()), ("train", known)):
        print(split, found(judge, drawings, numbers, captions))
    rng = np.random.default_rng(0)
    sample = sorted(rng.choice(known, min(KEPT_FEATURES, len(known)), replace=False).tolist())
    features = judge.look(drawings.on_white(sample)).features
    save_expert(Expert(judge, tuple(dict.fromkeys(captions)), features), args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
