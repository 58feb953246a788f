"""Graphs with one thing wrong: what the server answers, and what a person reads in the real frontend."""

import itertools
import json
import re
import shutil
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "imagen_core" / "pretrained" / "emoji"
SEEDS = itertools.count(1000)


def sr_1024(graph, cascade="emoji"):
    """The graph with an SR 1024 on the base's picture, of that cascade."""
    base = graph.of("ImagenBaseSample")
    image = [next(key for key, node in graph.items() if node["inputs"] is base), 0]
    graph.of("ImagenLoadCascade")["cascade"] = cascade
    graph["90"] = {
        "class_type": "ImagenSR1024",
        "inputs": {
            "stage": [base["stage"][0], 3], "text": base["text"], "image": image, "seed": 0,
            "steps": 1, "sampler": "dpmpp_2m", "aug_level": 0.1, "tile": 0,
        },
    }  # fmt: skip
    graph.of("SaveImage")["images"] = ["90", 0]


def start_from(graph, class_type, **inputs):
    """The graph, with the base sampled from the picture of another node."""
    graph["91"] = {"class_type": class_type, "inputs": inputs}
    graph.of("ImagenBaseSample")["image"] = ["91", 0]


def load(graph, name, class_type, **inputs):
    """The graph, with that input of the base or of T5 from a loader of its own."""
    graph["92"] = {"class_type": class_type, "inputs": inputs}
    for node in graph.values():
        if name in node["inputs"] and node["class_type"] in ("ImagenBaseSample", "ImagenT5Encode"):
            node["inputs"][name] = ["92", 0]


def masked(graph, width, height):
    """The graph, with all of a picture made new, by a mask of that size."""
    start_from(graph, "ImagenTestPicture", channels=3, value="0.5")
    graph["94"] = {
        "class_type": "SolidMask", "inputs": {"value": 1.0, "width": width, "height": height}
    }  # fmt: skip
    graph.of("ImagenBaseSample")["mask"] = ["94", 0]


def foreign_text(graph):
    graph["93"] = {
        "class_type": "ImagenTestWide",
        "inputs": {"text": graph.of("ImagenBaseSample")["text"]},
    }
    graph.of("ImagenBaseSample")["text"] = ["93", 0]


def plotted(graph, **inputs):
    """The graph, with a table of the base instead of its image."""
    base, given = graph.of("ImagenBaseSample"), graph.of("ImagenT5Encode")
    table = {
        "text_encoder": given["text_encoder"],
        "stage": base["stage"],
        "prompt": "a",
        "seed": 0,
    }
    table |= {"negative_prompt": "", "columns": "nothing", "column_values": ""}
    table |= {"rows": "nothing", "row_values": "", **inputs}
    graph["95"] = {"class_type": "ImagenXYPlot", "inputs": table}
    graph.of("SaveImage")["images"] = ["95", 0]


SOLID = {"value": 0.5, "width": 64, "height": 64}
BAD = {
    "64 into 1024": (
        sr_1024,
        r"this stage enlarges images of about 256 x 256, got 64 x 64; run the stage before it first",
    ),
    "a cascade without 1024": (
        lambda graph: sr_1024(graph, "small"),
        r"SR 1024: stage: the loaded cascade has no such stage; choose another cascade, or connect",
    ),
    "a cascade without files": (
        lambda graph: graph.of("ImagenLoadCascade").update(cascade="empty"),
        r"models/imagen/empty/cascade.json: text_encoder: no such file or folder",
    ),
    "unknown cascade": (
        lambda graph: graph.of("ImagenLoadCascade").update(cascade="nobody"),
        r"'nobody' is not there; put its folder into \S*models/imagen, or choose one of: emoji",
    ),
    "unknown stage": (
        lambda graph: load(graph, "stage", "ImagenLoadStage", stage="IF-I-XL-v1.0", dtype="auto"),
        r"'IF-I-XL-v1.0' is not there; DeepFloyd IF's weights: accept their licence at \S+, then fetch "
        r"and put it into \S*models/diffusion_models, or choose one of",
    ),
    "unknown text encoder": (
        lambda graph: load(
            graph, "text_encoder", "ImagenLoadTextEncoder", text_encoder="t5", dtype="auto"
        ),
        r"'t5' is not there; put it into \S*models/text_encoders, or choose one of: emoji",
    ),
    "no saved text": (
        lambda graph: load(graph, "text", "ImagenLoadText", saved_text=""),
        r"'' is not there; save one with Imagen Save Text first",
    ),
    "missing wire": (
        lambda graph: graph.of("ImagenBaseSample").pop("stage"),
        r"[Rr]equired input.{0,30}: \W*stage",
    ),
    "wrong stage": (
        lambda graph: graph.of("ImagenBaseSample")["stage"].__setitem__(1, 2),
        r"expected a base stage, got a super-resolution stage; connect `base` of Load Imagen Cascade",
    ),
    "foreign text": (
        foreign_text,
        r"expected text states of width 256, got 4096; encode the prompt with the T5 that this",
    ),
    "NaN": (
        lambda graph: start_from(graph, "ImagenTestPicture", channels=3, value="nan"),
        r"image: has values that are not numbers \(NaN or infinite\); check the node or file that",
    ),
    "two channels": (
        lambda graph: start_from(graph, "ImagenTestPicture", channels=2, value="0.5"),
        r"expected batch x height x width x 3 channels in 0..1, got \[1, 64, 64, 2\]; convert it to RGB",
    ),
}
UNDRAWABLE = {  # what the frontend does not let a person make
    "mask as image": (lambda graph: start_from(graph, "SolidMask", **SOLID), r"MASK"),
    "size": (
        lambda graph: graph.of("ImagenBaseSample").update(width=41),
        r"the nearest good sizes are",
    ),
}
GOOD = {
    "grey": lambda graph: start_from(graph, "ImagenTestPicture", channels=1, value="0.5"),
    "alpha": lambda graph: start_from(graph, "ImagenTestPicture", channels=4, value="0.5"),
    "mask of another size": lambda graph: masked(graph, 200, 100),
}
SHOWN = """() => [...document.querySelectorAll(
  '[role=dialog], .p-dialog, .comfy-modal, [data-testid=error-overlay], [data-testid^=error-group]'
)].filter(each => each.getClientRects().length).map(each => each.innerText).join('\\n')"""
INFO = "[data-testid^=error-group] button:has([class*=info])"


@pytest.fixture(scope="module")
def models(server):
    """Beside the bundled cascade: one without its third stage, and one whose files are not there."""
    names = json.loads((BUNDLED / "cascade.json").read_text("utf-8"))
    small = server.base / "models" / "imagen" / "small"
    shutil.copytree(BUNDLED, small, ignore=shutil.ignore_patterns("sr*.safetensors"))
    kept = {key: names[key] for key in ("name", "text_encoder", "base")}
    (small / "cascade.json").write_text(json.dumps(kept))
    empty = small.with_name("empty")
    empty.mkdir()
    (empty / "cascade.json").write_text(json.dumps(names))


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def page(request, server, browser_tool):
    """The real frontend of that server."""
    with browser_tool.browser(server) as page:
        new = request.param != "classic"
        page.evaluate(
            "new_ => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', new_)", new
        )
        yield page


@pytest.fixture
def changed(example):
    """A small graph with a change made to it."""

    def make(change):
        graph = example("text_to_64")
        graph.of("ImagenBaseSample").update(steps=1, batch_size=1)
        change(graph)
        return graph

    return make


def draw(page, graph):
    page.evaluate("graph => window.app.loadApiJson(graph, 'graph')", graph)
    page.wait_for_timeout(800)


def read(page, picture, message="", seconds=10):
    """All that the frontend says of an error, its details opened as a person would; a picture is kept.

    The details appear part by part: there are that many seconds for the message to be among them.
    """
    page.wait_for_timeout(1200)
    for button in ("[data-testid=error-overlay-see-errors]", INFO):
        for each in page.locator(button).all():
            each.click(timeout=3000)
            page.wait_for_timeout(500)
    end = time.monotonic() + seconds
    while not re.search(message, said := page.evaluate(SHOWN)) and time.monotonic() < end:
        page.wait_for_timeout(200)
    page.screenshot(path=picture)
    for _ in range(2):
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)
    return said


def fresh(graph):
    """The graph with a seed that no run had: ComfyUI reports no pictures of what it has cached."""
    graph.of("ImagenBaseSample")["seed"] = next(SEEDS)
    return graph


@pytest.mark.parametrize("name", BAD | UNDRAWABLE)
def test_the_server_says_what_to_do_and_the_queue_goes_on(server, models, changed, name):
    change, message = (BAD | UNDRAWABLE)[name]
    assert re.search(message, server.error_of(changed(change)))
    assert server.pictures(server.run(fresh(changed(dict))))


@pytest.mark.parametrize("name", BAD)
def test_a_person_reads_what_to_do_in_the_frontend(server, models, page, changed, tmp_path, name):
    change, message = BAD[name]
    draw(page, changed(change))
    with page.expect_response(lambda answer: answer.url.endswith("/prompt")) as caught:
        page.evaluate("() => { window.app.queuePrompt(0, 1) }")
    answer = caught.value.json()
    if "error" not in answer:
        assert server.wait(answer["prompt_id"])["status"]["status_str"] == "error"
    said = read(page, tmp_path / "error.png", message)
    assert re.search(message, said), said[:2000]
    assert server.pictures(server.run(fresh(changed(dict))))


TOASTS = {
    "wrong stage": (
        BAD["wrong stage"][0],
        r"Imagen Base Sample couldn't validate stage: expected a base stage, got a super-resolution "
        r"stage; connect `base` of Load Imagen Cascade",
    ),
    "unknown cascade": (
        BAD["unknown cascade"][0],
        r"Load Imagen Cascade couldn't validate cascade: 'nobody' is not there; put its folder into",
    ),
    "values of an axis": (
        lambda graph: plotted(graph, columns="guidance_scale", column_values="1, many"),
        r"Imagen XY Plot couldn't validate column_values: expected numbers",
    ),
}


@pytest.mark.parametrize("name", TOASTS)
def test_the_toast_names_the_input_and_says_what_to_do(models, page, changed, tmp_path, name):
    """In frontends with a toast; the dialog of older ones says all of it at once."""
    change, message = TOASTS[name]
    draw(page, changed(change))
    with page.expect_response(lambda answer: answer.url.endswith("/prompt")):
        page.evaluate("() => { window.app.queuePrompt(0, 1) }")
    page.wait_for_timeout(1500)
    toast = page.locator("[data-testid=error-overlay]")
    said = toast.inner_text() if toast.count() else page.evaluate(SHOWN)
    page.screenshot(path=tmp_path / "toast.png")
    assert "input_types" not in said
    assert re.search(message if toast.count() else message.split(": ", 1)[1], said), said
    read(page, tmp_path / "closed.png")


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_made_to_fit_runs_from_the_frontend(
    server, page, browser_tool, changed, tmp_path, name
):
    draw(page, changed(GOOD[name]))
    assert browser_tool.run(page, server)["status"]["status_str"] == "success"
    assert not re.search("rror", read(page, tmp_path / "good.png"))


def test_the_frontend_refuses_a_mask_where_a_picture_belongs(page):
    assert page.evaluate("() => window.LiteGraph.isValidConnection('IMAGE', 'IMAGE')")
    assert not page.evaluate("() => window.LiteGraph.isValidConnection('MASK', 'IMAGE')")
