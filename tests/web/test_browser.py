"""The loupe, the chart and the command in ComfyUI's real frontend; where COMFYUI_DIR names a ComfyUI."""

import importlib.util
import itertools
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
IN_VIEW = """() => {
  const canvas = window.app.canvas, [x, y, width, height] = canvas.ds.visible_area
  return canvas.graph._nodes.every(node => node.pos[0] >= x && node.pos[1] >= y
    && node.pos[0] + node.size[0] <= x + width && node.pos[1] + node.size[1] <= y + height)
}"""
CENTRE = """type => {
  const canvas = window.app.canvas, node = canvas.graph._nodes.find(n => n.type === type)
  canvas.ds.scale = 1
  canvas.ds.offset[0] = 300 - node.pos[0]
  canvas.ds.offset[1] = 150 - node.pos[1]
  canvas.ds.onChanged?.(canvas.ds.scale, canvas.ds.offset)
  canvas.setDirty(true, true)
}"""


def tool():
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tools" / "browser.py")
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
        page.wait_for_timeout(1500)
        page.fitted = page.evaluate(IN_VIEW)
        page.evaluate(FEW_STEPS)
        page.made = page.evaluate("() => window.app.graphToPrompt().then(made => made.output)")
        page.server, page.history = server, browser.run(page, server, 600)
        version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
        page.early = request.param != "classic" and version.startswith(("1.27.", "1.28."))
        yield page


@pytest.fixture
def panels(opened):
    """The page, where its nodes show what an extension adds; the first "Nodes 2.0" had no place for it."""
    if opened.early:
        pytest.skip("Nodes 2.0 of this frontend show no widget of an extension")
    return opened


def test_the_command_drops_a_graph_that_runs(opened):
    assert opened.history["status"]["status_str"] == "success"
    kinds = {node["class_type"] for node in opened.made.values()}
    assert {"ImagenBaseSample", "ImagenSR1024", "ImagenCascadeView", "SaveImage"} <= kinds
    view = next(n for n in opened.made.values() if n["class_type"] == "ImagenCascadeView")
    assert sorted(view["inputs"]) == ["image_1024", "image_256", "image_64"]


def test_panels_shift_no_widget_value(opened):
    saved = opened.evaluate(SAVED)
    assert saved["ImagenBaseSample"] == 13
    assert saved["ImagenSR256"] == 11
    assert saved["ImagenCascadeView"] == 0
    base = next(n for n in opened.made.values() if n["class_type"] == "ImagenBaseSample")
    assert set(base["inputs"]) == {
        "stage", "text", "guidance", "width", "height", "batch_size", "seed", "steps", "sampler",
        "strength", "timesteps", "inpaint", "resample", "jump", "quality",
    }  # fmt: skip


def test_the_chart_follows_the_pointer(panels):
    panels.evaluate(CENTRE, "ImagenBaseSample")
    panels.wait_for_timeout(500)
    chart = panels.locator(".imagen-chart.imagen-filled").first
    assert chart.locator(".imagen-line").count() == 2
    assert chart.locator(".imagen-step").inner_text() == "step 6/6"
    box = chart.locator(".imagen-plot").bounding_box()
    panels.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + box["height"] / 2)
    assert chart.locator(".imagen-step").inner_text() == "step 1/6"
    strip = chart.locator(".imagen-strip")
    assert strip.bounding_box()["height"] > 15
    assert "filename=imagen_" in strip.evaluate("each => each.style.backgroundImage")


def test_the_loupe_shows_the_same_place_in_each_stage(panels):
    panels.evaluate(CENTRE, "ImagenCascadeView")
    panels.wait_for_timeout(500)
    picture = panels.locator(".imagen-picture")
    box = picture.bounding_box()
    assert min(box["width"], box["height"]) > 100
    loaded = "each => each.complete && each.naturalWidth"
    assert [each.evaluate(loaded) for each in picture.locator("img").all()] == [64, 256, 1024]
    panels.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    places = [
        pane.evaluate("each => each.style.backgroundPosition")
        for pane in panels.locator(".imagen-loupe").all()
    ]
    assert len(places) == 3
    assert set(places) == {"100% 0%"}
    panels.locator(".imagen-bar button", has_text="64").first.click()
    on_top = picture.locator(".imagen-on-top")
    assert on_top.evaluate(loaded) == 64


NEW_SEED = """() => {
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? []) if (widget.name === 'seed') widget.value = 77
}"""


def test_a_pinned_run_is_compared_with_the_next(panels):
    panels.evaluate(CENTRE, "ImagenCascadeView")
    panels.wait_for_timeout(500)
    pin = panels.locator(".imagen-bar button", has_text="pin")
    pin.click()
    panels.evaluate(NEW_SEED)
    tool().run(panels, panels.server, 600)
    picture = panels.locator(".imagen-picture")
    old, new = (picture.locator(f".imagen-{name}") for name in ("pinned", "on-top"))
    assert old.count() == 1
    sources = [each.get_attribute("src") for each in (old.first, new.first)]
    assert sources[0] != sources[1]
    box = picture.bounding_box()
    middle = box["y"] + box["height"] / 2
    panels.mouse.move(box["x"] + 0.5 * box["width"], middle)
    panels.mouse.down()
    panels.mouse.move(box["x"] + 0.25 * box["width"], middle, steps=4)
    panels.mouse.up()
    clip = old.evaluate("each => getComputedStyle(each).clipPath")
    assert 70 < float(clip.split("%")[0].split("inset(0px ")[-1].removeprefix("calc(")) < 80, clip
    panels.locator(".imagen-whole").click()
    panels.wait_for_function("() => document.fullscreenElement?.matches('.imagen-view')")
    panels.keyboard.press("Escape")
    panels.evaluate("() => document.exitFullscreen?.().catch(() => {})")
    panels.wait_for_function("() => !document.fullscreenElement")
    pin.click()
    assert picture.locator(".imagen-pinned").count() == 0


def lines(page, kind):
    """Heights of the lines in the panel of a node, and of the panel; elements far off have none."""
    page.evaluate(CENTRE, kind)
    page.wait_for_timeout(700)
    return page.evaluate(LINES, kind)


def test_what_was_read_of_a_prompt_stands_in_no_tall_box(panels):
    text, box = lines(panels, "ImagenT5Encode")
    assert text < box <= 90


def test_wires_have_their_colours(opened):
    colours = opened.evaluate("() => window.LGraphCanvas.link_type_colors")
    assert colours["IMAGEN_TEXT"] == "#f2d16b"
    variable = "getComputedStyle(document.body).getPropertyValue('--color-datatype-IMAGEN_STAGE')"
    assert opened.evaluate(f"() => {variable}").strip() == "#b48be4"


SHOWN = """() => window.app.graph._nodes.filter(node => node.imagenPanel).every(node =>
  node.imagenPanel.element.isConnected
    && node.imagenPanel.element.classList.contains('imagen-filled'))"""


def test_the_new_graph_is_in_view(opened):
    """Not an empty corner at 250 %: every node lay in the window when the command had run."""
    assert opened.fitted


def test_after_undo_the_panels_that_hang_there_are_the_nodes_own(panels):
    panels.evaluate(CENTRE, "ImagenBaseSample")
    panels.evaluate(
        """() => {
          const canvas = window.app.canvas
          canvas.selectNode(canvas.graph._nodes.find(node => node.type === 'ImagenBaseSample'))
        }"""
    )
    before = panels.evaluate("() => window.app.graph._nodes.length")
    panels.keyboard.press("Delete")
    panels.wait_for_timeout(500)
    assert panels.evaluate("() => window.app.graph._nodes.length") == before - 1
    panels.evaluate("() => window.app.extensionManager.command.execute('Comfy.Undo')")
    panels.wait_for_function(SHOWN, timeout=10_000)


def test_a_far_size_is_warned_of_before_a_run(panels):
    width = """value => {
      const node = window.app.graph._nodes.find(each => each.type === 'ImagenBaseSample')
      node.widgets.find(each => each.name === 'width').value = value
    }"""
    panels.evaluate(width, 512)
    panels.locator(".imagen-warning", has_text="512 x 64").wait_for(state="attached", timeout=5_000)
    panels.evaluate(width, 64)
    panels.wait_for_timeout(1500)
    assert panels.locator(".imagen-warning:not(:empty)").count() == 0


def test_after_f5_every_panel_shows_the_last_run(panels):
    """Those of nodes that had no need to run again too: servers before 0.19 do not send theirs again."""
    panels.evaluate(NEW_SEED.replace("77", "78"))
    tool().run(panels, panels.server, 600)
    assert panels.evaluate(SHOWN)
    panels.wait_for_timeout(2000)  # the frontend keeps the graph for the time after F5
    panels.reload(wait_until="domcontentloaded")
    panels.wait_for_function(tool().READY, timeout=120_000)
    panels.wait_for_function(SHOWN, timeout=30_000)
    panels.keyboard.press("Escape")


def test_after_f5_in_the_middle_of_a_run_its_end_fills_every_panel(panels):
    panels.evaluate(NEW_SEED.replace("77", "79"))
    panels.evaluate(FEW_STEPS.replace("ImagenBaseSample: 6", "ImagenBaseSample: 150"))
    panels.wait_for_timeout(2000)
    panels.evaluate("() => { window.app.queuePrompt(0, 1) }")
    panels.locator(".imagen-reading.imagen-filled").wait_for(state="attached", timeout=60_000)
    panels.wait_for_timeout(1000)
    panels.reload(wait_until="domcontentloaded")
    panels.wait_for_function(tool().READY, timeout=120_000)
    panels.wait_for_function(SHOWN, timeout=120_000)
    panels.keyboard.press("Escape")


BLUEPRINT = json.loads((ROOT / "subgraphs" / "Imagen Cascade.json").read_text("utf-8"))
INSIDE = """kind => {
  const outer = window.app.graph._nodes.find(node => node.subgraph)
  const inner = outer.subgraph._nodes.find(node => node.type === kind)
  return { filled: inner.imagenPanel.element.classList.contains('imagen-filled'),
           steps: inner.imagenPanel.element.querySelector('.imagen-step')?.textContent }
}"""
OPEN = """() => {
  const outer = window.app.graph._nodes.find(node => node.subgraph)
  window.app.canvas.openSubgraph(outer.subgraph, outer)
}"""


def with_a_saver(blueprint):
    """The blueprint with few steps inside, and its largest picture saved outside."""
    graph = json.loads(json.dumps(blueprint))
    node, definition = graph["nodes"][0], graph["definitions"]["subgraphs"][0]
    names = [entry["name"] for entry in node["inputs"]]
    node["widgets_values"][names.index("prompt")] = "a rocket"
    for inner in definition["nodes"]:
        steps = {"ImagenBaseSample": (5, 6), "ImagenSR256": (2, 3), "ImagenSR1024": (2, 1)}
        if place := steps.get(inner["type"]):
            inner["widgets_values"][place[0]] = place[1]
    node["outputs"][2]["links"] = [1]
    saver = {"id": node["id"] + 1, "type": "SaveImage", "pos": [500, 0], "size": [300, 300]}
    saver |= {"widgets_values": ["imagen"], "outputs": [], "mode": 0, "order": 1, "flags": {}}
    saver["inputs"] = [{"name": "images", "type": "IMAGE", "link": 1}]
    graph["nodes"].append(saver)
    graph["links"] = [[1, node["id"], 2, saver["id"], 0, "IMAGE"]]
    return graph | {"last_node_id": saver["id"], "last_link_id": 1}


def test_the_blueprint_runs_and_its_charts_are_inside(panels):
    """It opens another graph."""
    browser = tool()
    browser.load(panels, with_a_saver(BLUEPRINT))
    made = panels.evaluate("() => window.app.graphToPrompt().then(made => made.output)")
    kinds = {node["class_type"]: node["inputs"] for node in made.values()}
    assert {"ImagenLoadCascade", "ImagenT5Encode", "ImagenBaseSample", "ImagenSR1024"} <= set(kinds)
    assert kinds["ImagenT5Encode"]["prompt"] == "a rocket"
    assert kinds["ImagenSR256"]["aug_level"] == 0.1
    assert kinds["ImagenSR1024"]["stage"][1] == 3
    assert kinds["ImagenBaseSample"]["steps"] == 6
    history = browser.run(panels, panels.server, 600)
    assert history["status"]["status_str"] == "success"
    assert len(history["outputs"][str(BLUEPRINT["nodes"][0]["id"] + 1)]["images"]) == 1
    panels.evaluate(OPEN)
    panels.wait_for_timeout(1500)
    assert panels.evaluate(INSIDE, "ImagenBaseSample") == {"filled": True, "steps": "step 6/6"}
    assert panels.evaluate(INSIDE, "ImagenSR256")["filled"]
    panels.evaluate(CENTRE, "ImagenBaseSample")
    panels.locator(".imagen-chart.imagen-filled").first.wait_for(state="visible", timeout=10_000)


# What ComfyUI leaves free beside a title is 60 pixels wide, and 85 beside a widget's name and choice.
CUT = """types => types.flatMap(type => {
  const node = window.LiteGraph.createNode(type), context = document.createElement('canvas').getContext('2d')
  window.app.graph.add(node)
  const cut = (text, font, beside) => {
    context.font = font
    return context.measureText(text).width > node.size[0] - beside ? [`${type}: ${text}`] : []
  }
  const combos = (node.widgets ?? []).filter(each => each.type === 'combo')
  return [...cut(node.title, '14px Inter', 60),
    ...combos.flatMap(each => cut(`${each.label ?? each.name} ${each.value}`, '12px Inter', 85))]
})"""


def test_no_name_in_a_new_node_is_cut(opened):
    tool().load(opened, EMPTY)
    types = list(json.loads((ROOT / "tests" / "nodes" / "schema.json").read_text("utf-8")))
    assert opened.evaluate(CUT, types) == []


# Left, top, right and bottom of each node with its title; "Nodes 2.0" knows them as elements alone.
BOXES = """() => window.app.graph._nodes.map(node => {
  const shown = document.querySelector(`[data-node-id="${node.id}"]`), [x, y] = node.pos
  const width = shown?.offsetWidth ?? node.size[0], height = shown?.offsetHeight ?? node.size[1] + 30
  return [node.title, x, y - 30, x + width, y - 30 + height]
})"""
SHORT_TRAINING = """() => {
  const few = { ImagenFineTuneStage: { steps: 2, batch_size: 1 }, ImagenEvaluateCascade: { steps: 1 } }
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? []) widget.value = few[node.type]?.[widget.name] ?? widget.value
}"""


def covered(page):
    """Pairs of nodes of which one covers a part of the other."""
    boxes = page.evaluate(BOXES)
    return [
        (a[0], b[0])
        for a, b in itertools.combinations(boxes, 2)
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
    ]


LINES = """type => {
  const panel = window.app.graph._nodes.find(node => node.type === type).imagenPanel.element
  const lines = panel.querySelectorAll('.imagen-text')
  return [[...lines].reduce((sum, each) => sum + each.offsetHeight, 0), panel.offsetHeight]
}"""


def test_no_node_of_an_example_covers_another(panels):
    found = {}
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        tool().load(panels, json.loads(path.read_text("utf-8")))
        tool().fit(panels)
        found[path.stem] = covered(panels)
    assert not any(found.values()), found


def test_a_node_that_trained_covers_none(panels):
    path = ROOT / "example_workflows" / "domain_lora.json"
    tool().load(panels, json.loads(path.read_text("utf-8")))
    tool().fit(panels)
    panels.evaluate(SHORT_TRAINING)
    history = tool().run(panels, panels.server, 600)
    assert history["status"]["status_str"] == "success"
    panels.wait_for_timeout(2000)  # previews load
    assert covered(panels) == []
    text, box = lines(panels, "ImagenFineTuneStage")
    assert text < box <= 90, "a few lines in a tall empty box"


MANY_STEPS = """() => {
  for (const node of window.app.graph._nodes)
    for (const widget of node.widgets ?? []) {
      if (widget.name === 'steps') widget.value = 900
      if (widget.name === 'seed') widget.value += 1
      if (widget.name === 'control_after_generate') widget.value = 'fixed'
    }
}"""
PREVIEWS = """() => {
  const node = window.app.graph._nodes.find(each => each.type === 'ImagenBaseSample')
  const shown = [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)]
  return shown.filter(each => each.checkVisibility()).length + (node.imgs?.length ?? 0)
}"""


def test_no_preview_stays_after_an_interrupt_until_the_next_run(panels):
    path = ROOT / "example_workflows" / "text_to_64.json"
    tool().load(panels, json.loads(path.read_text("utf-8")))
    tool().fit(panels)
    for _ in range(2):
        panels.evaluate(MANY_STEPS)
        panels.evaluate("() => { window.app.queuePrompt(0, 1) }")
        panels.wait_for_function(f"({PREVIEWS})() > 0", timeout=60_000)
        panels.evaluate("() => window.app.api.interrupt()")
        panels.wait_for_function(f"({PREVIEWS})() === 0", timeout=20_000)
        panels.wait_for_timeout(2500)
        assert panels.evaluate(PREVIEWS) == 0


FEWEST = """() => {
  const few = { upto: '64', steps_64: 1 }
  for (const widget of window.app.graph._nodes[0].widgets) widget.value = few[widget.name] ?? widget.value
}"""


BESIDE_THE_VIEW = """() => [...document.querySelectorAll('[data-node-id] img')]
  .filter(each => each.checkVisibility() && !each.closest('.imagen-view')).length"""


def test_what_a_search_for_imagen_finds_first_runs_alone(panels):
    """Alone: it shows what it makes, so that it needs no node to save it."""
    tool().load(panels, EMPTY)
    panels.mouse.dblclick(700, 400)
    panels.wait_for_function("() => document.activeElement?.tagName === 'INPUT'", timeout=10_000)
    panels.keyboard.type("imagen")
    panels.wait_for_timeout(1500)
    panels.keyboard.press("Enter")
    panels.wait_for_timeout(1000)
    panels.mouse.click(700, 380)  # newer frontends hang it on the pointer first
    panels.wait_for_timeout(500)
    placed = panels.evaluate("() => window.app.graph._nodes.map(node => node.type)")
    assert placed == ["ImagenSampleCascade"]
    panels.evaluate(FEWEST)
    assert tool().run(panels, panels.server)["status"]["status_str"] == "success"
    panels.wait_for_function(
        "() => document.querySelector('.imagen-view.imagen-filled')", timeout=10_000
    )
    assert panels.evaluate(BESIDE_THE_VIEW) == 0, "the live preview would be a second copy"


def test_nothing_of_the_pack_is_an_error(opened):
    assert [text for text in opened.problems if "imagen" in text.lower()] == []
