"""Make the emoji cascade's frozen text encoder: a small T5 that learns from a sentence encoder.

    python recipes/emoji/text_encoder.py --data BUNDLE_DIR --out OUT_DIR --device cuda --minutes 2

BUNDLE_DIR is what text_corpus.py wrote. The student (T5 v1.1, arXiv:1910.10683, gated GELU) meets
the teacher at three places: the mean of its token states is the sentence embedding, the means over
each word's pieces are the teacher's word states, and a batch has the teacher's similarities
(relational distillation, arXiv:1904.05068). So single token states are informative, not only their
mean. OUT_DIR becomes a Hugging Face folder that T5EncoderModel and AutoTokenizer load.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from text_tokens import (
    MAX_LENGTH,
    Tokens,
    build_tokenizer,
    tokenize,
    tokenize_all,
    write_tokenizer,
)
from torch import Tensor, nn

COMPOSED = 150_000
HELD_BACK = 2000
# How often training draws a text of each kind.
SHARES = {
    "caption": 0.25,
    "name": 0.05,
    "noun": 0.12,
    "lemma": 0.06,
    "gloss": 0.27,
    "composed": 0.25,
}
T5_CONFIG = {
    "vocab_size": 8000,
    "d_model": 256,
    "d_kv": 32,
    "d_ff": 704,
    "num_layers": 4,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 64,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
    "use_cache": False,
}
ADJECTIVES = [
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "golden",
    "silver",
    "big",
    "small",
    "tiny",
    "happy",
    "sad",
    "angry",
    "smiling",
    "sleepy",
    "old",
    "young",
    "cute",
    "scary",
    "shiny",
    "wooden",
    "round",
    "square",
    "striped",
    "broken",
    "flying",
    "burning",
    "frozen",
]
PATTERNS = (
    "{a} {n}",
    "a {a} {n}",
    "a {n}",
    "a {a} {a2} {n}",
    "{n} and {n2}",
    "a {a} {n} and a {a2} {n2}",
    "a {n} with a {n2}",
    "a {n} wearing a {n2}",
    "a {n} on a {n2}",
    "{k} {n}s",
    "an emoji of a {a} {n}",
    "a picture of a {n}",
    "{n}, {s} style",
    "a {a} {n}, {s} style",
    "a {n} with a {n2}, {s} style",
)
STYLES = ("noto", "fluent", "flat", "3d")
NUMBERS = ("two", "three", "four", "many")
QUERIES = ("puppy", "car", "aubergine", "soccer", "a sad cat", "something to eat", "german flag")


def compose(nouns: list[str], names: list[str], count: int, seed: int = 0) -> list[str]:
    """Phrases as people write prompts, from colours, nouns and emoji names."""
    rng = random.Random(seed)
    short = [noun for noun in nouns if noun.count(" ") < 2]

    def noun() -> str:
        return rng.choice(names if rng.random() < 0.5 else short)

    texts = []
    for _ in range(count):
        words = {"n": noun(), "n2": noun(), "a": rng.choice(ADJECTIVES)}
        words |= {"a2": rng.choice(ADJECTIVES), "s": rng.choice(STYLES), "k": rng.choice(NUMBERS)}
        texts.append(rng.choice(PATTERNS).format(**words))
    return texts


def read_corpus(path: Path) -> dict[str, list[str]]:
    """Texts by kind: those of corpus.tsv.gz, the empty prompt, and composed phrases."""
    corpus: dict[str, list[str]] = {kind: [] for kind in SHARES}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            kind, _, text = line.rstrip("\n").partition("\t")
            corpus[kind].append(text)
    nouns = [noun for noun in corpus["noun"] if noun.isascii()]
    names = [name for name in corpus["name"] if "," not in name]
    corpus["composed"] = compose(nouns, names, COMPOSED)
    corpus["name"] += [""]
    return corpus


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Mean state of the real tokens.

    states   b n d
    mask     b n, True = real
    returns  b d
    """
    weight = mask.to(states.dtype).unsqueeze(-1)
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)


def mean_of_words(states: Tensor, words: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean state of the pieces of each word.

    states   b n d
    words    b n, -1 = no word
    count    words kept of each text
    returns  b count d; b count, True where there is such a word
    """
    owner = (words.unsqueeze(1) == torch.arange(count, device=words.device)[:, None]).to(states)
    pieces = owner.sum(-1, keepdim=True)  # b count 1
    return owner @ states / pieces.clamp_min(1), pieces.squeeze(-1) > 0


class Student(nn.Module):
    """The T5 encoder and the two linear heads that exist only while it learns."""

    def __init__(self, teacher_dim: int):
        super().__init__()
        from transformers import T5Config, T5EncoderModel

        self.t5 = T5EncoderModel(T5Config(**T5_CONFIG))
        self.sentence = nn.Linear(T5_CONFIG["d_model"], teacher_dim)
        self.word = nn.Linear(T5_CONFIG["d_model"], teacher_dim)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(self.sentence(mean_of_tokens(self.states(ids, mask), mask)), dim=-1)


@torch.no_grad()
def start_from_teacher(student: Student, teacher, tokenizer, pieces: list[str]) -> None:
    """Token embeddings and sentence head as principal components of the teacher's view of each piece.

    pieces   the student's vocabulary, in order

    So the student starts as a bag of words that the teacher would understand, and learns the rest;
    the last matrices of its residual branches start small, so as not to hide that.
    """
    device = student.word.weight.device
    words = [piece.replace("\u2581", " ").strip() or "." for piece in pieces]
    tokens = tokenize(tokenizer, words, pad_id=0).to(str(device))

    def teach(ids: Tensor, mask: Tensor) -> Tensor:
        states = teacher(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return F.normalize(mean_of_tokens(states, mask), dim=-1)

    seen = embed_all(teach, tokens, torch.arange(len(words), device=device))
    mean = seen.mean(0)
    basis = torch.linalg.svd(seen - mean, full_matrices=False).Vh[: T5_CONFIG["d_model"]]
    embeddings = (seen - mean) @ basis.T
    rms = embeddings.square().mean().sqrt()
    student.t5.shared.weight.copy_(embeddings / rms)
    for head in (student.sentence, student.word):
        head.weight.copy_(basis.T * rms)
        head.bias.copy_(mean)
    for name, weight in student.t5.encoder.named_parameters():
        if name.endswith((".SelfAttention.o.weight", ".DenseReluDense.wo.weight")):
            weight.mul_(0.1)


def relational_loss(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """Cross-entropy between the two batches' similarities to each other, self excluded.

    student, teacher  b d, unit length
    """
    itself = torch.eye(len(student), dtype=torch.bool, device=student.device)
    target = (teacher @ teacher.T / temperature).masked_fill(itself, -1e4).softmax(-1)
    return F.cross_entropy((student @ student.T / temperature).masked_fill(itself, -1e4), target)


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """Each text's student embedding must find its own teacher embedding in the batch.

    student, teacher  b d, unit length
    """
    logits = student @ teacher.T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def distillation_loss(student: Student, teacher, ours: tuple, theirs: tuple) -> dict[str, Tensor]:
    """The parts of the loss for one batch; they are added with equal weight.

    ours, theirs  ids, mask, words of the same texts for the student and for the teacher
    """
    ids, mask, words = theirs
    with torch.no_grad():
        taught = teacher(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
    target = F.normalize(mean_of_tokens(taught, mask), dim=-1)
    count = int(max(words.max(), 0)) + 1
    taught_words, there = mean_of_words(taught, words, count)
    ids, mask, words = ours
    states = student.states(ids, mask)
    sentence = F.normalize(student.sentence(mean_of_tokens(states, mask)), dim=-1)
    ours_words, here = mean_of_words(states, words, count)
    both = there & here
    word_cosine = F.cosine_similarity(student.word(ours_words[both]), taught_words[both], dim=-1)
    return {
        "sentence": 4 * (1 - (sentence * target).sum(-1).mean()),
        "word": 2 * (1 - word_cosine.mean()),
        "relational": relational_loss(sentence, target) / 4,
        "contrastive": contrastive_loss(sentence, target) / 4,
    }


def draw_rows(spans: dict[str, tuple[int, int]], size: int, generator: torch.Generator) -> Tensor:
    """Row numbers of one batch: a fixed share of each kind of text, uniform within a kind."""
    rows = [
        torch.randint(start, end, (max(1, round(size * SHARES[kind])),), generator=generator)
        for kind, (start, end) in spans.items()
    ]
    return torch.cat(rows)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 4%, then a cosine down to zero.

    progress  share of the training time gone by, 0..1
    """
    if progress < 0.04:
        return peak * progress / 0.04
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.04) / 0.96)))


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    make_losses: Callable[[], dict[str, Tensor]],
    minutes: float,
    peak: float,
) -> int:
    """Train until the time is used up; the number of steps.

    make_losses   the parts of the loss of the next batch, by name
    peak          learning rate
    """
    start, step = time.perf_counter(), 0
    while (progress := (time.perf_counter() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, peak)
        parts = make_losses()
        optimizer.zero_grad(set_to_none=True)
        sum(parts.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            told = " ".join(f"{name} {value.item():.4f}" for name, value in parts.items())
            print(f"step {step} {progress:4.0%} {told}", flush=True)
        step += 1
    return step


def train(student: Student, teacher, ours: Tokens, theirs: Tokens, spans: dict, args) -> int:
    """Train until the time is used up and return the number of steps."""
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(args.seed)
    device = torch.device(args.device)

    def losses() -> dict[str, Tensor]:
        rows = draw_rows(spans, args.batch, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return distillation_loss(student, teacher, ours.batch(rows), theirs.batch(rows))

    return descend(student, optimizer, losses, args.minutes, args.lr)


@torch.no_grad()
def embed_all(embed, tokens: Tokens, rows: Tensor) -> Tensor:
    """Embeddings of many rows, in batches."""
    return torch.cat([embed(*tokens.batch(part)[:2]) for part in rows.split(1000)])


@torch.no_grad()
def evaluate(
    student: Student, teacher, ours: Tokens, theirs: Tokens, held: Tensor, names: tuple, texts
) -> None:
    """Print how well the student stands in for the teacher on texts held back from training.

    held   rows of the texts held back
    names  first and last row of the picture names that the queries look through
    """

    def teach(ids: Tensor, mask: Tensor) -> Tensor:
        states = teacher(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        return F.normalize(mean_of_tokens(states, mask), dim=-1)

    student.eval()
    ours_held, theirs_held = embed_all(student.embed, ours, held), embed_all(teach, theirs, held)
    found = (ours_held @ theirs_held.T).argmax(-1).cpu() == torch.arange(len(held))
    hide = 2 * torch.eye(len(held), device=ours_held.device)
    near = [(e @ e.T - hide).topk(10).indices for e in (ours_held, theirs_held)]
    overlap = (near[0].unsqueeze(-1) == near[1].unsqueeze(-2)).any(-1).float().mean()
    print(f"cosine to the teacher   {(ours_held * theirs_held).sum(-1).mean():.3f}")
    print(f"finds its own text      {found.float().mean():.3f} of {len(held)}")
    print(f"same ten neighbours     {overlap:.3f}")
    ids, mask, _ = ours.batch(held)
    states = student.states(ids, mask)[mask]
    print(
        f"token states            rms {states.square().mean().sqrt():.2f}, "
        f"largest {states.abs().max():.1f}, spread {states.std(0).mean():.2f}"
    )
    rows = torch.arange(*names, device=held.device)
    ours_names, theirs_names = embed_all(student.embed, ours, rows), embed_all(teach, theirs, rows)
    start = len(texts) - len(QUERIES)
    for row in range(start, len(texts)):
        query = torch.tensor([row], device=held.device)
        for who, embed, tokens, table in (
            ("student", student.embed, ours, ours_names),
            ("teacher", teach, theirs, theirs_names),
        ):
            best = (embed(*tokens.batch(query)[:2]) @ table.T)[0].topk(4).indices.tolist()
            print(f"{texts[row]:18s} {who}: " + "; ".join(texts[names[0] + i] for i in best))


def save_student(t5: Any, spiece: Path, out: Path) -> None:
    """Write the encoder in half precision, with its tokenizer, as a Hugging Face folder."""
    temporary = out.with_name(out.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    t5.half().save_pretrained(temporary)
    write_tokenizer(spiece, temporary)
    out.mkdir(parents=True, exist_ok=True)
    for path in temporary.iterdir():
        os.replace(path, out / path.name)
    temporary.rmdir()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of text_corpus.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=2.0, help="training time")
    parser.add_argument("--batch", type=int, default=3072)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=MAX_LENGTH, help="cut texts in training")
    parser.add_argument("--limit", type=int, help="only so many texts of each kind")
    return parser.parse_args()


def main() -> None:
    from tokenizers import Tokenizer
    from transformers import BertModel

    args = parse_arguments()
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    corpus = read_corpus(args.data / "corpus.tsv.gz")
    shuffled = random.Random(args.seed)
    texts, spans, held = [], {}, []
    for kind, members in corpus.items():
        members = shuffled.sample(members, min(args.limit or len(members), len(members)))
        back = 0 if kind == "name" else min(HELD_BACK // 5, len(members) // 10)
        held += range(len(texts), len(texts) + back)
        spans[kind] = (len(texts) + back, len(texts) + len(members))
        texts += members
    texts += QUERIES
    theirs_tokenizer = Tokenizer.from_file(str(args.data / "teacher" / "tokenizer.json"))
    ours_tokenizer = build_tokenizer(args.data / "spiece.model")
    theirs = tokenize_all(theirs_tokenizer, texts, 0, args.workers, args.length)
    ours = tokenize_all(ours_tokenizer, texts, 0, args.workers, args.length)
    theirs, ours = theirs.to(args.device), ours.to(args.device)
    precision = torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    teacher = BertModel.from_pretrained(args.data / "teacher", add_pooling_layer=False)
    teacher = teacher.to(args.device, precision).eval().requires_grad_(False)
    student = Student(teacher.config.hidden_size).to(args.device)
    pieces = build_tokenizer(args.data / "spiece.model")
    start_from_teacher(
        student,
        teacher,
        theirs_tokenizer,
        [pieces.id_to_token(i) or "" for i in range(T5_CONFIG["vocab_size"])],
    )
    size = sum(p.numel() for p in student.t5.parameters())
    print(
        f"{len(texts)} texts, {size / 1e6:.2f} M parameters, "
        f"ready after {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    steps = train(student, teacher, ours, theirs, spans, args)
    print(f"{steps} steps, {steps / (60 * args.minutes):.1f} a second")
    evaluate(
        student, teacher, ours, theirs, torch.tensor(held, device=args.device), spans["name"], texts
    )
    save_student(student.t5, args.data / "spiece.model", args.out)


if __name__ == "__main__":
    main()
