"""A real ComfyUI with this package in it, and its frontend in a real browser: for tests and for pictures.

Set COMFYUI_DIR to a ComfyUI checkout and, where it has a Python of its own, COMFYUI_PYTHON to that;
COMFYUI_FRONTEND to the `static` folder of another frontend than the installed one. Needs playwright, and
Chromium (CHROMIUM names it). Nothing in the checkout is changed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", ".venv", "*.egg-info", "node_modules")
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}
READY = """() => window.app?.canvas && window.app.graph?._nodes.length
  && window.LiteGraph?.registered_node_types?.ImagenBaseSample"""
LOAD = "graph => window.app.loadGraphData(graph).then(() => window.app.graph._nodes.length)"
FIT = """area => {
  const canvas = window.app.canvas, ds = canvas.ds, nodes = canvas.graph._nodes
  const low = i => Math.min(...nodes.map(n => n.pos[i] - (i ? 30 : 0)))
  const high = i => Math.max(...nodes.map(n => n.pos[i] + n.size[i]))
  const [x, y, w, h] = [low(0), low(1), high(0) - low(0), high(1) - low(1)]
  ds.scale = Math.min(area.most, area.width / w, area.height / h)
  ds.offset[0] = (area.left + area.width / 2) / ds.scale - x - w / 2
  ds.offset[1] = (area.top + area.height / 2) / ds.scale - y - h / 2
  ds.onChanged?.(ds.scale, ds.offset)
  canvas.setDirty(true, true)
}"""


class Missing(RuntimeError):
    """There is no ComfyUI, or no browser, to work with."""


def comfyui() -> Path:
    """The checkout that COMFYUI_DIR names."""
    folder = Path(os.environ.get("COMFYUI_DIR", "."))
    if not (folder / "comfy_execution").is_dir():
        raise Missing("set COMFYUI_DIR to a ComfyUI checkout")
    return folder


class Server:
    """A ComfyUI server on the CPU with a copy of this package, in a folder of its own."""

    def __init__(self, folder: Path, new_nodes: bool = False):
        self.folder, self.new_nodes = folder, new_nodes
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for name in ("custom_nodes", "input", "output", "temp", "user/default"):
            (folder / name).mkdir(parents=True)
        shutil.copytree(ROOT, folder / "custom_nodes" / "imagen_nodes", ignore=LEFT_OUT)
        pictures = ROOT / "example_workflows" / "input"
        shutil.copytree(pictures, folder / "input", dirs_exist_ok=True)
        settings = {**SETTINGS, "Comfy.VueNodes.Enabled": new_nodes}
        (folder / "user/default/comfy.settings.json").write_text(json.dumps(settings))

    def start(self, seconds: float = 180) -> None:
        """Start it and wait until it answers."""
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [python, "main.py", "--cpu", "--disable-auto-launch", "--port", self.url[17:]]
        command += ["--base-directory", self.folder, "--user-directory", self.folder / "user"]
        command += ["--database-url", f"sqlite:///{self.folder / 'comfyui.db'}"]
        if frontend := os.environ.get("COMFYUI_FRONTEND"):
            command += ["--front-end-root", frontend]
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], cwd=comfyui(), stdout=log, stderr=log
            )
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except (URLError, ConnectionError):
                time.sleep(0.3)
        self.stop()
        raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-3000:])

    def stop(self) -> None:
        """Stop it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str) -> Any:
        """What the server answers, as JSON."""
        with urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt in the API format; its id."""
        body = json.dumps({"prompt": prompt}).encode()
        request = Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)["prompt_id"]

    def finished(self, prompt_id: str, seconds: float = 300) -> dict[str, Any]:
        """The history of a prompt, once it is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.get(f"/history/{prompt_id}"):
                return found[prompt_id]
            time.sleep(0.3)
        raise TimeoutError(f"prompt {prompt_id} was not over after {seconds} s")


@contextmanager
def running(new_nodes: bool = False) -> Iterator[Server]:
    """A server for the length of a block.

    new_nodes   whether the frontend draws nodes in its newer way, "Nodes 2.0"
    """
    folder = Path(tempfile.mkdtemp(prefix="imagen-comfyui-"))
    try:
        server = Server(folder, new_nodes)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def browser(server: Server, width: int = 1600, height: int = 1000) -> Iterator[Any]:
    """The server's frontend, ready; a playwright page whose `problems` are the errors it logged.

    server          running
    width, height   of the window in pixels
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise Missing("pip install playwright") from error

    names = (os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("google-chrome"))
    chromium = next((name for name in names if name), None)
    with sync_playwright() as play:
        window = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        page = window.new_page(viewport={"width": width, "height": height})
        problems: list[str] = []
        vars(page)["problems"] = problems
        page.on("pageerror", lambda error: problems.append(error.stack or error.message))
        page.on("console", lambda told: problems.extend([told.text] * (told.type == "error")))
        page.goto(server.url, wait_until="domcontentloaded", timeout=120_000)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(1500)
        for _ in range(2):
            page.keyboard.press("Escape")
        yield page
        window.close()


def load(page: Any, workflow: dict[str, Any]) -> None:
    """Open a workflow in the UI format.

    page       from `browser`
    workflow   JSON
    """
    page.evaluate(LOAD, workflow)
    page.wait_for_timeout(800)


def run(page: Any, server: Server, seconds: float = 300) -> dict[str, Any]:
    """Queue what is open, as a user does; its history once it is over.

    page, server   of the same ComfyUI
    seconds        to wait at most
    """
    with page.expect_response(lambda answer: answer.url.endswith("/prompt")) as caught:
        page.evaluate("() => { window.app.queuePrompt(0, 1) }")
    answer = caught.value.json()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := server.get(f"/history/{answer['prompt_id']}"):
            page.wait_for_timeout(1200)
            return found[answer["prompt_id"]]
        page.wait_for_timeout(300)
    raise TimeoutError(f"not over after {seconds} s")


def fit(
    page: Any, most: float = 1.5, margins: tuple[int, int, int, int] = (90, 90, 40, 60)
) -> None:
    """Show the whole graph.

    page      from `browser`
    most      greatest scale
    margins   left, top, right, bottom, in pixels
    """
    left, top, right, bottom = margins
    size = page.viewport_size
    width, height = size["width"] - left - right, size["height"] - top - bottom
    area = {"left": left, "top": top, "width": width, "height": height, "most": most}
    page.evaluate(FIT, area)
    page.wait_for_timeout(700)
