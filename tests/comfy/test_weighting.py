"""Weights in prompts equal those of ComfyUI's own T5 encoders, for the same tokens and the same T5."""

PARITY = r"""
import comfy.sd1_clip
from types import SimpleNamespace

encoder = core.load_text_encoder(path / "imagen_core/pretrained/emoji/text_encoder")
own = encoder.tokenizer

class Theirs(comfy.sd1_clip.ClipTokenWeightEncoder):
    special_tokens = {"end": own.end, "pad": own.pad}

    def encode(self, rows):
        numbers = torch.tensor(rows)
        # Up to the first end: what follows is padding, as T5 with attention masks has it.
        mask = (numbers == own.end).cumsum(1) - (numbers == own.end).long() == 0
        with torch.no_grad():
            states = encoder.model(input_ids=numbers, attention_mask=mask)
        return states, None

tokenizer = object.__new__(comfy.sd1_clip.SDTokenizer)
tokenizer.__dict__.update(
    min_length=None, min_padding=None, disable_weights=False, embedding_identifier="embedding:",
    embedding_directory=None, embedding_key="t5", tokenizer_adds_end_token=True, tokens_start=0,
    start_token=None, end_token=own.end, pad_token=own.pad, pad_with_end=False, pad_left=False,
    max_word_length=8, max_length=own.max_length, pad_to_max_length=True,
    tokenizer=lambda text: {"input_ids": own.encode(text)},
)
worst, moved = 0.0, 0.0
for prompt in PROMPTS:
    theirs = Theirs().encode_token_weights(tokenizer.tokenize_with_weights(prompt))[0]
    ours = encoder.encode_prompt(prompt).text.embeds
    worst = max(worst, (theirs - ours).abs().max().item())
    moved = max(moved, (encoder.encode([prompt.lower()]).embeds - ours).abs().max().item())
told(worst=worst, moved=moved)
"""
PROMPTS = [
    "a red fox, flat style",
    "a (red:1.2) fox, flat style",
    "a ((purple)) fox on a (blue background:0.7), noto style",
    r"a \(round\) (house: 1.5) and (a (small:0.5) tree:1.3)",
    "(a castle:-0.5), 3d style",
]


def test_weighted_states_are_comfyuis(inside_comfy):
    got = inside_comfy(PARITY.replace("PROMPTS", repr(PROMPTS)))
    assert got["worst"] < 1e-5, got
    assert got["moved"] > 0.05
