"""The loupe, the chart and the command in ComfyUI's real frontend; where COMFYUI_DIR names a ComfyUI."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI: browser not tried"
    ),
]
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "groups": []}
EMPTY |= {"config": {}, "extra": {}, "version": 0.4}
FEW_STEPS = """() => {
  const steps = { ImagenBaseSample: 6, ImagenSR256: 3, ImagenSR1024: 1 }
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? []) {
      if (widget.name === 'steps') widget.value = steps[node.type]
      if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
}"""
SAVED = """() => Object.fromEntries(window.app.graph.serialize().nodes.map(
  n => [n.type, n.widgets_values?.length ?? 0]))"""
CENTRE = """type => {
  const canvas = window.app.canvas, node = canvas.graph._nodes.find(n => n.type === type)
  canvas.ds.scale = 1
  canvas.ds.offset[0] = 300 - node.pos[0]
  canvas.ds.offset[1] = 150 - node.pos[1]
  canvas.ds.onChanged?.(canvas.ds.scale, canvas.ds.offset)
  canvas.setDirty(true, true)
}"""


def tool():
    spec = importlib.util.spec_from_file_location("browser", ROOT / "recipes" / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def opened(request):
    """The frontend with a cascade that the command made and that has been run."""
    browser = tool()
    with browser.running(request.param != "classic") as server, browser.browser(server) as page:
        browser.load(page, EMPTY)
        page.evaluate("() => window.app.extensionManager.command.execute('Imagen.NewCascade')")
        page.wait_for_timeout(800)
        page.evaluate(FEW_STEPS)
        page.made = page.evaluate("() => window.app.graphToPrompt().then(made => made.output)")
        page.history = browser.run(page, server, 600)
        yield page


def test_the_command_drops_a_graph_that_runs(opened):
    assert opened.history["status"]["status_str"] == "success"
    kinds = {node["class_type"] for node in opened.made.values()}
    assert {"ImagenBaseSample", "ImagenSR1024", "ImagenCascadeView", "SaveImage"} <= kinds
    view = next(n for n in opened.made.values() if n["class_type"] == "ImagenCascadeView")
    assert sorted(view["inputs"]) == ["image_1024", "image_256", "image_64"]


def test_panels_shift_no_widget_value(opened):
    saved = opened.evaluate(SAVED)
    assert saved["ImagenBaseSample"] == 8
    assert saved["ImagenSR256"] == 6
    assert saved["ImagenCascadeView"] == 0
    base = next(n for n in opened.made.values() if n["class_type"] == "ImagenBaseSample")
    assert set(base["inputs"]) == {
        "stage", "text", "guidance", "width", "height", "batch_size", "seed", "steps", "sampler",
        "strength",
    }  # fmt: skip


def test_the_chart_follows_the_pointer(opened):
    opened.evaluate(CENTRE, "ImagenBaseSample")
    opened.wait_for_timeout(500)
    chart = opened.locator(".imagen-chart.imagen-filled").first
    assert chart.locator(".imagen-line").count() == 2
    assert chart.locator(".imagen-step").inner_text() == "step 6/6"
    box = chart.locator(".imagen-plot").bounding_box()
    opened.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + box["height"] / 2)
    assert chart.locator(".imagen-step").inner_text() == "step 1/6"
    strip = chart.locator(".imagen-strip")
    assert strip.bounding_box()["height"] > 15
    assert "filename=imagen_" in strip.evaluate("each => each.style.backgroundImage")


def test_the_loupe_shows_the_same_place_in_each_stage(opened):
    opened.evaluate(CENTRE, "ImagenCascadeView")
    opened.wait_for_timeout(500)
    picture = opened.locator(".imagen-picture")
    box = picture.bounding_box()
    assert min(box["width"], box["height"]) > 100
    loaded = "each => each.complete && each.naturalWidth"
    assert [each.evaluate(loaded) for each in picture.locator("img").all()] == [64, 256, 1024]
    opened.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    places = [
        pane.evaluate("each => each.style.backgroundPosition")
        for pane in opened.locator(".imagen-loupe").all()
    ]
    assert len(places) == 3
    assert set(places) == {"100% 0%"}
    opened.locator(".imagen-bar button", has_text="64").first.click()
    on_top = picture.locator(".imagen-on-top")
    assert on_top.evaluate(loaded) == 64


def test_wires_have_their_colours(opened):
    colours = opened.evaluate("() => window.LGraphCanvas.link_type_colors")
    assert colours["IMAGEN_TEXT"] == "#f2d16b"
    variable = "getComputedStyle(document.body).getPropertyValue('--color-datatype-IMAGEN_STAGE')"
    assert opened.evaluate(f"() => {variable}").strip() == "#b48be4"


def test_the_blueprint_expands_to_the_cascade(opened):
    """Last but one: it opens another graph."""
    file = ROOT / "subgraphs" / "Imagen Cascade.json"
    blueprint = json.loads(file.read_text("utf-8"))
    names = [entry["name"] for entry in blueprint["nodes"][0]["inputs"]]
    blueprint["nodes"][0]["widgets_values"][names.index("prompt")] = "a rocket"
    tool().load(opened, blueprint)
    made = opened.evaluate("() => window.app.graphToPrompt().then(made => made.output)")
    kinds = {node["class_type"]: node["inputs"] for node in made.values()}
    assert {"ImagenLoadCascade", "ImagenT5Encode", "ImagenBaseSample", "ImagenSR1024"} <= set(kinds)
    assert kinds["ImagenT5Encode"]["prompt"] == "a rocket"
    assert kinds["ImagenSR256"]["aug_level"] == 0.1
    assert kinds["ImagenSR1024"]["stage"][1] == 3


def test_nothing_of_the_pack_is_an_error(opened):
    assert [text for text in opened.problems if "imagen" in text.lower()] == []
