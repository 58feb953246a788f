"""Runs code inside a real ComfyUI: a checkout and the Python that can start it, named by the environment.

COMFYUI_DIR      the checkout; without it these tests are skipped
COMFYUI_PYTHON   its interpreter; this one where it is not given
COMFYUI_FRONTEND the `static` folder of another frontend than the installed one
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMFY = os.environ.get("COMFYUI_DIR")
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

PRELUDE = """
import importlib, json, sys
from pathlib import Path
sys.argv = ["main.py", "--cpu", "--base-directory", {base!r}]
sys.path.insert(0, {comfy!r})
import comfy.options
comfy.options.enable_args_parsing()
import torch
import nodes, folder_paths, comfy.sample, comfy.samplers, comfy.model_management, comfy.sd
import latent_preview
torch.set_num_threads(1)
path = Path({pack!r})
spec = importlib.util.spec_from_file_location(
    "imagen_pack", path / "__init__.py", submodule_search_locations=[str(path)]
)
pack = importlib.util.module_from_spec(spec)
sys.modules["imagen_pack"] = pack
spec.loader.exec_module(pack)
core = importlib.import_module("imagen_pack.imagen_core")

def node(node_id, **inputs):
    cls = pack.NODE_CLASS_MAPPINGS[node_id]
    made = getattr(cls(), cls.FUNCTION)(**inputs)
    return made["result"] if isinstance(made, dict) else made

def told(**results):
    print("RESULTS " + json.dumps(results), flush=True)
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.fspath).parents:
            item.add_marker(pytest.mark.slow)
            if not COMFY:
                item.add_marker(pytest.mark.skip(reason="COMFYUI_DIR names no checkout of ComfyUI"))


@pytest.fixture
def inside_comfy(tmp_path):
    """Runs a piece of code in ComfyUI's process, with `node`, `core` and `told` at hand."""

    def run(code: str) -> dict:
        prelude = PRELUDE.format(comfy=COMFY, pack=str(ROOT), base=str(tmp_path))
        done = subprocess.run(
            [PYTHON, "-c", prelude + code],
            cwd=COMFY, env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert results, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(results[-1].removeprefix("RESULTS "))

    return run


def browser_tool():
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tools" / "browser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """A ComfyUI server with this pack alone, its folders in a temporary one."""

    def __init__(self, base: Path):
        self.base, self.input = base, base / "input"
        for folder in ("custom_nodes", "input", "output", "temp", "user/default", "models"):
            (base / folder).mkdir(parents=True)
        shutil.copytree(ROOT / "example_workflows" / "input", self.input, dirs_exist_ok=True)
        settings = json.dumps(browser_tool().SETTINGS)
        (base / "user/default/comfy.settings.json").write_text(settings)
        (base / "custom_nodes" / "imagen_nodes").symlink_to(ROOT, target_is_directory=True)
        (base / "custom_nodes" / "imagen_test.py").write_text(TEST_NODES)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        command = [
            PYTHON, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.url.split(":")[-1],
            "--base-directory", base, "--disable-auto-launch",
            "--database-url", f"sqlite:///{base / 'user/comfyui.db'}",
        ]  # fmt: skip
        if frontend := os.environ.get("COMFYUI_FRONTEND"):
            command += ["--front-end-root", frontend]
        self.log = (base / "server.log").open("wb")
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=COMFY, env=ENVIRONMENT,
            stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self.wait_until_it_answers(180)
        except BaseException:
            self.stop()
            raise

    def wait_until_it_answers(self, seconds: float):
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.get("/system_stats")
                return
            except OSError:
                log = (self.base / "server.log").read_text()[-3000:]
                assert self.process.poll() is None, log
                assert time.monotonic() < deadline, f"the server did not start: {log}"
                time.sleep(0.5)

    def stop(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def fetch(self, path: str, data=None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.url + path, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self.fetch(path))

    def post(self, path: str, data) -> bytes:
        return self.fetch(path, data)

    def queue(self, graph: dict) -> str:
        return json.loads(self.post("/prompt", {"prompt": graph}))["prompt_id"]

    def wait_until_running(self, prompt_id: str):
        while not any(prompt_id in item for item in self.get("/queue")["queue_running"]):
            time.sleep(0.05)

    def wait(self, prompt_id: str) -> dict:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if history:
                return history[prompt_id]
            time.sleep(0.05)
        raise AssertionError("the run did not end")

    def run(self, graph: dict) -> dict:
        ended = self.wait(self.queue(graph))
        assert ended["status"]["status_str"] == "success", ended["status"]
        return ended

    def error_of(self, graph: dict) -> str:
        """What a person is told: the server's refusal, or the exception of the run."""
        try:
            ended = self.wait(self.queue(graph))
        except urllib.error.HTTPError as refusal:
            return refusal.read().decode().replace("\\", "")
        assert ended["status"]["status_str"] == "error", ended["status"]
        return next(
            told["exception_message"]
            for kind, told in ended["status"]["messages"]
            if kind == "execution_error"
        )

    def pictures(self, ended: dict) -> list[bytes]:
        """The saved pictures, by their names, as the shell's are."""
        saved = [
            picture
            for output in ended["outputs"].values()
            for picture in output.get("images", ())
            if picture["type"] == "output"
        ]
        saved.sort(key=lambda picture: picture["filename"])
        return [self.fetch("/view?" + urllib.parse.urlencode(picture)) for picture in saved]

    def memory(self) -> float:
        """Resident memory of the server's process in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


TEST_NODES = """
import torch

class Picture:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("IMAGE",)
    @classmethod
    def INPUT_TYPES(cls): return {"required": {"channels": ("INT", {}), "value": ("STRING", {})}}
    def make(self, channels, value): return (torch.full((1, 64, 64, channels), float(value)),)

class Wide:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("IMAGEN_TEXT",)
    @classmethod
    def INPUT_TYPES(cls): return {"required": {"text": ("IMAGEN_TEXT",)}}
    def make(self, text):
        wide = type(text.text)(torch.zeros(1, 32, 4096), text.text.mask)
        return (type(text)(wide, wide),)

NODE_CLASS_MAPPINGS = {"ImagenTestPicture": Picture, "ImagenTestWide": Wide}
"""


class Graph(dict):
    """A graph in the API format."""

    def of(self, class_type: str) -> dict:
        """The inputs of the first node of a class."""
        return next(node["inputs"] for node in self.values() if node["class_type"] == class_type)


@pytest.fixture
def example():
    """Reads an example workflow by its name."""

    def read(name: str) -> Graph:
        path = ROOT / "example_workflows" / "api" / f"{name}.json"
        return Graph(json.loads(path.read_text("utf-8")))

    return read


@pytest.fixture(scope="session", name="browser_tool")
def browser_tool_fixture():
    """tools/browser.py"""
    return browser_tool()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def shell(tmp_path, server):
    """`imagen run` in a folder of its own, by the Python that runs ComfyUI; the pictures it saves."""
    (tmp_path / "imagen_nodes").symlink_to(ROOT, target_is_directory=True)

    def run(workflow: Path, *options: str) -> list[bytes]:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        command = [PYTHON, "-m", "imagen_nodes", "run", str(workflow), "-o", str(out), *options]
        command += ["--input", str(ROOT / "example_workflows" / "input")]
        environment = {**ENVIRONMENT, "IMAGEN_MODELS": str(server.base / "models")}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=600)
        saved = (path for path in out.rglob("*.png") if "temp" not in path.relative_to(out).parts)
        return [path.read_bytes() for path in sorted(saved)]

    return run
