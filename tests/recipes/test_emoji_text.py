import gzip
import random
import types

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sentencepiece")
pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

import text_corpus
import text_encoder as te
import text_places as places
import text_tokens as tk

WORDS = [
    "red",
    "green",
    "blue",
    "apple",
    "car",
    "dog",
    "cat",
    "style",
    "noto",
    "flat",
    "emoji",
    "picture",
    "face",
]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    out = tmp_path_factory.mktemp("spiece")
    texts = [f"a {a} {b}, {c} style" for a in WORDS for b in WORDS for c in WORDS[:4]]
    text_corpus.train_vocabulary([("name", text) for text in texts], out, size=36)
    return out / "spiece.model"


def test_synset_line():
    line = (
        '02086723 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 000 | a member of Canis; "woof"'
    )
    lemmas, gloss = text_corpus.parse_synset(line)
    assert lemmas == ["dog", "domestic dog", "canis familiaris"]
    assert gloss == "a member of canis"


def test_wordnet_texts_keep_nouns_apart_and_skip_the_licence():
    line = "00001 05 n 02 dog 0 hound 0 000 | an animal\n"
    texts = list(text_corpus.wordnet_texts(["  1 licence\n", line], "noun"))
    assert ("noun", "dog") in texts and ("noun", "hound") in texts
    assert ("gloss", "dog: an animal") in texts
    assert not any("licence" in text for _, text in texts)
    assert text_corpus.parse_synset("1 00 a 01 galore(ip) 0 000 | x")[0] == ["galore"]


def test_tokenizer_is_the_sentencepiece_model_with_an_end(spiece):
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    assert [sp.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    tokenizer = tk.build_tokenizer(spiece)
    for text in ("a red apple, noto style", "  A Red  CAR ", "", "cat, flat style"):
        assert tokenizer.encode(text).ids == [*sp.encode(text), 1]


def test_words_line_up_between_tokenizers(spiece):
    tokens = tk.tokenize(tk.build_tokenizer(spiece), ["red applecar dog", ""], pad_id=0)
    words = tokens.words[0][tokens.mask[0]].tolist()
    assert words[-1] == -1
    assert sorted(set(words[:-1])) == [0, 1, 2]
    assert words[:-1] == sorted(words[:-1])
    assert tokens.mask[1].sum() == 1 and tokens.ids[1, 0] == 1
    ids, mask, _ = tokens.batch(torch.tensor([1]))
    assert ids.shape == mask.shape == (1, 1)


def test_processes_tokenize_as_one_would(spiece, monkeypatch):
    monkeypatch.setattr(tk, "CHUNK", 3)
    tokenizer, texts = tk.build_tokenizer(spiece), [f"a {word} face" for word in WORDS]
    one, many = tk.tokenize(tokenizer, texts, 0), tk.tokenize_all(tokenizer, texts, 0, 1)
    assert torch.equal(one.ids, many.ids) and torch.equal(one.words, many.words)
    assert torch.equal(one.mask, many.mask)
    short = tk.tokenize_all(tokenizer, texts, 0, 1, length=3)
    assert short.mask.sum(1).max() == 3


def test_mean_of_words_averages_each_words_pieces():
    states = torch.tensor([[[1.0], [3.0], [5.0], [100.0]]])
    means, there = te.mean_of_words(states, torch.tensor([[0, 0, 2, -1]]), 3)
    assert means.flatten().tolist() == [2.0, 0.0, 5.0]
    assert there.tolist() == [[True, False, True]]


def test_mean_of_tokens_ignores_padding():
    states = torch.tensor([[[1.0], [3.0], [50.0]]])
    assert te.mean_of_tokens(states, torch.tensor([[True, True, False]])).item() == 2.0


def test_relational_loss_is_least_for_the_teachers_own_similarities():
    generator = torch.Generator().manual_seed(0)
    teacher = F.normalize(torch.randn(16, 8, generator=generator), dim=-1)
    turned = teacher @ torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    other = F.normalize(torch.randn(16, 8, generator=generator), dim=-1)
    least = te.relational_loss(teacher, teacher)
    torch.testing.assert_close(te.relational_loss(turned, teacher), least)
    assert te.relational_loss(other, teacher) > least + 0.1


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [te.learning_rate(p, 1.0) for p in (0, 0.02, 0.04, 0.52, 1)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)


def test_composed_phrases_repeat_with_the_seed():
    first = te.compose(["dog", "cat"], ["red apple"], 50)
    assert first == te.compose(["dog", "cat"], ["red apple"], 50)
    assert first != te.compose(["dog", "cat"], ["red apple"], 50, seed=1)
    assert not any("{" in text for text in first)


def test_batches_draw_every_kind_by_its_share():
    spans = {kind: (i * 100, i * 100 + 100) for i, kind in enumerate(te.SHARES)}
    rows = te.draw_rows(spans, 1000, torch.Generator().manual_seed(0))
    for i, share in enumerate(te.SHARES.values()):
        assert ((rows >= i * 100) & (rows < i * 100 + 100)).sum() == round(1000 * share)


def test_corpus_has_the_empty_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(te, "COMPOSED", 5)
    with gzip.open(tmp_path / "corpus.tsv.gz", "wt") as file:
        file.write("noun\tdog\nname\tred apple\ngloss\ta: b\n")
    corpus = te.read_corpus(tmp_path / "corpus.tsv.gz")
    assert corpus["name"] == ["red apple", ""]
    assert corpus["noun"] == ["dog"] and len(corpus["composed"]) == 5


@pytest.fixture
def tiny(monkeypatch):
    small = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
    monkeypatch.setattr(te, "T5_CONFIG", te.T5_CONFIG | small | {"num_heads": 2})
    torch.manual_seed(0)
    return te.Student(12)


def test_distillation_loss_falls(tiny, spiece):
    table = torch.randn(64, 12)
    tokens = tk.tokenize(tk.build_tokenizer(spiece), [f"a {w} style" for w in WORDS], pad_id=0)
    batch = tokens.batch(torch.arange(len(WORDS)))

    def teacher(input_ids, attention_mask):
        return types.SimpleNamespace(last_hidden_state=table[input_ids])

    optimizer = torch.optim.Adam(tiny.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = torch.stack(list(te.distillation_loss(tiny, teacher, batch, batch).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_saved_folder_loads_with_transformers(tiny, spiece, tmp_path):
    from transformers import AutoTokenizer, T5EncoderModel

    te.save_student(tiny.t5, spiece, tmp_path / "encoder")
    assert not (tmp_path / "encoder.part").exists()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    assert (tokenizer.model_max_length, tokenizer.pad_token_id, tokenizer.eos_token_id) == (
        32,
        0,
        1,
    )
    encoded = tokenizer(["A red apple", ""], padding=True, return_tensors="pt")
    assert encoded.attention_mask[1].tolist()[:2] == [1, 0]
    model = T5EncoderModel.from_pretrained(tmp_path / "encoder").float()
    ids, mask = encoded.input_ids, encoded.attention_mask
    torch.testing.assert_close(
        model(input_ids=ids, attention_mask=mask).last_hidden_state,
        tiny.float().states(ids, mask.bool()),
        atol=2e-2,
        rtol=2e-2,
    )


def test_told_texts_put_two_things_at_opposite_sides():
    rng = random.Random(0)
    sides = {
        "left": places.LEFT,
        "right": places.RIGHT,
        "above": places.TOP,
        "under": places.BOTTOM,
    }
    seen = set()
    for _ in range(300):
        parts = places.told(["fox", "tall tree"], rng)
        words = " ".join(text for text, _ in parts).replace(",", "").split()
        found = places.places_of_words(parts)
        assert len(found) == len(words)
        things = [place for text, place in parts if "fox" in text or "tree" in text]
        if len(things) == 2:
            assert things[0] == tuple(-v for v in things[1])
        first = next((word for word in words if word in sides), None)
        if first is not None:
            assert things[0] == sides[first], words
            seen.add(first)
    assert seen == set(sides)


def test_only_the_words_of_a_placed_thing_move():
    states = torch.randn(1, 7, 4)
    words = torch.tensor([[0, 1, 1, 2, 3, 4, -1]])
    axes = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]])
    text = [("a fox", places.LEFT), ("above", places.OPEN), ("a house", places.BOTTOM)]
    change = places.moved(states, words, [text], axes) - states
    left, none, below = [-1.0, 0, 0, 0], [0.0] * 4, [0, 2.0, 0, 0]
    wanted = torch.tensor([[left, left, left, none, below, below, none]])
    assert torch.allclose(change, wanted, atol=1e-6)


def test_directions_are_those_in_which_states_hardly_vary():
    spread = torch.tensor([5.0, 3.0, 0.01, 0.001])
    states = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * spread
    axes = places.directions(states)
    length = states.square().sum(-1).mean().sqrt() * places.FAR
    assert torch.allclose(axes.abs() / length, torch.eye(4)[2:], atol=0.05)


def test_an_encoder_learns_places_and_keeps_other_texts(spiece, tmp_path):
    encoder = tmp_path / "encoder"
    student = te.Student(8)
    te.save_student(student.t5, spiece, encoder)
    teaching = places.Teaching(encoder, ["cat", "dog"], ["red car", "blue apple"])
    rng = random.Random(0)
    texts = [places.told(["cat", "dog"], rng) for _ in range(6)]
    optimizer = torch.optim.AdamW(teaching.t5.parameters(), lr=1e-4)
    errors = []
    for _ in range(6):
        error = teaching.error(texts)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0], errors
    assert places.teach(teaching, 2e-3, 4, 1e-3) >= 1
    assert 0 <= teaching.found(texts) <= 1
