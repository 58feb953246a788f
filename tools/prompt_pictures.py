"""Makes the pictures of docs/prompts.md with the bundled base, default settings: docs/prompts_NAME.png.

    python tools/prompt_pictures.py [NAME ...]

Names: weights, changes, parts, regions; without one, all.
"""

import sys
from pathlib import Path

import torch
from readme_grid import sheet

from imagen_nodes import imagen_core as core
from imagen_nodes.imagen_core import EncodedPrompt, TextEncoder

DOCS = Path(__file__).parent.parent / "docs"
ROWS = {
    "weights": [f"a (green:{w}) apple, noto style" for w in ("0", "0.5", "1", "1.5", "2", "3")],
    "changes": [f"[a pear:a red apple:{part}], noto style" for part in (0, 0.05, 0.1, 0.2, 0.4, 1)],
    "parts": [
        "a cat, flat style",
        "a house, flat style",
        "a cat BREAK a house, flat style",
        "a red apple",
        "on a blue background",
        "a red apple BREAK on a blue background",
    ],
}
PLACED = "a red apple on the left, noto style", "a taxi on the right, noto style"
PLAIN = "a red apple, noto style", "a taxi, noto style"
WHOLE = "a red apple left of a taxi, noto style"
SEEDS = range(6)


def halves(encoder: TextEncoder, left: str, right: str) -> EncodedPrompt:
    """One prompt for each half of the image."""
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1
    text, *regions = (encoder.encode_prompt(prompt) for prompt in (WHOLE, left, right))
    return text.with_region(regions[0], mask).with_region(regions[1], 1 - mask)


def main() -> None:
    cascade = core.load_cascade("emoji")
    encoder = cascade.text_encoder
    for name in sys.argv[1:] or [*ROWS, "regions"]:
        cells = [(encoder.encode_prompt(prompt), 0, prompt) for prompt in ROWS.get(name, [])]
        if name == "regions":
            placed, plain = halves(encoder, *PLACED), halves(encoder, *PLAIN)
            cells = [
                (encoder.encode_prompt(WHOLE), seed, f"{WHOLE[:-12]}, seed {seed}")
                for seed in SEEDS
            ]
            cells += [(placed, seed, f"two regions, seed {seed}") for seed in SEEDS]
            cells += [(plain, seed, f"without “on the left”, seed {seed}") for seed in SEEDS]
        made = [
            (core.sample_base(cascade.base, text, seed=seed)[0], label)
            for text, seed, label in cells
        ]
        path = DOCS / f"prompts_{name}.png"
        sheet(made, len(SEEDS)).quantize(192).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
