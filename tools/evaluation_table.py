"""Writes the bundled base's figures into docs/evaluate.md and its model card, beside those of real images.

    python tools/evaluation_table.py REPORT.json

REPORT.json is what `imagen evaluate emoji --reference …` wrote with the bundled prompts and judges. Of two
figures with a stroke between them the first is the first judge's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from imagen_nodes.files import replacing
from imagen_nodes.imagen_core.evaluation.judge import bundled

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "docs/evaluate.md", ROOT / "imagen_core/pretrained/emoji/MODEL_CARD.md")
START, END = "<!-- figures -->\n", "<!-- /figures -->\n"
JUDGED = ("caption among five", "caption first", "style", "Frechet distance")
ROWS = {
    "held-out drawings": (*JUDGED, "copies"),
    "trained drawings": ("caption among five", "caption first", "style", "copies"),
    "colours, trained": ("colour", "caption among five"),
    "colours, held out": ("colour", "caption among five"),
    "grounds, trained": ("ground", "caption among five"),
    "grounds, held out": ("ground", "caption among five"),
    "counts": ("count", "caption among five"),
    "left and right": ("sides",),
}


def shown(figures: dict[str, Any], name: str) -> str:
    """A figure as a person reads it: both judges' where they judge, shares in per cent."""
    keys = (f"judge: {name}", f"second_judge: {name}") if name in JUDGED else (name,)
    if name == "Frechet distance":
        return " / ".join(f"{figures[key]:.1f}" for key in keys)
    return " / ".join(f"{100 * figures[key]:.0f}" for key in keys) + " %"


def table(real: dict[str, Any], ours: dict[str, Any]) -> str:
    """The rows of every set, in Markdown.

    real, ours   the `sets` of two reports
    """
    lines = ["| prompts | figure | real images | bundled base |", "|---|---|---|---|"]
    for name, figures in ROWS.items():
        for figure in figures:
            both = " | ".join(shown(report[name], figure) for report in (real, ours))
            lines.append(f"| {name} ({ours[name]['pictures']}) | {figure} | {both} |")
    for prompt, spread in real["classes"]["spread"].items():
        both = " | ".join(
            str(each["clearly different"]) for each in (spread, ours["classes"]["spread"][prompt])
        )
        lines.append(f"| {prompt} | clearly different of {spread['seeds']} seeds | {both} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    ours = json.loads(parser.parse_args().report.read_text("utf-8"))["sets"]
    real = json.loads(bundled("real.json").read_text("utf-8"))["sets"]
    rows = table(real, ours)
    for page in PAGES:
        before, _, rest = page.read_text("utf-8").partition(START)
        after = rest.partition(END)[2]
        with replacing(page) as temporary:
            temporary.write_text(before + START + rows + END + after, "utf-8")
    print(rows)


if __name__ == "__main__":
    main()
