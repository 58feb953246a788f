"""Makes docs/guidance_sweep.svg and .json: guidance scale against threshold, as in Imagen's figure A.9.

    python tools/guidance_sweep.py [CASCADE] [--base FILE] [--limit N] [--scales 1 2 4 …]

Each point is the base's pictures of the held-out and trained drawings' names at one scale: how often the
first judge finds the caption among five, and the Frechet distance to real drawings; a curve a threshold.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagen_nodes import imagen_core as core
from imagen_nodes.files import replacing
from imagen_nodes.imagen_core.evaluation.evaluate import evaluate, sample_prompts
from imagen_nodes.imagen_core.evaluation.judge import Expert, bundled, bundled_judges, load_expert
from imagen_nodes.imagen_core.evaluation.prompts import Prompt, read_prompts

OUT = Path(__file__).parent.parent / "docs" / "guidance_sweep"
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
THRESHOLDS = ("static", "dynamic")
SETS = ("held-out drawings", "trained drawings")


def point(
    stage: core.Stage, encoder: core.TextEncoder, prompts: list[Prompt], expert: Expert,
    guidance: core.Guidance,
) -> dict[str, Any]:  # fmt: skip
    """The figures of one scale and threshold."""
    prompts, pictures = sample_prompts(stage, encoder, prompts, guidance=guidance)
    table = evaluate(prompts, pictures, {"judge": expert})["sets"]["all"]
    return {
        "threshold": guidance.threshold,
        "scale": guidance.guidance_scale,
        "caption among five": table["judge: caption among five"],
        "style": table["judge: style"],
        "Frechet distance": table["judge: Frechet distance"],
    }


def plot(points: list[dict[str, Any]], out: Path) -> None:
    """The curves as an SVG: a point a scale, its scale beside it."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "guidance"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for threshold in THRESHOLDS:
        own = [p for p in points if p["threshold"] == threshold]
        x = [100 * p["caption among five"] for p in own]
        y = [p["Frechet distance"] for p in own]
        axes.plot(x, y, marker="o", label=f"{threshold} threshold")
        for p, left, up in zip(own, x, y, strict=True):
            axes.annotate(f"{p['scale']:g}", (left, up), (4, 4), textcoords="offset points", size=8)
    axes.set_xlabel("caption among the judge's first five, %  (right is better)")
    axes.set_ylabel("Frechet distance to real drawings  (down is better)")
    axes.set_title("Guidance scale, written beside each point")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(out) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cascade", nargs="?", default="emoji")
    parser.add_argument("--base", type=Path, help="a stage file in place of the cascade's base")
    parser.add_argument("--limit", type=int, default=96, help="prompts of each set")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--out", type=Path, default=OUT, help="without its ending")
    options = parser.parse_args()
    cascade = core.load_cascade(options.cascade)
    stage = cascade.base if options.base is None else core.load_stage(options.base)
    expert = load_expert(bundled_judges()[0])
    prompts = [
        replace(prompt, set="all")
        for name in SETS
        for prompt in [p for p in read_prompts(bundled("prompts.jsonl")) if p.set == name][
            : options.limit
        ]
    ]
    points = []
    for threshold in THRESHOLDS:
        for scale in options.scales:
            guidance = core.Guidance(scale, threshold)
            points.append(point(stage, cascade.text_encoder, prompts, expert, guidance))
            print(points[-1], flush=True)
    with replacing(options.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(points, indent=1) + "\n", "utf-8")
    plot(points, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
