"""The report as one self-contained HTML page: tables first, then every picture with what was found in it."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SHOWN = 64  # side of a picture on the page
AT_MOST = 400  # pictures of one set on the page
STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.grid { display: flex; flex-wrap: wrap; gap: 6px; }
figure { margin: 0; width: 100px; font-size: 10px; line-height: 1.25; }
figure img { width: 96px; height: 96px; image-rendering: pixelated; border: 2px solid #ccc; display: block; }
figure.right img { border-color: #2a9d4a; }
figure.wrong img { border-color: #d04a3a; }
small { color: #666; }
"""


def html_report(
    report: Mapping[str, Any], pictures: Tensor, beside: Mapping[str, Mapping[str, Any]]
) -> str:
    """The page.

    report     what `evaluate` gave, with `settings`
    pictures   n h w c in 0..1, one a row of the report
    beside     other reports by name, whose figures stand beside these
    """
    parts = ["<!doctype html><meta charset=utf-8><title>imagen evaluate</title>"]
    parts += [f"<style>{STYLE}</style><h1>imagen evaluate</h1>", settings_table(report["settings"])]
    members: dict[str, list[int]] = {}
    for i, row in enumerate(report["rows"]):
        members.setdefault(row["set"], []).append(i)
    for name, table in report["sets"].items():
        others = {key: other["sets"].get(name, {}) for key, other in beside.items()}
        parts += [f"<h2>{html.escape(name)}</h2>", figures_table(table, others)]
        parts += ["<div class=grid>"]
        parts += [figure(report["rows"][i], pictures[i]) for i in members[name][:AT_MOST]]
        parts += ["</div>"]
    return "\n".join(parts)


def settings_table(settings: Mapping[str, Any]) -> str:
    """What was measured, and how."""
    rows = (
        f"<tr><td>{html.escape(key)}<td>{html.escape(str(value))}"
        for key, value in settings.items()
    )
    return f"<table>{''.join(rows)}</table>"


def figures_table(table: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    """A set's figures, those of other reports beside them.

    table    of one set
    others   of the same set, by the report's name
    """
    head = "".join(f"<th>{html.escape(name)}" for name in ("", "here", *others))
    lines = [f"<tr>{head}"]
    for key, value in table.items():
        if key == "spread":
            continue
        cells = [value, *(other.get(key, "") for other in others.values())]
        lines.append(f"<tr><td>{html.escape(key)}" + "".join(f"<td>{cell}" for cell in cells))
    for prompt, spread in table.get("spread", {}).items():
        told = ", ".join(f"{key} {value}" for key, value in spread.items())
        cells = (other.get("spread", {}).get(prompt, {}) for other in others.values())
        beside = "".join(
            "<td>" + ", ".join(f"{key} {value}" for key, value in cell.items()) for cell in cells
        )
        lines.append(f"<tr><td>“{html.escape(prompt)}”<td>{told}{beside}")
    return f"<table>{''.join(lines)}</table>"


def figure(row: Mapping[str, Any], picture: Tensor) -> str:
    """One picture with its prompt and what was found; framed green where all of it is right, red where not.

    picture   h w c in 0..1
    """
    notes, verdicts = [], []
    for key, value in row.items():
        if isinstance(value, Mapping):  # a judge's
            if "rank" in value:
                verdicts.append(value["rank"] < 5)
                notes.append(f"{value['sees']} (#{value['rank'] + 1})")
            verdicts += [value["style_right"]] if "style_right" in value else []
        elif key.endswith("_right"):
            name = key.removesuffix("_right")
            verdicts.append(value)
            notes.append(f"{name}: {row.get(name, 'right' if value else 'wrong')}")
    if "nearest" in row:
        notes.append(f"nearest {row['nearest']:.3f}")
    frame = "" if not verdicts else " class=right" if all(verdicts) else " class=wrong"
    told = "<br>".join(f"<small>{html.escape(note)}</small>" for note in notes)
    return (
        f'<figure{frame}><img src="{data_url(picture)}" alt="">'
        f"{html.escape(row['prompt'])}<br>{told}</figure>"
    )


def data_url(picture: Tensor) -> str:
    """A picture as the address of an image that is in the address.

    picture   h w c in 0..1
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def text_table(sets: Mapping[str, Mapping[str, Any]], beside: Mapping[str, Any]) -> str:
    """The tables as text for a terminal.

    beside   other reports by name
    """
    lines = []
    for name, table in sets.items():
        lines.append(f"{name} ({table['pictures']})")
        others = {key: other["sets"].get(name, {}) for key, other in beside.items()}
        for key, value in table.items():
            if key in ("pictures", "spread"):
                continue
            told = "".join(f"   {other}: {its[key]}" for other, its in others.items() if key in its)
            lines.append(f"  {key:<36}{value:>9}{told}")
        for prompt, spread in table.get("spread", {}).items():
            told = ", ".join(f"{key} {value}" for key, value in spread.items())
            lines.append(f"  “{prompt}”: {told}")
    return "\n".join(lines)


def page_names(paths: Sequence[str]) -> list[str]:
    """Short names that differ, for files: the stem, or the folder's where stems are the same."""
    stems = [path.rsplit("/", 1)[-1].rsplit(".", 1)[0] for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [path.rsplit(".", 1)[0] for path in paths]
