"""Writes docs/architecture.svg: the packages, and an arrow where one imports another.

    python tools/architecture.py

An arrow that others imply is left out: where a imports b and c, and b imports c, only a -> b -> c is drawn.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "architecture.svg"
PACKAGES = ("cli", "nodes", "headless", "imagen_core")
WIDTH, HEIGHT, BOX = 1000, 982, 62


class Box(NamedTuple):
    """One box of the drawing.

    title, about   the words in it
    modules        dotted names; each stands for all below it that no longer name claims
    x, y, width    pixels
    """

    title: str
    about: str
    modules: tuple[str, ...]
    x: int
    y: int
    width: int


BOXES = [
    Box("cli/", "the command imagen: one file a command", ("cli",), 40, 24, 920),
    Box("jobs/", "one run a line", ("headless.jobs",), 40, 172, 140),
    Box("remote.py", "on a server", ("headless.remote",), 204, 172, 140),
    Box("engine/", "check, run, cache", ("headless.engine",), 40, 272, 140),
    Box("comfy_nodes/", "Load Image, …", ("headless.comfy_nodes",), 204, 272, 140),
    Box(
        "formats/", "UI, API, PNG",
        ("headless.formats", "headless.inputs", "headless.object_info"), 40, 372, 140,
    ),
    Box("graph.py, registry.py", "nodes and links; the known classes", ("headless",), 40, 472, 304),
    Box("*.py", "a schema and a method each", ("nodes",), 392, 172, 228),
    Box("host/", "all that touches ComfyUI", ("nodes.host",), 392, 272, 228),
    Box("__init__.py", "public names", ("imagen_core",), 668, 172, 140),
    Box(
        "training/", "and evaluation/",
        ("imagen_core.training", "imagen_core.evaluation"), 824, 172, 136,
    ),
    Box(
        "formats/", "stage, cascade, T5, DeepFloyd IF",
        ("imagen_core.formats",), 668, 272, 292,
    ),
    Box(
        "sampling, stage, cascade .py", "text to 64, 64 to 256, 256 to 1024",
        (
            "imagen_core.cascade", "imagen_core.checks", "imagen_core.lora", "imagen_core.memory",
            "imagen_core.offload", "imagen_core.peak", "imagen_core.sampling", "imagen_core.settings",
            "imagen_core.stage",
        ), 668, 372, 292,
    ),
    Box(
        "diffusion/", "schedules, samplers, guidance, tiles",
        ("imagen_core.diffusion",), 668, 472, 292,
    ),
    Box("unet/", "the networks", ("imagen_core.unet",), 668, 572, 292),
    Box(
        "text/", "prompt to states", ("imagen_core.text", "imagen_core.tensor_checks"), 668, 672, 140,
    ),
    Box("kernels/", "fast paths", ("imagen_core.kernels",), 824, 672, 136),
    Box("weights/", "how files hold tensors", ("imagen_core.weights",), 668, 772, 292),
    Box("files.py", "files whole or not at all", ("files",), 392, 896, 228),
]  # fmt: skip
# Title, x, y, width, height of what lies behind the boxes.
GROUPS = [
    ("headless/  runs workflows without ComfyUI", 24, 156, 336, 418),
    ("nodes/  what ComfyUI shows", 376, 156, 260, 218),
    ("imagen_core/  the tensor library", 652, 156, 324, 718),
]
LIGHT = dict(
    ground="#ffffff", group="#f1f3f6", box="#ffffff", line="#57606a", text="#1f2328", soft="#57606a"
)
DARK = dict(
    ground="#0d1117", group="#161b22", box="#21262d", line="#8b949e", text="#e6edf3", soft="#9da7b1"
)
COLOURS = """.ground {{ fill: {ground} }} .group {{ fill: {group} }} .box {{ fill: {box}; stroke: {line} }}
  .arrow {{ fill: none; stroke: {line}; stroke-width: 1.6px }} .head {{ fill: {line} }}
  text {{ fill: {text} }} .soft {{ fill: {soft} }}"""
STYLE = f"""
  text {{ font: 600 15px ui-sans-serif, system-ui, sans-serif }} .soft {{ font-weight: 400; font-size: 13px }}
  {COLOURS.format(**LIGHT)}
  @media (prefers-color-scheme: dark) {{
  {COLOURS.format(**DARK)}
  }}
"""


def modules() -> dict[str, Path]:
    """The package's modules by dotted name; a package's is its __init__."""
    found = {}
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in sorted([ROOT / "files.py", *paths]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The package's modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in parts if part)
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                yield inner if inner in known else base


def box_of(module: str) -> int:
    """The box that holds a module: that of the longest name above it."""
    parts = module.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        for i, box in enumerate(BOXES):
            # The public names are imagen_core's own; a module or folder beside them needs a place.
            if name in box.modules and (name != "imagen_core" or count == len(parts)):
                return i
    raise ValueError(f"{module}: has no place in the drawing; give it one in tools/architecture.py")


def arrows() -> set[tuple[int, int]]:
    """Pairs of boxes, the first importing the second, without what others imply."""
    known = modules()
    pairs = {
        (box_of(name), box_of(target))
        for name, path in known.items()
        for target in imported(path, known)
        if target in known
    }
    pairs = {(a, b) for a, b in pairs if a != b}
    below: dict[int, set[int]] = {}

    def reach(box: int, above: tuple[int, ...] = ()) -> set[int]:
        if box in above:
            titles = " -> ".join(BOXES[i].title for i in (*above, box))
            raise ValueError(f"imports go round in a circle: {titles}")
        if box not in below:
            direct = {b for a, b in pairs if a == box}
            below[box] = direct.union(*(reach(b, (*above, box)) for b in direct))
        return below[box]

    for box in range(len(BOXES)):
        reach(box)
    return {
        (a, b) for a, b in pairs if not any(b in below[c] for x, c in pairs if x == a and c != b)
    }


def route(start: Box, end: Box) -> str:
    """The path of an arrow: down to a box below, or out at the right to one that is no lower."""
    bottom, top = start.y + BOX, end.y - 8
    if bottom < top:
        inner = start if start.width < end.width else end  # straight down where one spans the other
        x_end = inner.x + inner.width / 2
        x = min(max(x_end, start.x + 30), start.x + start.width - 30)
        x_end += 30 * ((x > x_end) - (x < x_end))  # aslant beside what comes straight
        return f"M{x:g} {bottom} L{x_end:g} {top}"
    right, left = start.x + start.width, end.x - 8
    middle = (right + left) / 2
    return f"M{right} {start.y + BOX / 2:g} H{middle:g} V{end.y + BOX / 2:g} H{left}"


def drawing() -> str:
    """The SVG, on its own ground, light or dark as the reader's system is."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>The packages of Imagen Nodes, and which imports which</title>",
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0 8 4 0 8z"/></marker>',
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for name, x, y, width, height in GROUPS:
        lines += [
            f'<rect class="group" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>',
            f'<text class="soft" x="{x + 16}" y="{y + height - 14}">{name}</text>',
        ]
    for a, b in sorted(arrows()):
        lines.append(
            f'<path class="arrow" d="{route(BOXES[a], BOXES[b])}" marker-end="url(#head)"/>'
        )
    for box in BOXES:
        x, y = box.x + 16, box.y
        lines += [
            f'<rect class="box" x="{box.x}" y="{y}" width="{box.width}" height="{BOX}" rx="7"/>',
            f'<text x="{x}" y="{y + 26}">{box.title}</text>',
            f'<text class="soft" x="{x}" y="{y + 47}">{box.about}</text>',
        ]
    lines += [
        f'<text class="soft" x="392" y="{412 + 20 * row}">{words}</text>'
        for row, words in enumerate(["An arrow: imports.", "What other arrows imply is left out."])
    ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    OUT.write_text(drawing(), "utf-8")
    print(OUT)
