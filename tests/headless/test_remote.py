"""`imagen run --comfy` against a server in this process that speaks as much of ComfyUI as it needs."""

import base64
import copy
import hashlib
import io
import json
import re
import socket
import threading
import time
import urllib.parse
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from imagen_nodes.cli.main import main
from imagen_nodes.headless import remote
from imagen_nodes.headless.engine.progress import Bar

INFO = {
    "LoadImage": {
        "input": {"required": {"image": [["x.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
    },
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {}]}},
        "output": [],
        "output_node": True,
    },
}
WORKFLOW = {
    "nodes": [
        {
            "id": 1,
            "type": "LoadImage",
            "mode": 0,
            "inputs": [],
            "widgets_values": ["x.png", "image"],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "title": "Keep",
            "mode": 0,
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["p"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # of the websocket handshake, RFC 6455


def picture(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, data, status=200):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        state = self.server.state  # pyright: ignore[reportAttributeAccessIssue]
        path = urllib.parse.urlsplit(self.path)
        if path.path == "/ws" and state["websocket"]:
            self.talk(state)
        elif path.path == "/object_info":
            self.answer(INFO)
        elif path.path == "/history/7":
            state["unseen"] -= 1
            there = state["submitted"].is_set() and state["unseen"] < 0
            self.answer({"7": state["history"]} if there else {})
        elif path.path == "/queue":
            self.answer(state["queue"], state["queue_status"])
        elif path.path == "/view":
            state["viewed"].append(dict(urllib.parse.parse_qsl(path.query)))
            self.answer(state["picture"])
        else:
            self.answer({}, 404)

    def talk(self, state):
        key = self.headers["Sec-WebSocket-Key"] + MAGIC
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        state["submitted"].wait(10)
        for _ in range(state["chatter"]):
            self.frame({"type": "status", "data": {"status": {}}})
            time.sleep(0.01)
        if state["chatter"]:
            self.rfile.read(2)
            self.close_connection = True
            return
        for step in (1, 2):
            data = {"value": step, "max": 2, "node": "1", "prompt_id": "7"}
            self.frame({"type": "progress", "data": data})
        self.frame({"type": "execution_success", "data": {"prompt_id": "7"}})
        self.rfile.read(2)
        self.close_connection = True

    def frame(self, data):
        body = json.dumps(data).encode()
        self.wfile.write(bytes([0x81, len(body)]) + body)

    def do_POST(self):
        state = self.server.state  # pyright: ignore[reportAttributeAccessIssue]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/upload/image":
            state["uploaded"] = body
            self.answer({"name": "x (1).png", "subfolder": ""})
        elif self.path == "/prompt":
            state["queued"] = json.loads(body)
            status, data = state["reply"]
            state["submitted"].set()
            self.answer(data, status)
        else:
            data = json.loads(body)
            state["posted"].append((self.path, data))
            for name in data.get("delete", []):
                pending = state["queue"]["queue_pending"]
                pending[:] = [item for item in pending if item[1] != name]
            self.answer(b"", state["queue_status"])


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    entry = {"filename": "p_00001_.png", "subfolder": "sub", "type": "output"}
    server.state = {  # pyright: ignore[reportAttributeAccessIssue]
        "websocket": False,
        "chatter": 0,  # websocket messages about the queue, after which nothing is said
        "unseen": 0,  # looks at the history that find nothing
        "queue": {"queue_running": [], "queue_pending": []},
        "queue_status": 200,
        "posted": [],
        "picture": picture(),
        "submitted": threading.Event(),
        "viewed": [],
        "reply": (200, {"prompt_id": "7", "node_errors": {}}),
        "history": {"outputs": {"2": {"images": [entry]}}, "status": {"status_str": "success"}},
    }
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(server, tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(WORKFLOW))

    def run(*more):
        url = f"http://127.0.0.1:{server.server_address[1]}"
        given = ["run", str(tmp_path / "w.json"), "--comfy", url, "-o", str(tmp_path / "out")]
        return main([*given, "--input", str(tmp_path / "in"), *more])

    return run


def test_the_file_goes_there_and_its_pictures_come_back(server, run, tmp_path, capsys):
    assert run("--json") == 0
    path = tmp_path / "out" / "sub" / "p_00001_.png"
    assert json.loads(capsys.readouterr().out)["files"] == [str(path)]
    assert path.read_bytes() == picture()
    queued = server.state["queued"]
    assert queued["prompt"]["2"]["inputs"] == {"filename_prefix": "p", "images": ["1", 0]}
    assert queued["extra_data"]["extra_pnginfo"]["workflow"] == WORKFLOW
    assert server.state["viewed"] == [
        {"filename": "p_00001_.png", "subfolder": "sub", "type": "output"}
    ]


def test_a_changed_input_is_sent_without_the_workflow_that_has_the_old_one(server, run):
    assert run("--set", "Keep.filename_prefix=q") == 0
    assert server.state["queued"]["prompt"]["2"]["inputs"]["filename_prefix"] == "q"
    assert server.state["queued"]["extra_data"] == {}


def test_local_pictures_are_uploaded_under_the_name_the_server_gives(server, run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(picture("blue"))
    assert run() == 0
    assert picture("blue") in server.state["uploaded"]
    assert server.state["queued"]["prompt"]["1"]["inputs"]["image"] == "x (1).png"


@pytest.mark.parametrize(
    "name", ['a"b.png', 'a\\b".png', "a;b=c.png", '"; x="y.png', "a\r\nb.png", "é.png"]
)
def test_any_file_name_is_one_part_of_the_upload(server, run, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(picture("blue"))
    assert run("--set", f"1.image={name}") == 0
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: multipart/form-data; boundary="
        + server.state["uploaded"].split(b"\r\n")[0][2:]
        + b"\r\n\r\n"
        + server.state["uploaded"]
    )
    (part,) = message.iter_parts()
    assert part.get_content_disposition() == "form-data"
    assert part.get_param("name", header="content-disposition") == "image"
    assert part.get_payload(decode=True) == picture("blue")
    head = server.state["uploaded"].split(b"\r\n\r\n")[0].decode().split("\r\n")
    assert len(head) == 3
    told = re.fullmatch(r'Content-Disposition: form-data; name="image"; filename="(.*)"', head[1])
    assert told
    assert re.fullmatch(r'(?:[^"\\]|\\["\\])*', told[1])
    plain = re.sub(r'\\(["\\])', r"\1", told[1])
    assert plain == name.replace("\r", "%0D").replace("\n", "%0A")


def test_progress_comes_over_the_websocket(server, run, monkeypatch):
    pytest.importorskip("websockets")
    server.state["websocket"] = True
    steps = []
    monkeypatch.setattr(Bar, "on_step", lambda bar, *step: steps.append((bar.node.id, *step)))
    assert run() == 0
    assert steps == [("1", 1, 2), ("1", 2, 2)]


def test_what_the_server_refuses_names_node_title_and_input(server, run, tmp_path, capsys):
    error = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "filename_prefix: 'p' not in []",
        "extra_info": {"input_name": "filename_prefix"},
    }
    nodes = {"2": {"errors": [error], "dependent_outputs": ["2"], "class_type": "SaveImage"}}
    server.state["reply"] = (400, {"error": {"type": "x", "message": "y"}, "node_errors": nodes})
    assert run() == 2
    said = capsys.readouterr().err
    assert 'node 2 "Keep" (SaveImage), input filename_prefix: Value not in list' in said
    assert not (tmp_path / "out").exists()


PARTLY = {"2": {"errors": [{"type": "x", "message": "Bad", "extra_info": {}}]}}
OURS, THEIRS = [0, "7", {}, {}, ["2"]], [1, "8", {}, {}, ["2"]]


@pytest.mark.parametrize(
    ("queue", "stopped"),
    [
        ({"queue_running": [OURS], "queue_pending": [THEIRS]}, True),
        ({"queue_running": [THEIRS], "queue_pending": [OURS]}, False),
    ],
)
def test_a_workflow_with_a_bad_output_is_refused_as_a_whole_and_leaves_the_queue(
    server, run, tmp_path, capsys, queue, stopped
):
    server.state["queue"] = copy.deepcopy(queue)
    server.state["reply"] = (200, {"prompt_id": "7", "number": 1, "node_errors": PARTLY})
    assert run() == 2
    assert 'node 2 "Keep" (SaveImage): Bad' in capsys.readouterr().err
    interrupts = [("/interrupt", {"prompt_id": "7"})] if stopped else []
    assert server.state["posted"] == [("/queue", {"delete": ["7"]}), *interrupts]
    assert not server.state["viewed"] and not (tmp_path / "out").exists()


def test_a_refused_run_that_cannot_be_stopped_is_told_beside_the_problems(server, run, capsys):
    server.state["queue_status"] = 500
    server.state["reply"] = (200, {"prompt_id": "7", "number": 1, "node_errors": PARTLY})
    assert run() == 2
    said = capsys.readouterr().err
    assert "expected to take run 7 off the queue" in said and "answered 500" in said
    assert 'node 2 "Keep" (SaveImage): Bad' in said


def test_a_run_that_fails_there_fails_here(server, run, capsys):
    error = {"node_id": "1", "node_type": "LoadImage", "exception_message": "broken file\n"}
    status = {"status_str": "error", "messages": [["execution_error", error]]}
    server.state["history"] = {"outputs": {}, "status": status}
    assert run() == 1
    assert "node 1 (LoadImage): broken file" in capsys.readouterr().err


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(remote, "POLL", 0.01)
    monkeypatch.setattr(remote, "LOOK", 0.05, raising=False)


def test_a_server_that_hangs_counts_as_gone(monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match="no ComfyUI server answers there: timed out"):
            remote.Server(url).registry()


@pytest.mark.parametrize("chatter", [None, 1, 100])
def test_a_run_that_the_server_no_longer_knows_is_not_waited_for(
    server, run, capsys, quick, chatter
):
    if chatter is not None:
        pytest.importorskip("websockets")
        server.state.update(websocket=True, chatter=chatter)
    server.state["unseen"] = 20
    server.state["queue"]["queue_running"] = [THEIRS]
    assert run() == 1
    said = capsys.readouterr().err
    assert "expected run 7 in its queue or its history" in said and "queue it again" in said
    assert server.state["unseen"] > 10


def test_a_run_may_be_missed_once_on_its_way_from_the_queue_to_the_history(server, run, quick):
    server.state["unseen"] = 1
    assert run() == 0


@pytest.mark.parametrize("place", ["queue_running", "queue_pending"])
def test_a_run_is_waited_for_while_the_queue_has_it(server, run, quick, place):
    server.state["queue"][place] = [THEIRS, OURS]
    server.state["unseen"] = 10
    assert run() == 0


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("queue", "stopped"),
    [
        ({"queue_running": [OURS], "queue_pending": [THEIRS]}, True),
        ({"queue_running": [THEIRS], "queue_pending": [OURS]}, False),
    ],
)
def test_an_interrupt_takes_the_run_off_the_queue_and_stops_no_other(
    server, run, monkeypatch, queue, stopped
):
    server.state["queue"] = copy.deepcopy(queue)
    server.state["unseen"] = 20
    monkeypatch.setattr(remote.Server, "_finished", interrupt)
    assert run() == 130
    interrupts = [("/interrupt", {"prompt_id": "7"})] if stopped else []
    assert server.state["posted"] == [("/queue", {"delete": ["7"]}), *interrupts]


@pytest.mark.parametrize(
    ("name", "others", "free"),
    [
        ("p_00001_.png", [], "p_00002_.png"),
        ("p_00001_.png", ["p_00007_.png"], "p_00008_.png"),
        ("a_00003_b_00001_.png", ["a_00009_.png"], "a_00003_b_00002_.png"),
        ("clip_00001_.tar.gz", [], "clip_00002_.tar.gz"),
        ("x.png", [], "x_00001_.png"),
        ("x.png", ["x_00001_.png"], "x_00002_.png"),
    ],
)
def test_a_picture_spares_another_of_its_name(server, run, tmp_path, capsys, name, others, free):
    out = tmp_path / "out" / "sub"
    out.mkdir(parents=True)
    for other in (name, *others):
        (out / other).write_bytes(b"mine")
    entry = {"filename": name, "subfolder": "sub", "type": "output"}
    server.state["history"]["outputs"] = {"2": {"images": [entry]}}
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(out / free)]
    assert (out / free).read_bytes() == picture()
    assert all((out / other).read_bytes() == b"mine" for other in (name, *others))
    assert len(list(out.iterdir())) == 2 + len(others)


def test_the_same_picture_keeps_its_name(server, run, tmp_path, capsys):
    assert run("--json") == run("--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["files"] == second["files"]
    assert len(list((tmp_path / "out" / "sub").iterdir())) == 1


def test_a_temporary_picture_is_replaced(server, run, tmp_path):
    entry = {"filename": "p_00001_.png", "subfolder": "", "type": "temp"}
    server.state["history"]["outputs"] = {"2": {"images": [entry]}}
    assert run() == 0
    server.state["picture"] = picture("blue")
    assert run() == 0
    (path,) = (tmp_path / "out" / "temp").iterdir()
    assert path.name == "p_00001_.png" and path.read_bytes() == picture("blue")


@pytest.mark.parametrize("kind", ["output", "temp"])
def test_a_picture_that_cannot_be_written_leaves_nothing(
    server, run, tmp_path, monkeypatch, capsys, kind
):
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    entry = {"filename": "p_00001_.png", "subfolder": "", "type": kind}
    server.state["history"]["outputs"] = {"2": {"images": [entry]}}
    monkeypatch.setattr(Path, "write_bytes", full)
    assert run() == 1
    assert "disk full" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "entry", [{"filename": "../../x.png"}, {"filename": "x.png", "subfolder": "../.."}]
)
def test_a_server_cannot_write_outside_the_folder(server, run, tmp_path, capsys, entry):
    server.state["history"]["outputs"] = {"2": {"images": [{"type": "output", **entry}]}}
    assert run() == 2
    assert "expected a name inside" in capsys.readouterr().err
    assert not list(Path(tmp_path).rglob("x.png"))


@pytest.mark.parametrize("name", ["", ".", "a/.."])
def test_a_picture_without_a_name_is_not_written_beside_the_folder(
    server, run, tmp_path, capsys, name
):
    before = sorted(path.name for path in tmp_path.iterdir())
    server.state["history"]["outputs"] = {"2": {"images": [{"type": "output", "filename": name}]}}
    assert run() == 2
    assert "expected the name of a picture" in capsys.readouterr().err
    after = sorted(path.name for path in tmp_path.iterdir() if path.name != "out")
    assert after == [each for each in before if each != "out"]


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("http://127.0.0.1:9", 1, "no ComfyUI server answers there"),
        ("file:///etc/passwd", 2, "expected a URL such as"),
    ],
)
def test_a_wrong_url_is_explained(tmp_path, capsys, url, code, message):
    assert main(["run", str(tmp_path / "w.json"), "--comfy", url]) == code
    assert message in capsys.readouterr().err
