"""Makes thumbnails of the example workflows whose weights do not ship: their graphs, drawn by ComfyUI.

    COMFYUI_DIR=… python tools/graph_thumbnails.py

See tools/browser.py for what it needs.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import browser
from PIL import Image

WORKFLOWS = browser.ROOT / "example_workflows"
SIDE, LARGER = 384, 4  # of a thumbnail in pixels; how much larger it is drawn
MARGIN = 150  # of the window, where the frontend's own buttons are
QUIET: dict[str, Any] = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasMenu": False}
QUIET["LiteGraph.Canvas.MinFontSizeForLOD"] = 0  # words are drawn however small
NO_NOTES = """() => {
  const graph = window.app.graph
  for (const node of graph._nodes.filter(n => n.type === 'MarkdownNote')) graph.remove(node)
}"""


def picture(page: Any, path: Path) -> None:
    """The graph of a workflow, without its note, as JPEG beside it.

    page   from `browser`
    """
    browser.load(page, json.loads(path.read_text("utf-8")))
    page.evaluate(NO_NOTES)
    margin = MARGIN + 20
    browser.fit(page, 1.0, (margin, margin, margin, margin))
    clip = {"x": MARGIN, "y": MARGIN, "width": SIDE * LARGER, "height": SIDE * LARGER}
    drawn = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    drawn = drawn.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    drawn.save(path.with_suffix(".jpg"), quality=88)


def main() -> None:
    browser.SETTINGS.update(QUIET)
    window = SIDE * LARGER + 2 * MARGIN
    with browser.running() as server, browser.browser(server, window, window) as page:
        for path in sorted(WORKFLOWS.glob("if_*.json")):
            picture(page, path)
            print(path.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
