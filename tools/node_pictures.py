"""Makes docs/graph.png and the pictures of the help pages, in ComfyUI's real frontend.

    COMFYUI_DIR=… python tools/node_pictures.py [graph] [NODE ...]

All of them, or those that are named: "graph" is the cascade after a run, with the pictures of its nodes; any
other node has not run. See tools/browser.py for what it needs.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import browser
from PIL import Image

from imagen_nodes import NODE_CLASS_MAPPINGS

DOCS = browser.ROOT / "docs"
PAGES = browser.ROOT / "web" / "docs"
GRAPH = "graph"
GRAPH_BYTES, NODE_BYTES, MARGIN = 290_000, 55_000, 12
# Files for nodes to offer: Imagen Load Text, Load Imagen LoRA, Imagen Dataset from Folder.
OFFERED = ("models/imagen/texts/prompt.safetensors", "models/loras/my_style.safetensors")
OFFERED += ("input/my_pictures/one.png",)
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": []}
EMPTY |= {"config": {}, "extra": {}, "version": 0.4}
QUIET = {
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
}
SEEDS = """() => {
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name === 'control_after_generate') widget.value = 'fixed'
}"""
PREVIEWED = """() => window.app.graph._nodes.every(
  node => !['SaveImage', 'ImagenBaseSample', 'ImagenSR256', 'ImagenSR1024'].includes(node.type)
    || node.imgs?.length)"""
ADD = """type => {
  const node = window.LiteGraph.createNode(type)
  node.pos = [0, 0]
  node.setSize([310, type === 'ImagenT5Encode' ? 220 : node.computeSize()[1]])
  window.app.graph.add(node)
}"""
BOX = """type => {
  const canvas = window.app.canvas, ds = canvas.ds, rect = canvas.canvas.getBoundingClientRect()
  const nodes = canvas.graph._nodes.filter(n => type === null || n.type === type)
  const low = i => Math.min(...nodes.map(n => n.pos[i] - (i ? 30 : 0)))
  const high = i => Math.max(...nodes.map(n => n.pos[i] + n.size[i]))
  return { x: (low(0) + ds.offset[0]) * ds.scale + rect.left,
           y: (low(1) + ds.offset[1]) * ds.scale + rect.top,
           width: (high(0) - low(0)) * ds.scale, height: (high(1) - low(1)) * ds.scale }
}"""
ALONE = """type => {
  const canvas = window.app.canvas, ds = canvas.ds
  const node = canvas.graph._nodes.find(n => n.type === type)
  ds.scale = 1
  ds.offset[0] = 300 - node.pos[0]
  ds.offset[1] = 130 - node.pos[1]
  ds.onChanged?.(ds.scale, ds.offset)
  canvas.setDirty(true, true)
}"""


def save(page: Any, type_: str | None, path: Path) -> None:
    """Cut a node out of the window, or all of them, into a small PNG.

    page    from `browser`
    type_   of the node; None = the whole graph
    path    of the picture
    """
    box = page.evaluate(BOX, type_)
    clip = {"x": box["x"] - MARGIN, "y": box["y"] - MARGIN}
    clip |= {"width": box["width"] + 2 * MARGIN, "height": box["height"] + 2 * MARGIN}
    picture = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    path.write_bytes(small(picture, GRAPH_BYTES if type_ is None else NODE_BYTES))
    print(path, picture.size, path.stat().st_size)


def small(picture: Image.Image, limit: int) -> bytes:
    """The picture as a PNG of as many colours as its size allows.

    picture   RGB
    limit     in bytes
    """
    data = b""
    for colours in (256, 128, 64, 48, 32):
        # k-means puts them where many pixels are; a median cut greys text and thin wires
        palette = picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1)
        file = io.BytesIO()
        few = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True)
        data = file.getvalue()
        if len(data) <= limit:
            break
    return data


def cascade(page: Any, server: browser.Server) -> list[str]:
    """Run the graph that the command drops; pictures of it and of its nodes.

    page, server   of the same ComfyUI
    """
    browser.load(page, EMPTY)
    page.evaluate("() => window.app.extensionManager.command.execute('Imagen.NewCascade')")
    page.wait_for_timeout(1000)
    page.evaluate(SEEDS)
    browser.run(page, server, 1500)
    browser.fit(page, 1.0)
    page.wait_for_function(PREVIEWED)  # once seen, a node fetches its preview, and grows by it
    browser.fit(page, 1.0)
    save(page, None, DOCS / "graph.png")
    kinds = page.evaluate("() => window.app.graph._nodes.map(node => node.type)")
    for kind in (kind for kind in kinds if kind in NODE_CLASS_MAPPINGS):
        alone(page, kind)
    return kinds


def alone(page: Any, kind: str) -> None:
    """The picture of one node of the open graph.

    page   from `browser`
    """
    page.evaluate(ALONE, kind)
    page.mouse.move(5, 5)
    page.wait_for_timeout(800)
    save(page, kind, PAGES / f"{kind}.png")


def main() -> None:
    browser.SETTINGS.update(QUIET)
    wanted = sys.argv[1:] or [GRAPH, *NODE_CLASS_MAPPINGS]
    with browser.running() as server:
        make_pictures(server, wanted)


def make_pictures(server: browser.Server, wanted: list[str]) -> None:
    """The pictures of nodes.

    server   running
    wanted   nodes, and GRAPH for those that have run
    """
    for offered in OFFERED:
        path = server.folder / offered
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with browser.browser(server, width=2500, height=1150) as page:
        done = cascade(page, server) if GRAPH in wanted else []
        for kind in (kind for kind in wanted if kind not in (GRAPH, *done)):
            browser.load(page, EMPTY)
            page.evaluate(ADD, kind)
            alone(page, kind)


if __name__ == "__main__":
    main()
