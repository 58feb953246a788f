"""Where a T5's tokenizer may lie, and how it is read: tokenizer.json, spiece.model, a GGUF header.

SentencePiece's own file is a protocol buffer, of which four fields matter; they are read here, so that
neither sentencepiece nor protobuf is needed.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..text.tokenizer import Tokenizer, no_panic, unigram
from ..weights.errors import CheckpointError
from ..weights.files import read_json, read_text

DEFAULT_LENGTH = 77  # tokens, DeepFloyd IF's
LONGEST = 256  # more than that, such as T5's own 512, is a length of pretraining
SPARE_ROWS = 256  # of a table of embeddings; T5's 32,100 pieces have 32,128
SPIECES = ("spiece.model", "tokenizer.model")
UNIGRAM = 1


def tokenizer_for(places: Iterable[Path], rows: int) -> Tokenizer:
    """The first tokenizer in some folders that fits a table of embeddings.

    places   folders, the likeliest first
    """
    misfits = []
    for folder in dict.fromkeys(places):
        if not has_tokenizer(folder):
            continue
        try:
            tokenizer = read_tokenizer(folder)
        except CheckpointError as error:
            misfits.append(str(error))
            continue
        if 0 <= rows - len(tokenizer) < SPARE_ROWS:
            return tokenizer
        misfits.append(f"{folder}: {len(tokenizer)} pieces, but the encoder knows {rows}")
    found = "; ".join(misfits[:4]) or "none found"
    raise CheckpointError(
        f"text_encoder: the file holds no tokenizer. Put T5's spiece.model or tokenizer.json beside it, "
        f"or in a folder next to it ({found})"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a file that `read_tokenizer` reads."""
    return any((folder / name).is_file() for name in ("tokenizer.json", *SPIECES))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, and the length that its tokenizer_config.json gives.

    folder   holds tokenizer.json, or spiece.model
    """
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            from tokenizers import Tokenizer as Pieces

            with no_panic():
                pieces = Pieces.from_str(read_text(path))
        else:
            path = next(folder / name for name in SPIECES if (folder / name).is_file())
            with no_panic():
                pieces = read_spiece(path.read_bytes())
        return Tokenizer(pieces, max_length(folder / "tokenizer_config.json"))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise CheckpointError(f"{path}: not a T5 tokenizer: {str(error) or error!r}") from error


def max_length(path: Path) -> int:
    """How many tokens an encoder is to be given.

    path   of a tokenizer_config.json, which need not be there
    """
    if not path.is_file():
        return DEFAULT_LENGTH
    length = read_json(path).get("model_max_length")
    if isinstance(length, (int, float)) and 1 < length <= LONGEST:
        return int(length)
    return DEFAULT_LENGTH


def from_gguf(metadata: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer in a GGUF file's header; None where there is none."""
    if metadata.get("tokenizer.ggml.model") != "t5":
        return None
    try:
        pieces = list(
            zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True)
        )
        charsmap = bytes(v & 255 for v in metadata.get("tokenizer.ggml.precompiled_charsmap", ()))
        with no_panic():
            return Tokenizer(unigram(pieces, charsmap), DEFAULT_LENGTH)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise CheckpointError(f"text_encoder: a damaged tokenizer in GGUF: {error!r}") from error


def read_spiece(data: bytes) -> Any:
    """A `tokenizers.Tokenizer` of SentencePiece's model file; ValueError where it is none.

    data   the file: field 1 of the message is a piece (1 its text, 2 its score), field 2 how it was
           trained (3 the kind), field 3 the normalisation (2 compiled)
    """
    pieces, charsmap = [], None
    for number, value in fields(data):
        if number == 1:
            piece = dict(fields(value))
            score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
            pieces.append((piece[1].decode("utf-8"), score))
        elif number == 2 and dict(fields(value)).get(3, UNIGRAM) != UNIGRAM:
            raise ValueError("expected a unigram vocabulary as T5 has, got another kind")
        elif number == 3:
            charsmap = dict(fields(value)).get(2)
    return unigram(pieces, charsmap)


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer's message.

    data   of the message; values are int (varint) or bytes
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise ValueError("not a protocol buffer: a number of more than 64 bits")
            if byte < 128:
                return value

    if not isinstance(data, bytes):
        raise ValueError("a message is expected, got a number")
    while position < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        lengths = {1: 8, 5: 4}
        if kind not in (1, 2, 5):
            raise ValueError(f"not a protocol buffer: field of kind {kind}")
        length = varint() if kind == 2 else lengths[kind]
        if position + length > len(data):
            raise ValueError("ends inside a field")
        yield key >> 3, data[position : position + length]
        position += length
