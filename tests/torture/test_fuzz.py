"""Damaged files by the hundred: workflows, weights, pictures, rows. One clear error, soon, in little memory.

Each case is a file of this repository, or a small one that is made here, changed at random.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from imagen_nodes.cli.node_classes import default_registry
from imagen_nodes.headless.comfy_nodes import load
from imagen_nodes.headless.comfy_nodes.folders import Folders, folders
from imagen_nodes.headless.engine.validate import check
from imagen_nodes.headless.formats.workflow import load_workflow
from imagen_nodes.headless.graph import WorkflowError
from imagen_nodes.headless.inputs import InputError

ROOT = Path(__file__).parents[2]
SECONDS = 2.0  # of CPU time for a case; on a quiet machine one is enough
GROWTH = 2**30  # bytes of memory over all cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a timer of CPU time")
STRANGE = [
    None, True, 0, -1, 1e308, 10**30, float("nan"), float("inf"), "", "\0", "\ud800", "x" * 5000, [], {},
    {"a": {}}, "{" * 3000, "{a|" * 300, "%date:yyyy%" * 99, "../../etc/passwd", ["1", 0], ["1", -1],
    ["1", 1e400], [None, 0], [[]], "//" * 500, "/*" * 500, "-1:1", 2**63, -(2**63) - 1,
]  # fmt: skip


class TooLong(BaseException):
    """A case took more CPU time than it may."""


@contextlib.contextmanager
def bounded(case, *more):
    """A block that may end with an error of a kind that people are shown, and in no other way.

    more   kinds of errors
    """

    def late(*_):
        raise TooLong

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (WorkflowError, InputError, ValueError, OSError, *more) as error:
        if len(str(error)) > 200_000:
            raise AssertionError(f"{case}: an error of {len(str(error))} characters") from error
    except TooLong as error:
        raise AssertionError(f"{case}: more than {SECONDS} s") from error
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * 1024 < GROWTH, f"{case}: {grown >> 10} MB"


def places(data, found):
    """Every container of JSON data with each of its keys."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        found.append((data, key))
        if isinstance(data[key], (dict, list)):
            places(data[key], found)
    return found


def mutated(data, chance):
    """JSON data with some values changed, removed, copied or exchanged."""
    data = json.loads(json.dumps(data))
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        found = places(data, [])
        if not found:
            return data
        (holder, key), (other, name) = chance.choice(found), chance.choice(found)
        kind = chance.randrange(6)
        if kind == 0:
            holder[key] = json.loads(json.dumps(chance.choice(STRANGE)))
        elif kind == 1:
            del holder[key]
        elif kind == 2:
            holder[key] = json.loads(json.dumps(other[name]))
        elif kind == 3:
            one, two = json.dumps(other[name]), json.dumps(holder[key])
            holder[key] = json.loads(one)
            if holder is not other and name in (
                other if isinstance(other, dict) else range(len(other))
            ):
                other[name] = json.loads(two)
            data = json.loads(json.dumps(data, check_circular=True))
        elif kind == 4 and isinstance(holder, list):
            holder += holder[: 200 - len(holder)] if len(holder) < 200 else []
        elif isinstance(holder, dict):
            holder[
                chance.choice(["nodes", "links", "inputs", "id", "class_type", "definitions", "0"])
            ] = holder.pop(key)
    return data


def damaged(data, chance):
    """Bytes with some of them changed, cut, doubled or moved."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 40])):
        if not data:
            return bytes(data)
        place, kind = chance.randrange(len(data)), chance.randrange(6)
        if chance.random() < 0.6:  # most of what a file means stands at its beginning
            place = min(place, chance.randrange(200))
        if kind == 0:
            data[place] = chance.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[place : place + chance.choice([1, 4, 1000])]
        elif kind == 3:
            data[place:place] = data[place : place + chance.choice([1, 8, 300])]
        elif kind == 4:
            data[place : place + 8] = chance.choice([bytes(8), b"\xff" * 8, b"\xff" * 7 + b"\x7f"])
        elif chance.random() < 0.3:
            del data[place:]
    return bytes(data)


def workflows():
    found = [*ROOT.glob("example_workflows/*.json"), *ROOT.glob("subgraphs/*.json")]
    found += ROOT.glob("tests/headless/golden/**/*.json")
    with contextlib.suppress(ImportError):
        import comfyui_workflow_templates_json as templates

        found += sorted(Path(templates.__file__).parent.rglob("*.json"))[:150]
    data = []
    for path in sorted(found):
        with contextlib.suppress(ValueError):
            data.append((path.name, json.loads(path.read_text("utf-8"))))
    return [
        (name, each)
        for name, each in data
        if isinstance(each, dict) and len(json.dumps(each)) < 60_000
    ]


def test_damaged_workflows(tmp_path, chance, much):
    sources, registry = workflows(), default_registry()
    assert len(sources) > 10
    path = tmp_path / "w.json"
    for n in range(300 * much):
        name, data = chance.choice(sources)
        text = json.dumps(mutated(data, chance))
        if chance.random() < 0.15:
            text = damaged(text.encode(), chance).decode("utf-8", "surrogateescape")
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        try:
            with bounded(f"case {n} of {name}"):
                graph, _ = load_workflow(path, registry)
                check(graph, registry)
        except AssertionError:
            keep(path)
            raise


def keep(path):
    """Keep a file that a fault was found with where IMAGEN_TORTURE_KEEP says."""
    if folder := os.environ.get("IMAGEN_TORTURE_KEEP"):
        (Path(folder) / f"{time.time():.0f}-{path.name}").write_bytes(path.read_bytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory, t5_folder):
    """Small files of weights of every kind, and what loads them."""
    from imagen_nodes.imagen_core import (
        PRESETS,
        Stage,
        StageConfig,
        load_lora,
        load_stage,
        load_text,
        load_text_encoder,
        save_stage,
        save_text,
    )
    from imagen_nodes.imagen_core.text.embedding import TextEmbedding
    from imagen_nodes.imagen_core.text.prompt import EncodedPrompt

    place = tmp_path_factory.mktemp("models")
    stage = Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"]))
    save_stage(stage, place / "stage.safetensors")
    states = TextEmbedding(torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool))
    save_text(place / "text.safetensors", EncodedPrompt(states, states))
    lora = {"unet.mid.down.weight": torch.randn(2, 8), "unet.mid.up.weight": torch.randn(8, 2)}
    save_file(lora, place / "lora.safetensors")
    torch.save({"shared.weight": torch.randn(4, 8)}, place / "t5.bin")
    t5 = {path.name: path.read_bytes() for path in t5_folder.iterdir()}

    def encoder(path):
        load_text_encoder(path.parent)

    cases = [("stage.safetensors", load_stage), ("text.safetensors", load_text)]
    cases += [
        ("lora.safetensors", lambda path: load_lora(path, stage)),
        ("t5.bin", load_text_encoder),
    ]
    files = [(name, (place / name).read_bytes(), {}, action) for name, action in cases]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        others = {key: data for key, data in t5.items() if key != name}
        files.append((name, t5[name], others, encoder))
    return files


def test_damaged_weights(tmp_path, models, chance, much):
    for n in range(60 * much):
        name, data, others, action = chance.choice(models)
        folder = tmp_path / str(n % 20)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for other, whole in others.items():
            (folder / other).write_bytes(whole)
        if name.endswith(".json") and chance.random() < 0.7:
            text = json.dumps(mutated(json.loads(data), chance))
            (folder / name).write_text(text, "utf-8", "surrogatepass")
        else:
            (folder / name).write_bytes(damaged(data, chance))
        try:
            with bounded(f"case {n} of {name}"):
                action(folder / name)
        except AssertionError:
            keep(folder / name)
            raise


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_pickles_run_no_code_wherever_a_file_is_read(tmp_path, chance, much):
    from imagen_nodes.imagen_core import (
        PRESETS,
        Stage,
        StageConfig,
        load_lora,
        load_stage,
        load_text,
        load_text_encoder,
    )

    stage = Stage(StageConfig("base", 16, 1, PRESETS["tiny-base"]))
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save({"shared.weight": Payload(str(mark)), "a": torch.zeros(3)}, buffer)
    whole = buffer.getvalue()
    assert b"mkdir" in whole
    for n in range(20 * much):
        data = whole if n < 8 else damaged(whole, chance)
        path = tmp_path / chance.choice(["m.bin", "m.pth", "m.safetensors", "m.pt", "m.ckpt"])
        path.write_bytes(data)
        for action in (
            load_stage,
            load_text,
            load_text_encoder,
            lambda file: load_lora(file, stage),
        ):
            with bounded(f"pickle {n}"):
                action(path)
        assert not mark.exists(), "code of a pickle ran"
        path.unlink()


def pictures():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    found = []
    for kind, more in [
        ("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {"save_all": True, "append_images": [image.rotate(90)] * 3}), ("PPM", {}), ("TGA", {}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, kind, **more)
        found.append((kind, buffer.getvalue()))
    return found


def test_damaged_pictures(tmp_path, chance, much):
    sources = pictures()
    token = folders.set(Folders(input=tmp_path))
    try:
        for n in range(100 * much):
            kind, data = chance.choice(sources)
            path = tmp_path / "x.png"
            path.write_bytes(damaged(data, chance))
            try:
                with bounded(f"case {n} of {kind}"), torch.inference_mode():
                    answer = load.LoadImage.VALIDATE_INPUTS("x.png")
                    if answer is True:
                        pixels, _ = load.LoadImage().load("x.png")
                        assert torch.isfinite(pixels).all()
            except AssertionError:
                keep(path)
                raise
    finally:
        folders.reset(token)


GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
}


def test_damaged_rows(tmp_path, chance, much):
    """Of every format: read, keyed, made into graphs; a row that cannot be used is named."""
    from imagen_nodes.headless.jobs import batch
    from imagen_nodes.headless.jobs.output import Layout
    from imagen_nodes.headless.jobs.rows import Rows
    from imagen_nodes.headless.jobs.tasks import Job

    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    registry = default_registry()
    job = Job(tmp_path / "w.json", registry)
    lines = [{"id": f"k{n}", "2.filename_prefix": f"n{n}", "label": n} for n in range(4)]
    whole = {
        "jsonl": "\n".join(map(json.dumps, lines)),
        "csv": "id,2.filename_prefix,label\n" + "\n".join(f'k{n},"n,{n}",{n}' for n in range(4)),
        "txt": "a\nb\nc\n",
    }
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "p.parquet")
        whole["parquet"] = (tmp_path / "p.parquet").read_bytes()
    for n in range(100 * much):
        kind = chance.choice(list(whole))
        data = whole[kind] if isinstance(whole[kind], bytes) else whole[kind].encode()
        path = tmp_path / f"p.{kind}"
        if kind == "jsonl" and chance.random() < 0.6:
            data = "\n".join(json.dumps(mutated(line, chance)) for line in lines).encode()
        else:
            data = damaged(data, chance)
        path.write_bytes(data)
        try:
            with bounded(f"case {n} of {kind}"):
                rows = Rows(path)
                found = batch.scan(rows, job, Layout())
                plan = batch.Plan(bytearray([batch.MAKE]) * len(found.numbers), {})
                for group in batch.grouped(batch.planned_tasks(rows, job, plan, batch.MAKE), 4):
                    for task in group:
                        with contextlib.suppress(WorkflowError, InputError):
                            check(job.graph(task), registry)
        except AssertionError:
            keep(path)
            raise


ANSWERS = {
    "/object_info": {
        "SaveImage": {
            "input": {"required": {"images": ["IMAGE"]}},
            "output": [],
            "output_node": True,
        },
        "Draw": {"input": {"required": {"size": ["INT", {"min": 1}]}}, "output": ["IMAGE"]},
    },
    "/prompt": {"prompt_id": "p", "number": 1, "node_errors": {}},
    "/history/p": {
        "p": {
            "outputs": {
                "2": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}
            },
            "status": {"status_str": "success", "completed": True, "messages": []},
        }
    },
    "/queue": {"queue_running": [[0, "p"]], "queue_pending": []},
    "/view": {},
}


def test_answers_of_a_server_that_is_none(tmp_path, chance, much, monkeypatch):
    """Anything may answer under an address that is typed wrong, and another program under the right one."""
    from imagen_nodes.headless import remote
    from imagen_nodes.headless.graph import Node

    monkeypatch.setattr(remote, "POLL", 0.0)
    strange = [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"null",
        b"1",
        b'{"a": 1}',
        b'{"a": {"input": []}}',
        b"\xff\xfe",
    ]
    server = remote.Server("http://127.0.0.1:1")
    monkeypatch.setattr(server, "_listener", contextlib.nullcontext)
    asked = []

    def answer(request, may_fail=False):
        asked.append(request.selector)
        if len(asked) > 50:
            raise ConnectionError("asks without end")
        path = request.selector.partition("?")[0]
        data = json.dumps(ANSWERS.get(path, {})).encode()
        if path in wrong:
            data = chance.choice(strange)
            if chance.random() < 0.7:
                data = json.dumps(mutated(ANSWERS.get(path, {}), chance)).encode(
                    "utf-8", "surrogatepass"
                )
        return 200, data

    monkeypatch.setattr(server, "_request", answer)
    for n in range(100 * much):
        wrong = {chance.choice(list(ANSWERS))}
        asked.clear()
        with bounded(f"answer {n} to {wrong}", RuntimeError):
            registry = server.registry()
            graph = {
                "1": Node("1", "Draw", "Draw", {"size": 3}),
                "2": Node("2", "SaveImage", "Save", {}),
            }
            check(graph, registry)
            server.run(graph, None, tmp_path / "out", lambda node: None)
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}
