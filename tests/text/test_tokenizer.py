"""The tokenizer: sentencepiece's own numbers, from its file, from tokenizer.json; cutting; misfits."""

import shutil

import pytest

from imagen_nodes.imagen_core.formats.cascade import BUNDLED
from imagen_nodes.imagen_core.formats.tokenizer import max_length, read_tokenizer, tokenizer_for
from imagen_nodes.imagen_core.weights.errors import CheckpointError

EMOJI = BUNDLED / "emoji" / "text_encoder"
TEXTS = [
    "a red apple, noto style",
    "Ünïcödé “quotes” ﬁne   spaces\tand\nlines",
    "emoji 🍎 — and 日本語",
    "",
    "x" * 50,
    "1024x768 50% r2d2 don't",
]


@pytest.fixture(scope="module")
def spiece_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiece")
    shutil.copy(EMOJI / "spiece.model", folder)
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_numbers_are_those_of_sentencepiece(spiece_folder, text):
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor(model_file=str(EMOJI / "spiece.model"))
    ours = read_tokenizer(spiece_folder)
    assert ours.encode(text) == [*theirs.encode(text), theirs.eos_id()]
    assert ours.pad == theirs.pad_id()
    if 2 not in ours.encode(text):  # <unk> is shown otherwise
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize("text", TEXTS)
def test_both_files_of_a_tokenizer_agree(spiece_folder, text):
    assert read_tokenizer(EMOJI).encode(text) == read_tokenizer(spiece_folder).encode(text)


def test_numbers_are_those_of_transformers():
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(EMOJI), read_tokenizer(EMOJI)
    for text in TEXTS:
        cut = theirs(text.strip(), truncation=True, max_length=ours.max_length).input_ids
        assert ours.cut(ours.encode(text.strip())) == cut


def test_lengths_of_pretraining_do_not_count(tmp_path):
    """T5's own 512 would not do for IF; a cascade's own length does."""
    path = tmp_path / "tokenizer_config.json"
    assert max_length(path) == 77
    for given, kept in ((512, 77), (1e30, 77), (32, 32), (256, 256), ("x", 77)):
        path.write_text(f'{{"model_max_length": {given!r}}}'.replace("'", '"'))
        assert max_length(path) == kept


def test_a_cut_text_ends_as_every_text_does(spiece_folder):
    tokenizer = read_tokenizer(spiece_folder)
    numbers = tokenizer.encode("a red apple and " * 40)
    cut = tokenizer.cut(numbers)
    assert len(cut) == 77
    assert cut[:-1] == numbers[:76]
    assert cut[-1] == tokenizer.end == numbers[-1]


@pytest.mark.parametrize(
    "data", [b"", b"\x0a", b"\x0a\x05abc", b"\xff" * 40, b"not a model at all"]
)
def test_a_damaged_vocabulary_is_named(tmp_path, data):
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(CheckpointError, match="spiece.model: not a T5 tokenizer"):
        read_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"Put T5's .*spiece.model: not a T5 tokenizer"):
        tokenizer_for([tmp_path], 100)


def test_a_vocabulary_that_does_not_fit_the_encoder_is_named(spiece_folder):
    assert tokenizer_for([spiece_folder], 8000)
    for rows in (7999, 32128):
        with pytest.raises(CheckpointError, match=f"8000 pieces, but the encoder knows {rows}"):
            tokenizer_for([spiece_folder], rows)


def test_both_files_of_a_tokenizer_agree_on_every_character(spiece_folder):
    """Pasted prompts hold control characters, joiners and byte-order marks."""
    fast, slow = read_tokenizer(EMOJI), read_tokenizer(spiece_folder)
    numbers = [
        *range(0x2FF),
        *range(0x1FFF, 0x2100),
        0x61C,
        0x3000,
        0xA7F2,
        *range(0xFE00, 0x10000),
    ]
    numbers += [0x107A5, 0x1F16C, 0x1FBF0, 0x1F600, 0xE0001, 0x10FFFD]
    texts = [f"a{chr(number)}red {chr(number)}" for number in numbers]
    assert [text for text in texts if fast.encode(text) != slow.encode(text)] == []


def test_a_pattern_that_the_library_gives_up_on_is_an_error_like_others(tmp_path):
    """Its panic is no Exception of Python: it went past every handler and ended the process."""
    from tokenizers import Regex, Tokenizer, normalizers

    pieces = Tokenizer.from_file(str(EMOJI / "tokenizer.json"))
    pieces.normalizer = normalizers.Replace(Regex("(x+x+)+y"), "b")
    pieces.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer cannot read this text: .*retry-limit"):
        tokenizer.encode("x" * 40)
