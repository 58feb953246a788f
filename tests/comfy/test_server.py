"""The pack in a real ComfyUI server: pictures, interrupts, memory over many runs."""

import io
import json
import os
import shutil
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(
    path
    for path in (ROOT / "example_workflows" / "api").glob("*.json")
    if "ImagenFineTuneStage" not in path.read_text("utf-8")  # minutes of training each
)
RUNS = int(os.environ.get("COMFYUI_RUNS", "100"))


def pixels(data: bytes):
    np = pytest.importorskip("numpy")
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture), dict(picture.info)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_gives_the_same_bytes_in_comfyui_and_in_a_shell(
    request, server, shell, tmp_path, path
):
    """DeepFloyd IF's on tiny random weights, in few steps."""
    graph = json.loads(path.read_text("utf-8"))
    if path.stem.startswith("if_"):
        graph = request.getfixturevalue("quick")(graph)
        models = request.getfixturevalue("deepfloyd_models")
        shutil.copytree(models, server.base / "models", dirs_exist_ok=True)
    made = server.pictures(server.run(graph))
    written = tmp_path / path.name
    written.write_text(json.dumps(graph))
    expected = shell(written)
    assert len(made) == len(expected) > 0
    for ours, theirs in zip(expected, made, strict=True):
        (a, _), (b, info) = pixels(ours), pixels(theirs)
        assert a.shape == b.shape
        assert (a == b).all(), f"{(a != b).mean():.2%} of the values differ"
        assert json.loads(info["prompt"]).keys() == graph.keys()


def test_a_ui_file_sent_to_the_server_brings_back_what_a_shell_makes(server, shell):
    path = ROOT / "example_workflows" / "inpaint.json"
    (brought,), (made,) = shell(path, "--comfy", server.url), shell(path)
    (a, info), (b, _) = pixels(brought), pixels(made)
    assert (a == b).all()
    assert json.loads(info["workflow"])["nodes"] == json.loads(path.read_text("utf-8"))["nodes"]


def test_every_node_is_offered(server):
    from imagen_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    offered = server.get("/object_info")
    for node_id in NODE_CLASS_MAPPINGS:
        assert offered[node_id]["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[node_id]
    assert "imagen" in server.get("/models")


def test_an_interrupt_stops_within_a_step_and_the_next_run_is_well(server, example):
    graph = example("text_to_64")
    base = graph.of("ImagenBaseSample")
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


def test_memory_stays_level_over_many_runs(server, example):
    graph, seen = example("text_to_64"), {}
    graph.of("ImagenBaseSample").update(steps=2, batch_size=1)
    for run in range(1, RUNS + 1):
        graph.of("ImagenT5Encode")["prompt"] = f"picture number {run}, noto style"
        server.run(graph)
        seen[run] = server.memory()
    early, late = seen[min(10, RUNS)], seen[RUNS]
    print(f"memory after run 10: {early:.0f} MiB, after run {RUNS}: {late:.0f} MiB")
    assert late <= 1.02 * early
