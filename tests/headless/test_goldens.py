"""The converter against what the real frontend (1.58.1) queues, and on ComfyUI's own templates.

A golden is a workflow of ComfyUI's own nodes and the API JSON that app.graphToPrompt() made of it, in a
browser whose Math.random() gives 0.
"""

import importlib.util
import json
import os
import random
from datetime import datetime
from pathlib import Path

import pytest

from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.formats.queueing import Moment
from imagen_nodes.headless.formats.ui_read import convert
from imagen_nodes.headless.formats.widget_values import default_value
from imagen_nodes.headless.graph import WorkflowError, to_api
from imagen_nodes.headless.object_info import registry_of
from imagen_nodes.headless.registry import declared_inputs

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
OURS = sorted([*ROOT.glob("example_workflows/*.json"), *ROOT.glob("subgraphs/*.json")])
WHOLE = ["INT", {"default": 1}]


def declared(output, **inputs):
    return {"input": {"required": inputs}, "output": output}


SIZES = [
    {"key": "scale by", "inputs": {"required": {"multiplier": ["FLOAT", {"default": 1.0}]}}},
    {
        "key": "scale dimensions",
        "inputs": {
            "required": {
                "width": WHOLE,
                "height": WHOLE,
                "crop": ["COMBO", {"options": ["disabled", "center"]}],
            }
        },
    },
]
OTHERS = registry_of(
    {
        "EmptyImage": declared(
            ["IMAGE"], width=WHOLE, height=WHOLE, batch_size=WHOLE, color=["INT", {"default": 0}]
        ),
        "EmptyLatentImage": declared(["LATENT"], width=WHOLE, height=WHOLE, batch_size=WHOLE),
        "CLIPTextEncode": declared(
            ["CONDITIONING"], text=["STRING", {"dynamicPrompts": True}], clip=["CLIP"]
        ),
        "ImageToMask": declared(["MASK"], image=["IMAGE"], channel=[["red", "green"]]),
        "MaskToImage": declared(["IMAGE"], mask=["MASK"]),
        "PreviewAny": declared([], source=["*"]),
        "VAEDecode": declared(["IMAGE"], samples=["LATENT"], vae=["VAE"]),
        "KSampler": declared(
            ["LATENT"],
            model=["MODEL"],
            seed=["INT", {"control_after_generate": True}],
            steps=WHOLE,
            cfg=["FLOAT", {}],
            sampler_name=[["euler"]],
            scheduler=[["normal"]],
            positive=["CONDITIONING"],
            negative=["CONDITIONING"],
            latent_image=["LATENT"],
            denoise=["FLOAT", {}],
        ),
        "ResizeImageMaskNode": declared(
            ["IMAGE"],
            input=["COMFY_MATCHTYPE_V3", {}],
            resize_type=["COMFY_DYNAMICCOMBO_V3", {"options": SIZES}],
            scale_method=["COMBO", {"options": ["area"]}],
        ),
        "BatchImagesNode": declared(["IMAGE"], images=["COMFY_AUTOGROW_V3", {}]),
    }
)


class First(random.Random):
    """Chance that always takes the first."""

    def choice(self, seq):
        return seq[0]


MOMENT = Moment(First(), datetime(2026, 3, 4, 15, 6, 7))


def inputs_of(api):
    return {key: (node["class_type"], node["inputs"]) for key, node in api.items()}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_the_frontend_queues_the_same_inputs(path):
    golden = json.loads(path.read_text("utf-8"))
    registry = {**OTHERS, **CORE_NODES}
    graph = convert(golden["workflow"], registry).queued(registry, MOMENT)
    assert inputs_of(to_api(graph)) == inputs_of(golden["api"])


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_the_frontend_queues_the_same_inputs_of_our_own_graphs(path):
    """An input that was appended to a node since is at its default.

    After another change of a node or an example: python tools/frontend_goldens.py.
    """
    golden = json.loads((GOLDEN / "examples" / path.name).read_text("utf-8"))
    registry = default_registry()
    draft = convert(json.loads(path.read_text("utf-8")), registry)
    made = to_api(draft.queued(registry, MOMENT))
    for key, node in made.items():
        declared = declared_inputs(registry[node["class_type"]])
        for name in node["inputs"].keys() - golden.get(key, node)["inputs"].keys():
            kind, options, required = declared[name]
            assert not required
            assert node["inputs"].pop(name) == default_value(kind, options)
    assert inputs_of(made) == inputs_of(golden)


def templates():
    """The workflows of the wheel comfyui-workflow-templates-json, where it is installed."""
    spec = importlib.util.find_spec("comfyui_workflow_templates_json")
    if spec is None or not spec.submodule_search_locations:
        return []
    return sorted(Path(next(iter(spec.submodule_search_locations))).rglob("*.json"))


def read(data, registry):
    """The graph and no problems, or no graph and what was wrong."""
    try:
        return convert(data, registry).queued(registry, MOMENT), []
    except WorkflowError as error:
        return {}, error.problems


@pytest.mark.skipif(not templates(), reason="needs comfyui-workflow-templates-json")
def test_every_template_of_comfyui_converts_or_ends_in_an_error_that_names_the_node():
    """COMFYUI_OBJECT_INFO names a saved /object_info; without one only named values can be read."""
    info = os.environ.get("COMFYUI_OBJECT_INFO")
    registry = {
        **CORE_NODES,
        **(registry_of(json.loads(Path(info).read_text("utf-8"))) if info else {}),
    }
    counts = {"converted": 0, "missing_node_type": 0}
    for path in templates():
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
            continue
        graph, problems = read(data, registry)
        counts["missing_node_type" if problems else "converted"] += 1
        assert {problem.type for problem in problems} <= {"missing_node_type"}, path
        assert all(problem.node and problem.node in problem.line for problem in problems)
        assert all(link.node in graph for node in graph.values() for link in node.links().values())
    print(counts)
    assert counts["converted"] > (400 if info else 200)
