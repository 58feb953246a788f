"""The cascade as one node: subgraphs/ holds what the recipe makes, and it is the example's graph."""

import json
from pathlib import Path

import pytest

from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.formats.workflow import load_workflow

ROOT = Path(__file__).parents[2]
FILE = ROOT / "subgraphs" / "Imagen Cascade.json"
PROMOTED = {"prompt", "negative_prompt", "guidance_scale", "batch_size", "seed"}


@pytest.fixture
def with_a_saver(tmp_path):
    """The blueprint in a workflow that saves its largest picture, and other values on its widgets."""
    data = json.loads(FILE.read_text("utf-8"))
    node = data["nodes"][0]
    saver_id = node["id"] + 1
    names = [entry["name"] for entry in node["inputs"]]
    assert set(names) == PROMOTED
    given = {"prompt": "a rocket", "negative_prompt": "", "guidance_scale": 3.5}
    given |= {"batch_size": 2, "seed": 7}
    node["widgets_values"] = [given[name] for name in names]
    node["outputs"][2]["links"] = [1]
    data["links"] = [[1, node["id"], 2, saver_id, 0, "IMAGE"]]
    saver = {
        "id": saver_id,
        "type": "SaveImage",
        "mode": 0,
        "widgets_values": ["imagen"],
        "outputs": [],
    }
    saver["inputs"] = [{"name": "images", "type": "IMAGE", "link": 1}]
    data["nodes"].append(saver)
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(data))
    return path


def test_the_blueprint_is_the_cascade_with_its_widgets_outside(with_a_saver):
    graph, _ = load_workflow(with_a_saver, default_registry())
    example, _ = load_workflow(
        ROOT / "example_workflows" / "api" / "text_to_1024.json", default_registry()
    )
    made = {node.class_type: node for node in graph.values()}
    assert set(made) | {"ImagenCascadeView"} == {node.class_type for node in example.values()}
    assert made["ImagenT5Encode"].inputs["prompt"] == "a rocket"
    assert made["ImagenDynamicThreshold"].inputs["guidance_scale"] == 3.5
    assert made["ImagenBaseSample"].inputs["batch_size"] == 2
    seeds = [node.inputs["seed"] for node in made.values() if "seed" in node.inputs]
    assert seeds == [7, 7, 7]
    assert made["SaveImage"].links()["images"].node == made["ImagenSR1024"].id
    for node in example.values():
        if node.class_type.startswith("ImagenSR"):
            inner = made[node.class_type]
            assert inner.inputs["steps"] == node.inputs["steps"]
            assert set(inner.inputs) == set(node.inputs)


def test_the_blueprint_is_what_frontends_expect():
    """One node, whose definition has links as objects, and links that both ends know."""
    data = json.loads(FILE.read_text("utf-8"))
    (node,), (definition,) = data["nodes"], data["definitions"]["subgraphs"]
    assert node["type"] == definition["id"]
    inner = {each["id"]: each for each in definition["nodes"]}
    assert node["id"] not in inner
    for link in definition["links"]:
        if link["origin_id"] == -10:
            assert link["id"] in definition["inputs"][link["origin_slot"]]["linkIds"]
        else:
            assert link["id"] in inner[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
        if link["target_id"] == -20:
            assert link["id"] in definition["outputs"][link["target_slot"]]["linkIds"]
        else:
            assert inner[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
    assert definition["state"]["lastLinkId"] == len(definition["links"])
