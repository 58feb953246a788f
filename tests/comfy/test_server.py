"""The pack in a real ComfyUI server: pictures, interrupts, bad graphs, memory over many runs."""

import io
import json
import os
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows" / "api").glob("*.json"))
RUNS = int(os.environ.get("COMFYUI_RUNS", "100"))


def api(name: str) -> dict:
    return json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text("utf-8"))


def of_class(graph: dict, class_type: str) -> dict:
    """The inputs of the first node of a class."""
    return next(node["inputs"] for node in graph.values() if node["class_type"] == class_type)


def pixels(data: bytes):
    np = pytest.importorskip("numpy")
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture), dict(picture.info)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_gives_the_same_bytes_in_comfyui_and_in_a_shell(server, shell, path):
    graph = json.loads(path.read_text("utf-8"))
    made = server.pictures(server.run(graph))
    expected = shell(path)
    assert len(made) == len(expected) > 0
    for ours, theirs in zip(expected, made, strict=True):
        (a, _), (b, info) = pixels(ours), pixels(theirs)
        assert a.shape == b.shape
        assert (a == b).all(), f"{(a != b).mean():.2%} of the values differ"
        assert json.loads(info["prompt"]).keys() == graph.keys()


def test_every_node_is_offered(server):
    from imagen_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    offered = server.get("/object_info")
    for node_id in NODE_CLASS_MAPPINGS:
        assert offered[node_id]["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[node_id]
    assert "imagen" in server.get("/models")


def test_an_interrupt_stops_within_a_step_and_the_next_run_is_well(server):
    graph = api("text_to_64")
    base = of_class(graph, "ImagenBaseSample")
    base.update(steps=1, batch_size=1, seed=10)
    server.run(graph)  # everything is loaded from here on
    started = time.monotonic()
    base.update(steps=8)
    server.run(graph)
    eight_steps = time.monotonic() - started
    base.update(steps=1000)
    prompt_id = server.queue(graph)
    server.wait_until_running(prompt_id)
    time.sleep(eight_steps)
    server.post("/interrupt", {})
    started = time.monotonic()
    ended = server.wait(prompt_id)
    stopped_in = time.monotonic() - started
    assert ended["status"]["status_str"] == "error"
    assert any(kind == "execution_interrupted" for kind, _ in ended["status"]["messages"])
    print(f"stopped in {stopped_in:.2f} s; eight steps take {eight_steps:.2f} s")
    assert stopped_in < eight_steps
    base.update(steps=2)
    assert server.pictures(server.run(graph))


def bad_graph(name: str) -> dict:
    """A small graph with one thing wrong."""
    graph = api("inpaint" if name.endswith("picture") or "mask" in name else "text_to_64")
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 1
    base = of_class(graph, "ImagenBaseSample")
    stage = base["stage"][0]
    text, image = base["text"], [next(k for k, n in graph.items() if n["inputs"] is base), 0]
    enlarge = {"stage": [stage, 3], "text": text, "image": image, "seed": 0, "steps": 1}
    enlarge |= {"sampler": "dpmpp_2m", "aug_level": 0.1, "tile": 0}
    if name == "64 into 1024":
        graph["90"] = {"class_type": "ImagenSR1024", "inputs": enlarge}
        of_class(graph, "SaveImage")["images"] = ["90", 0]
    if name == "missing wire":
        del base["stage"]
    if name == "unknown cascade":
        of_class(graph, "ImagenLoadCascade")["cascade"] = "nobody"
    if name == "wrong stage":
        base["stage"] = [stage, 2]
    if name == "one channel":
        mask = {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 64, "height": 64}}
        graph["90"], base["image"] = mask, ["90", 0]
    if name == "size":
        base["width"] = 40 + 1
    if name == "NaN":
        graph["90"] = {"class_type": "ImagenTestNaN", "inputs": {}}
        base["image"] = ["90", 0]
    if name == "foreign text":
        graph["90"] = {"class_type": "ImagenTestWide", "inputs": {"text": text}}
        base["text"] = ["90", 0]
    return graph


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("64 into 1024", "this stage enlarges pictures of about 256 x 256, got 64 x 64; put the"),
        ("missing wire", '"details": "stage"'),
        ("unknown cascade", "cascade: 'nobody' not in "),
        ("wrong stage", "expected a base stage, got a super-resolution stage (256)"),
        ("one channel", "MASK"),
        ("NaN", "image: has values that are not numbers"),
        ("foreign text", "expected text states of width 256"),
        ("size", "the nearest good size is"),
    ],
)
def test_a_bad_graph_says_what_to_do_and_the_queue_goes_on(server, name, message):
    assert message in server.error_of(bad_graph(name))
    graph = api("text_to_64")
    of_class(graph, "ImagenBaseSample").update(steps=1, seed=hash(name) % 1000)
    assert server.pictures(server.run(graph))


def test_a_picture_with_alpha_and_a_mask_of_another_size_just_work(server):
    from PIL import Image

    Image.new("RGBA", (64, 64), (200, 30, 30, 128)).save(server.input / "alpha.png")
    Image.new("L", (200, 100), 255).save(server.input / "mask.png")
    graph = api("inpaint")
    of_class(graph, "LoadImage")["image"] = "alpha.png"
    of_class(graph, "LoadImageMask")["image"] = "mask.png"
    of_class(graph, "ImagenBaseSample")["steps"] = 2
    assert server.pictures(server.run(graph))


def test_memory_stays_level_over_many_runs(server):
    graph, seen = api("text_to_64"), {}
    of_class(graph, "ImagenBaseSample").update(steps=2, batch_size=1)
    for run in range(1, RUNS + 1):
        of_class(graph, "ImagenT5Encode")["prompt"] = f"picture number {run}, noto style"
        server.run(graph)
        seen[run] = server.memory()
    early, late = seen[min(10, RUNS)], seen[RUNS]
    print(f"memory after run 10: {early:.0f} MiB, after run {RUNS}: {late:.0f} MiB")
    assert late <= 1.02 * early
