"""Makes docs/looks.png: the cascade after a run in other palettes, sizes and languages, side by side.

    COMFYUI_DIR=… python tools/looks.py [FOLDER]

FOLDER keeps each screenshot whole. See tools/browser.py for what it needs.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any, NamedTuple

import browser
from node_pictures import EMPTY, QUIET, SEEDS, small
from PIL import Image, ImageDraw, ImageFont

OUT = browser.ROOT / "docs" / "looks.png"
MOST_BYTES, WIDTH, GAP = 290_000, 640, 6
SET = "([name, value]) => window.app.extensionManager.setting.set(name, value)"
FEW_STEPS = """() => {
  const steps = { ImagenBaseSample: 16, ImagenSR256: 4, ImagenSR1024: 2 }
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name === 'steps') widget.value = steps[node.type]
}"""
# What shows something stands together, the rest far away.
CLOSE = """() => {
  const graph = window.app.graph
  const at = { ImagenT5Encode: 0, ImagenBaseSample: 340, ImagenSR256: 680, ImagenCascadeView: 1020 }
  for (const node of graph._nodes) node.pos = [at[node.type] ?? 5000, 0]
  graph.setDirtyCanvas(true, true)
}"""
SHOW = """([x, y, scale]) => {
  const canvas = window.app.canvas, ds = canvas.ds
  ds.scale = scale
  ds.offset[0] = x
  ds.offset[1] = y
  ds.onChanged?.(ds.scale, ds.offset)
  canvas.setDirty(true, true)
}"""


class Look(NamedTuple):
    """One picture: what is set, and the window."""

    title: str
    settings: dict[str, Any]
    size: tuple[int, int] = (1280, 720)
    show: tuple[float, float, float] = (90, 155, 0.82)


NEW = {"Comfy.VueNodes.Enabled": True}
OLD = {"Comfy.VueNodes.Enabled": False}
LOOKS = [
    Look("dark", {"Comfy.ColorPalette": "dark", **OLD}),
    Look("light", {"Comfy.ColorPalette": "light", **OLD}),
    Look("nord, Nodes 2.0", {"Comfy.ColorPalette": "nord", **NEW}),
    Look("solarized, Nodes 2.0", {"Comfy.ColorPalette": "solarized", **NEW}),
    Look("light, Nodes 2.0, Chinese", {"Comfy.ColorPalette": "light", "Comfy.Locale": "zh"}),
    Look(
        "dark, a phone",
        {"Comfy.ColorPalette": "dark", "Comfy.Locale": "en"},
        (390, 720),
        (-946, 160, 0.95),
    ),
]


def shot(page: Any, look: Look) -> Image.Image:
    """The window in a look.

    page   from `browser`, after a run
    """
    page.set_viewport_size({"width": look.size[0], "height": look.size[1]})
    for name, value in look.settings.items():
        page.evaluate(SET, [name, value])
    if "Comfy.Locale" in look.settings:
        page.wait_for_timeout(1500)
        page.reload(wait_until="domcontentloaded")
        page.wait_for_function(browser.READY, timeout=120_000)
        page.wait_for_timeout(4000)
    page.evaluate(SHOW, list(look.show))
    page.mouse.move(look.size[0] - 5, look.size[1] - 5)
    page.wait_for_timeout(2500)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def side_by_side(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """All of them in two columns, each under its title.

    pictures   titles and screenshots
    """
    height = WIDTH * 720 // 1280
    rows = -(-len(pictures) // 2)
    sheet = Image.new("RGB", (2 * WIDTH + GAP, rows * (height + 20 + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, picture) in enumerate(pictures):
        x, y = i % 2 * (WIDTH + GAP), i // 2 * (height + 20 + GAP)
        draw.text((x + 4, y + 3), title, "black", ImageFont.load_default(14))
        scale = min(WIDTH / picture.width, height / picture.height)
        size = round(picture.width * scale), round(picture.height * scale)
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (x, y + 20))
    return sheet


def main() -> None:
    browser.SETTINGS.update(QUIET)
    with browser.running() as server, browser.browser(server, 1280, 720) as page:
        browser.load(page, EMPTY)
        page.evaluate("() => window.app.extensionManager.command.execute('Imagen.NewCascade')")
        page.wait_for_timeout(1000)
        for script in (SEEDS, FEW_STEPS, CLOSE):
            page.evaluate(script)
        browser.run(page, server, 1500)
        made = []
        for i, look in enumerate(LOOKS):
            made.append((look.title, shot(page, look)))
            if sys.argv[1:]:
                made[-1][1].save(Path(sys.argv[1]) / f"{i}.png")
    OUT.write_bytes(small(side_by_side(made), MOST_BYTES))
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
