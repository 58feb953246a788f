"""T5's tokenizer: text to numbers of pieces, closed by </s>, and back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
BLANK = "\u2581"  # how pieces write a space


@contextmanager
def no_panic() -> Iterator[None]:
    """What the library's own code gives up on is a ValueError: its panics are no Exceptions of Python."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer cannot read this text: {error}") from None


class Tokenizer:
    """A `tokenizers.Tokenizer` and how many tokens of a text are kept."""

    def __init__(self, pieces: Any, max_length: int):
        """Wrap a tokenizer, its own padding and truncation turned off.

        pieces       tokenizers.Tokenizer that knows <pad> and </s>; ValueError where it does not
        max_length   tokens, </s> counted
        """
        pieces.no_padding()
        pieces.no_truncation()
        self.pieces = pieces
        self.max_length = max_length
        self.pad, self.end = (self._number(token) for token in (PAD, END))

    def __len__(self) -> int:
        return self.pieces.get_vocab_size()

    def _number(self, token: str) -> int:
        number = self.pieces.token_to_id(token)
        if number is None:
            raise ValueError(f"it has no {token}, so it is not T5's")
        return number

    def encode(self, text: str) -> list[int]:
        """Numbers of all pieces of a text, however long, and </s>.

        text   as it is to be read; nothing is lower-cased or stripped
        """
        with no_panic():
            return [*self.pieces.encode(text, add_special_tokens=False).ids, self.end]

    def cut(self, numbers: Sequence[int]) -> list[int]:
        """The first max_length numbers, the last of them </s>."""
        if len(numbers) <= self.max_length:
            return list(numbers)
        return [*numbers[: self.max_length - 1], self.end]

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of some pieces, without </s> and padding."""
        with no_panic():
            text = self.pieces.decode(list(numbers), skip_special_tokens=False)
        return text.replace(END, "").strip()

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Each piece as the vocabulary writes it, a space as ▁."""
        return [self.pieces.id_to_token(number) or UNKNOWN for number in numbers]


def unigram(pieces: Sequence[tuple[str, float]], charsmap: bytes | None) -> Any:
    """A `tokenizers.Tokenizer` of a SentencePiece vocabulary.

    pieces     piece and score, in the order of their numbers
    charsmap   SentencePiece's compiled normalisation; None = text is taken as it is
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Pieces

    names = [name for name, _ in pieces]
    if UNKNOWN not in names:
        raise ValueError(f"it has no {UNKNOWN}, so it is not T5's")
    tokenizer = Pieces(models.Unigram(list(pieces), names.index(UNKNOWN), False))
    compiled = [normalizers.Precompiled(charsmap)] if charsmap else []
    tokenizer.normalizer = normalizers.Sequence(
        [*compiled, normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), BLANK)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=BLANK, prepend_scheme="always")
    tokenizer.add_special_tokens([token for token in (PAD, END, UNKNOWN) if token in names])
    return tokenizer
