"""A pytest plugin that runs ComfyUI's own tests/execution against the headless executor, without a server.

The checkout is the working directory. Its test modules are collected as they are; their client, their
server process and their waiting for it are replaced. Its `nodes` would load all of ComfyUI, so a stand-in
has that name.
"""

import importlib.util
import sys
import tempfile
import time
import types
import urllib.error
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.comfy_nodes.folders import Folders, folders
from imagen_nodes.headless.engine.execute import NodeError, Session
from imagen_nodes.headless.engine.validate import check
from imagen_nodes.headless.formats.workflow import parse_api

CHECKOUT = Path.cwd()


def stand_in(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


class RebatchImages:
    """The one node of ComfyUI itself that the tests use and the headless runner does not have."""

    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "rebatch"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "batch_size": ("INT", {"default": 1})}}

    def rebatch(self, images, batch_size):
        return (list(torch.cat(images).split(batch_size[0])),)


REGISTRY = {**CORE_NODES, "RebatchImages": RebatchImages}
stand_in("nodes", NODE_CLASS_MAPPINGS=REGISTRY)
stand_in("websocket")
stand_in("comfy_api.v0_0_2", ComfyAPI=object, ComfyAPISync=object)


def load_testing_pack():
    folder = CHECKOUT / "tests/execution/testing_nodes/testing-pack"
    spec = importlib.util.spec_from_file_location(
        "testing_pack", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["testing_pack"] = module
    spec.loader.exec_module(module)
    REGISTRY.update(module.NODE_CLASS_MAPPINGS)


class Server:
    """In place of subprocess.Popen: remembers whether the server was to cache."""

    caches = True

    def __init__(self, arguments):
        type(self).caches = "--cache-none" not in arguments

    def kill(self):
        pass


class Client:
    """In place of ComfyClient."""

    result_class: Any = None

    def __init__(self):
        self.session = Session(REGISTRY)
        self.name = ""

    def connect(self, **where):
        pass

    def set_test_name(self, name):
        self.name = name.replace("/", "_")

    def run(self, graph, partial_execution_targets=None):
        prompt = graph.finalize()
        for node in prompt.values():
            if node["class_type"] == "SaveImage":
                node["inputs"]["filename_prefix"] = self.name
        parsed = parse_api(prompt)
        verdict = check(parsed, REGISTRY, partial_execution_targets)
        if not verdict.outputs:
            text = "; ".join(str(problem) for problem in verdict.problems)
            raise urllib.error.HTTPError("/prompt", 400, text, None, None)
        session = self.session if Server.caches else Session(REGISTRY)
        root = Path(tempfile.gettempdir()) / f"conformance_{id(self)}"
        token = folders.set(Folders(root / "in", root / "out", root / "temp"))
        try:
            report = session.run(parsed, verdict.outputs)
            return self.result(report, root)
        except NodeError as error:
            data = {"prompt_id": "1", "node_id": error.node.id, "exception_message": str(error)}
            raise Exception(data) from error
        finally:
            folders.reset(token)

    def result(self, report, root):
        result = Client.result_class("1")
        result.runs = dict.fromkeys(report.ran, True)
        result.cached = dict.fromkeys(report.cached, True)
        for node_id, shown in report.shown.items():
            result.outputs[node_id] = dict(shown)
            pictures = [
                Image.open(root / ("temp" if e["type"] == "temp" else "out") / e["filename"])
                for e in shown.get("images", [])
            ]
            result.outputs[node_id]["image_objects"] = pictures
        return result


def pytest_configure(config):
    config.addinivalue_line("markers", "execution: ComfyUI's own")
    load_testing_pack()


def pytest_itemcollected(item):
    module = item.module
    if hasattr(module, "RunResult"):
        Client.result_class = module.RunResult
    module.ComfyClient = Client
    module.subprocess = types.SimpleNamespace(Popen=Server)
    module.time = types.SimpleNamespace(sleep=lambda seconds: None, time=time.time)
