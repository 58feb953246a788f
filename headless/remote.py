"""A workflow on a running ComfyUI server: queued over HTTP, watched by websocket, its pictures fetched.

Needs nothing beyond the standard library; with `websockets` (imagen-nodes[comfy]) there is progress.
"""

import contextlib
import http.client
import itertools
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import replacing, unfinished
from .comfy_nodes.folders import inside
from .comfy_nodes.save import next_counter
from .engine.progress import Bar
from .files import placed
from .graph import Graph, Node, Problem, WorkflowError, brief, to_api
from .object_info import registry_of
from .registry import Registry

TIMEOUT = 60.0  # seconds without an answer
POLL = 0.5  # seconds between two looks at the history
LOOK = 5.0  # seconds between two looks at the queue, while a websocket tells what happens


class Server:
    """A ComfyUI server.

    url   such as http://127.0.0.1:8188
    """

    def __init__(self, url: str):
        url = url if "://" in url else f"http://{url}"
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"--comfy: expected a URL such as http://127.0.0.1:8188, got {url}")
        self.url = url.rstrip("/")
        self.client_id = uuid.uuid4().hex

    def registry(self) -> Registry:
        """The server's node classes, as far as they are declared."""
        return registry_of(self._json("/object_info"))

    def upload_inputs(self, graph: Graph, folder: Path) -> None:
        """Give the server the pictures that LoadImage nodes name, where `folder` has them.

        graph    an uploaded picture's name becomes the server's
        folder   of pictures; one that is not in it is left to the server
        """
        for node in graph.values():
            name = node.inputs.get("image")
            if node.class_type not in ("LoadImage", "LoadImageMask") or not isinstance(name, str):
                continue
            path = folder / name
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                node.inputs["image"] = self._upload(path)

    def run(
        self,
        graph: Graph,
        workflow: dict[str, Any] | None,
        out: Path,
        progress: Callable[[Node], Bar],
    ) -> list[Path]:
        """Run a graph there; its pictures here, in the order of the output nodes.

        workflow   UI format of the same graph, for the metadata of saved pictures
        out        folder of pictures
        progress   makes the bar of a node
        """
        with self._understood(), self._listener() as messages:
            prompt_id = self.submit(graph, workflow)
            try:
                self._watch(prompt_id, graph, messages, progress)
                history = self._finished(prompt_id)
            except KeyboardInterrupt:
                self.cancel(prompt_id)
                raise
            entries = [
                entry
                for shown in history["outputs"].values()
                for entry in shown.get("images") or []
            ]
            return [self.fetch(entry, out) for entry in entries]

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """A block in which answers that are none of ComfyUI's are an error that says so."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise RuntimeError(
                f"{self.url}: expected the answers of a ComfyUI server, got something else ({error!r})"
            ) from error

    def submit(self, graph: Graph, workflow: dict[str, Any] | None) -> str:
        """Queue a graph; the id of its run. WorkflowError with what the server finds wrong with it.

        workflow   UI format of the same graph

        A server queues the sound outputs all the same; like a run in this process, this refuses all.
        """
        extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        body = {"prompt": to_api(graph), "client_id": self.client_id, "extra_data": extra}
        status, answer = self._post("/prompt", body)
        if status == 200 and not answer.get("node_errors"):
            return answer["prompt_id"]
        if "prompt_id" in answer:
            self.cancel(answer["prompt_id"])
        raise WorkflowError(problems_of(answer, graph))

    def cancel(self, prompt_id: str) -> None:
        """Take a run off the queue, or stop it if it is the one running; what fails is told on stderr.

        The queue is looked at because older servers stop whatever runs, whichever id they are sent.
        """
        try:
            self._tell("/queue", {"delete": [prompt_id]})
            if self._place(prompt_id) == "queue_running":
                self._tell("/interrupt", {"prompt_id": prompt_id})
        except (OSError, RuntimeError, ValueError) as error:
            text = f"expected to take run {prompt_id} off the queue, but {error}; stop it on the server"
            print(f"imagen: {text}", file=sys.stderr)

    def fetch(self, entry: dict[str, Any], out: Path) -> Path:
        """Bring one picture back; the file appears whole or not at all, and replaces temporary ones only.

        entry   filename, subfolder and type, as the server tells them
        out     folder of pictures
        """
        folder = out / "temp" if entry.get("type") == "temp" else out
        path = inside(folder, f"{entry.get('subfolder') or '.'}/{entry['filename']}")
        if path == folder.resolve() or path.is_dir():  # a name beside it would lie outside
            raise ValueError(f"{self.url}: expected the name of a picture, got {brief(entry)}")
        data = self._get("/view?" + urllib.parse.urlencode(entry))
        if entry.get("type") == "temp":
            with replacing(path) as temporary:
                temporary.write_bytes(data)
            return path
        if holds(path, data):
            return path
        with unfinished(path) as temporary:
            temporary.write_bytes(data)
            return placed(temporary, free_paths(path))

    # --- watching --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _listener(self) -> Any:
        """The server's websocket; None where the library is missing or the server has none."""
        try:
            from websockets.exceptions import WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            yield None
            return
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        try:
            socket = connect(address, open_timeout=TIMEOUT, max_size=None)
        except (OSError, WebSocketException):
            yield None
            return
        with socket:
            yield socket

    def _watch(
        self, prompt_id: str, graph: Graph, socket: Any, progress: Callable[[Node], Bar]
    ) -> None:
        """Move the bars until the run is over or off the queue; without a websocket, do nothing."""
        if socket is None:
            return
        from websockets.exceptions import ConnectionClosed

        bars: dict[str, Bar] = {}
        looked = time.monotonic()
        try:
            while True:
                if time.monotonic() - looked >= LOOK:  # other runs' messages may never pause
                    if self._place(prompt_id) is None:
                        return
                    looked = time.monotonic()
                try:
                    message = socket.recv(timeout=LOOK)
                except TimeoutError:
                    continue
                event = json.loads(message) if isinstance(message, str) else {}
                data = event.get("data") or {}
                if data.get("prompt_id") not in (prompt_id, None):
                    continue
                node = graph.get(str(data.get("display_node") or data.get("node")))
                if event.get("type") == "progress" and node is not None:
                    bar = bars.setdefault(node.id, progress(node))
                    bar.on_step(data["value"], data["max"])
                elif event.get("type") in ENDS and data.get("prompt_id") == prompt_id:
                    return
        except ConnectionClosed:
            return  # the history is polled instead
        finally:
            for bar in bars.values():
                bar.close()

    def _finished(self, prompt_id: str) -> dict[str, Any]:
        """The history of a run, waited for; RuntimeError if it failed or is nowhere any more.

        Between the two questions a run may go from the queue to the history, so that it is missed once.
        """
        missed = 0
        while (history := self._history(prompt_id)) is None:
            missed = missed + 1 if self._place(prompt_id) is None else 0
            if missed == 2:
                raise RuntimeError(
                    f"{self.url}: expected run {prompt_id} in its queue or its history, found it in neither; "
                    f"it was deleted there, or the server was restarted: queue it again"
                )
            time.sleep(POLL)
        status = history.get("status") or {}
        if status.get("status_str", "success") != "success":
            raise RuntimeError(failure_of(status))
        return history

    def _history(self, prompt_id: str) -> dict[str, Any] | None:
        return self._json(f"/history/{prompt_id}").get(prompt_id)

    def _place(self, prompt_id: str) -> str | None:
        """Where a run is: "queue_running", "queue_pending" or, finished or unknown, None."""
        queue = self._json("/queue")
        for name in ("queue_running", "queue_pending"):
            if any(item[1] == prompt_id for item in queue[name]):
                return name
        return None

    # --- HTTP ------------------------------------------------------------------------------------

    def _json(self, path: str) -> dict[str, Any]:
        """The object that is answered; RuntimeError where something else answers than ComfyUI."""
        data = self._get(path)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RuntimeError(
                f"{self.url}{path}: expected a ComfyUI server's answer, got {brief(data)}"
            )
        return found

    def _get(self, path: str) -> bytes:
        return self._request(urllib.request.Request(self.url + path))[1]

    def _post(self, path: str, data: Any) -> tuple[int, dict[str, Any]]:
        status, answer = self._request(self._with_json(path, data), may_fail=True)
        try:
            return status, json.loads(answer) if answer else {}
        except ValueError as error:
            raise RuntimeError(f"{self.url}{path}: answered {status}: {answer[:200]!r}") from error

    def _tell(self, path: str, data: Any) -> None:
        self._request(self._with_json(path, data))

    def _with_json(self, path: str, data: Any) -> urllib.request.Request:
        kind = {"Content-Type": "application/json"}
        return urllib.request.Request(self.url + path, json.dumps(data).encode(), kind)

    def _upload(self, path: Path) -> str:
        """The name under which the server keeps a picture; a different one of that name is spared."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
            f'filename="{quoted(path.name)}"'
        )
        body = f"{head}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
        body += path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{self.url}/upload/image", body, kind)
        data = self._request(request)[1]
        with self._understood():
            answer = json.loads(data)
            return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def _request(
        self, request: urllib.request.Request, may_fail: bool = False
    ) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            if may_fail:
                return error.code, error.read()
            raise RuntimeError(
                f"{request.full_url}: answered {error.code} {error.reason}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            text = f"{self.url}: no ComfyUI server answers there: {reason}"
            raise ConnectionError(text) from error


def quoted(name: str) -> str:
    """A file's name as it stands between quotes in a header of multipart/form-data."""
    plain = name.encode("utf-8", "replace").decode()
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", escaped)


ENDS = ("execution_success", "execution_error", "execution_interrupted")


def holds(path: Path, data: bytes) -> bool:
    """Whether a file is there with these bytes."""
    return path.is_file() and path.read_bytes() == data


def free_paths(path: Path) -> Iterator[Path]:
    """The names that a file may get: this one, then with ComfyUI's next numbers; others may be quicker.

    path   wanted, such as prefix_00001_.png
    """
    yield path
    match = re.fullmatch(r"(.+)_\d+_(.*)", path.name)
    prefix, ending = match.groups() if match else (path.stem, path.suffix)
    for number in itertools.count(next_counter(path.parent, prefix)):
        yield path.with_name(f"{prefix}_{number:05}_{ending}")


def problems_of(answer: dict[str, Any], graph: Graph) -> list[Problem]:
    """The problems in a server's answer, each with its node's title and input.

    graph    that was sent
    """
    problems = []
    for node_id, entry in (answer.get("node_errors") or {}).items():
        name = graph.get(node_id, f"node {node_id}")
        for error in entry["errors"]:
            info = error.get("extra_info") or {}
            where = f", input {info['input_name']}" if "input_name" in info else ""
            details = f" ({error['details']})" if error.get("details") else ""
            line = f"{name}{where}: {error['message']}{details}"
            problems.append(Problem(line, error["type"], node_id, error.get("details") or "", info))
    general = answer.get("error")
    if general and not problems:
        message = general.get("message") if isinstance(general, dict) else general
        details = general.get("details") if isinstance(general, dict) else ""
        kind = general.get("type", "invalid_workflow") if isinstance(general, dict) else ""
        problems.append(Problem(f"workflow: {message} {details or ''}".strip(), kind))
    return problems or [Problem(f"workflow: the server refused it: {answer!r:.200}")]


def failure_of(status: dict[str, Any]) -> str:
    """What went wrong in a run that failed."""
    for kind, data in status.get("messages") or []:
        if kind == "execution_error":
            text = str(data.get("exception_message", "")).strip()
            return f"node {data.get('node_id')} ({data.get('node_type')}): {text}"
        if kind == "execution_interrupted":
            return "the run was interrupted on the server"
    return f"the run failed on the server: {status.get('status_str')}"
