"""Batches of many rows: what a row costs in memory and time, before it is made and while others are."""

import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import time
import tracemalloc

import pytest

from imagen_nodes.cli.node_classes import use_folders
from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.files import remove_leftovers
from imagen_nodes.headless.graph import WorkflowError
from imagen_nodes.headless.inputs import InputError
from imagen_nodes.headless.jobs import batch as jobs
from imagen_nodes.headless.jobs import manifest, workers
from imagen_nodes.headless.jobs import rows as rows_of
from imagen_nodes.headless.jobs.manifest import Share, read_history
from imagen_nodes.headless.jobs.output import Layout, Output
from imagen_nodes.headless.jobs.rows import Rows
from imagen_nodes.headless.jobs.tasks import Choices, Job
from imagen_nodes.headless.registry import Registry

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
}


class EmptyImage:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):
        whole = ("INT", {"default": 16, "min": 1})
        return {"required": dict.fromkeys(("width", "height"), whole) | {"color": ("INT", {})}}

    def make(self, width, height, color):
        import torch

        return (torch.full((1, height, width, 3), (color % 256) / 255),)


NODES = Registry({**CORE_NODES, "EmptyImage": EmptyImage})


def prepared(folder, count, missing=()):
    """A job of many rows, all done but some."""
    (folder / "w.json").write_text(json.dumps(GRAPH))
    with (folder / "p.jsonl").open("w") as file:
        for n in range(count):
            file.write(json.dumps({"id": f"k{n:07}", "color": n, "label": n % 100}) + "\n")
    job, rows = Job(folder / "w.json", NODES), Rows(folder / "p.jsonl")
    out = folder / "out"
    with open_manifest(out) as file:
        for n, row in enumerate(rows.read()):
            (task,) = job.tasks(row)
            name = f"{task.key[:5]}/{task.key}.png"
            if n % 1000 == 0:
                (out / task.key[:5]).mkdir(exist_ok=True)
            if n in missing:
                continue
            os.close(os.open(out / name, os.O_CREAT | os.O_WRONLY))
            start = {"made_of": task.made_of, "key": task.key, "state": "done", "files": [name]}
            more = {"attempt": 1, "line": n + 1, "values": row.values, "sha256": ["0" * 64]}
            file.write(json.dumps({**start, **more}) + "\n")
    return job, rows, out


def open_manifest(out):
    out.mkdir()
    return (out / "manifest.jsonl").open("w")


def test_a_row_that_is_done_costs_some_bytes(tmp_path):
    count = 5_000
    job, rows, out = prepared(tmp_path, count, missing=(7, count - 1))
    tracemalloc.start()
    found = jobs.scan(rows, job, Layout())
    plan = jobs.make_plan(found, Share(), read_history(out))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.todo == 2
    assert plan.counts["skipped"] == count - 2
    made = [
        task.key
        for group in jobs.grouped(jobs.planned_tasks(rows, job, plan, jobs.MAKE), 16)
        for task in group
    ]
    assert made == ["k0000007", f"k{count - 1:07}"]
    assert peak < 200 * count, f"{peak / count:.0f} bytes a row"


def test_a_row_that_is_done_costs_few_calls(tmp_path):
    """What a million rows cost, counted where a clock would measure the computer."""
    count = 2_000
    job, rows, out = prepared(tmp_path, count, missing=(7, count - 1))
    jobs.scan(rows, job, Layout())  # what is done once, is done
    calls = 0

    def counted(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        plan = jobs.make_plan(jobs.scan(rows, job, Layout()), Share(), read_history(out))
        made = list(jobs.planned_tasks(rows, job, plan, jobs.MAKE))
    finally:
        sys.setprofile(None)
    assert [place for place, _ in made] == [7, count - 1]
    assert calls < 20 * count, f"{calls / count:.1f} calls a row"


def test_names_in_a_large_folder_are_not_kept(tmp_path):
    count = 5_000
    for n in range(count):
        (tmp_path / f"{n}.png").touch()
    (tmp_path / "manifest.jsonl").touch()
    tracemalloc.start()
    remove_leftovers(tmp_path)
    assert manifest.manifests(tmp_path) == [tmp_path / "manifest.jsonl"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * count, f"{peak / count:.0f} bytes a name"


def test_of_what_archives_hold_no_line_is_decoded(tmp_path, monkeypatch):
    _, _, out = prepared(tmp_path, 100)
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    for record in lines[10:90]:
        (out / record["files"][0]).unlink()
    (out / "s.tar").touch()
    packed = {"packed": "s.tar", "tasks": [record["made_of"] for record in lines[:90]]}
    manifest.append(out / "manifest.jsonl", [packed])
    history = read_history(out)
    assert len(history.done) == 100
    output = Output(out, Layout("webdataset"), Share(), history)
    decoded, read_record = [], manifest.read_record
    monkeypatch.setattr(
        manifest, "read_record", lambda line: decoded.append(line) or read_record(line)
    )
    output.find_loose(history)
    assert len(decoded) == 20
    assert output.loose == lines[90:]
    assert sorted(path.stem for path in out.rglob("*.png")) == [r["key"] for r in lines[90:]]


def test_what_another_share_records_meanwhile_is_not_superseded(tmp_path, monkeypatch):
    line = {"made_of": "0" * 32, "key": "a", "state": "done", "files": ["a.png"], "attempt": 1}
    path, newest = tmp_path / "manifest-2-of-2.jsonl", manifest._newest
    manifest.append(path, [line, {**line, "made_of": "1" * 32, "files": ["b.png"]}])

    def meanwhile(out):
        found = newest(out)
        manifest.append(path, [{**line, "key": "c", "files": ["c.png"]}])
        return found

    monkeypatch.setattr(manifest, "_newest", meanwhile)
    assert manifest.superseded(tmp_path) == {"a.png"}


ODD_LINES = [
    b"", b"  ", b"\t{}  ", b"[1]", b"3", b"{}, {}", b'{"a": [1', b'2]}', b'{"a": [[1', b"],[{", b"not JSON",
    b'{"color": 1}', b'{"id": "k1", "color": 1, "label": null}', b'{"color": 1.5, "id": 7}',
    b'{"color": "red"}', b'{"id": "", "color": 3}', b'{"id": 2.5, "color": 3}', b'{"colour": 1}',
    b'{"label": {"b": [1, 2], "a": NaN}, "color": 2}', b'{"color": -0.0, "color": 10}',
    b'{"id": "../x y", "color": 4, "label": "\\ud800\xc3\xa9"}',
]  # fmt: skip


@pytest.mark.parametrize("block", [1, 200, 2**16])
@pytest.mark.parametrize("choices", [Choices(), Choices(None, "label", 3)])
def test_rows_looked_at_together_are_what_they_are_one_by_one(
    tmp_path, monkeypatch, block, choices
):
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    chance, path = random.Random(0), tmp_path / "p.jsonl"
    plain = [json.dumps({"color": n, "label": f"l{n}"}).encode() for n in range(30)]
    taken, takes = 0, jobs.Scan.takes

    def scanned():
        try:
            found = jobs.scan(Rows(path), Job(tmp_path / "w.json", NODES, choices), Layout(), 3)
        except (WorkflowError, InputError) as error:
            return str(error)
        return vars(found)

    def counted(found, rows, *more):
        nonlocal taken
        result = takes(found, rows, *more)
        taken += len(rows) * result
        return result

    for n in range(60):
        odd = chance.sample(ODD_LINES, n % 4)
        lines = [*plain[:5], *chance.sample([*plain[5:], *odd], 25 + len(odd))]
        path.write_bytes(b"\xef\xbb\xbf" * (n % 2) + b"\n".join(lines) + b"\n" * (n % 3))
        monkeypatch.setattr(rows_of, "BLOCK", block)
        monkeypatch.setattr(jobs.Scan, "takes", counted)
        found = scanned()
        monkeypatch.setattr(jobs.Scan, "takes", lambda *_: False)
        monkeypatch.setattr(rows_of, "all_decoded", lambda lines: None)
        assert found == scanned(), path.read_bytes()
        monkeypatch.undo()
    assert taken > 300 or block == 2**16  # where one odd row is in the only block


@pytest.mark.parametrize("block", [1, 300, 2**16])
def test_lines_read_at_once_tell_what_they_tell_one_by_one(tmp_path, monkeypatch, block):
    """Done ones in bulk; among them failed, damaged and strange ones, and files that are not there."""
    _, _, out = prepared(tmp_path, 40)
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    failed = [line.replace(b'"done"', b'"failed"') for line in lines]
    strange = [b'{"made_of": 3}\n', b"not JSON\n", lines[7].replace(b"k0000007", b'k\\"7'), b"\n"]
    strange.insert(0, lines[7].replace(b"k0000007", b"k\xff000007"))
    none = [lines[8].replace(b'["k0000/k0000008.png"]', b"[]").replace(b"k0000008", b"none")]
    mixed = [*lines[:9], *failed[3:6], *lines[9:20], *failed[18:25], *strange, *lines[4:], *none]
    (out / "manifest.jsonl").write_bytes(b"".join(mixed) + failed[30] + lines[31][:-20])
    (out / "k0000" / "k0000011.png").unlink()
    monkeypatch.setattr(manifest, "BLOCK", block)
    found = read_history(out)
    monkeypatch.setattr(manifest._Reader, "take_block", lambda reader, block: False)
    expected = read_history(out)
    assert found.done.tolist() == expected.done.tolist()
    assert found.keys.tolist() == expected.keys.tolist()
    assert found.failed == expected.failed
    assert (len(found.done), len(found.keys), len(found.failed)) == (40, 42, 2)


IDLE = """
import sys
sys.path.insert(0, sys.argv[1])
import test_batch_size as here
from imagen_nodes.cli import node_classes
from imagen_nodes.cli.main import main
node_classes.default_registry()
node_classes.default_registry = lambda: here.NODES
assert main(["batch", *sys.argv[2:]]) == 0
heavy = {"torch", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""


PIECES = """
import resource
from imagen_nodes.cli.process import keep_freed_memory
from imagen_nodes.headless.jobs.workers import give_back_freed_memory
def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
keep_freed_memory()
pieces = [bytearray(b"x" * 50_000) for _ in range(4000)]
pieces = pieces[::100]
before = size()
give_back_freed_memory()
print(before - size())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only"
)
def test_memory_freed_between_pieces_that_stay_goes_back(tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, check=True)
    assert float(done.stdout) > 100

    times = []
    monkeypatch.setattr(workers, "TIDY", 10)
    monkeypatch.setattr(workers, "give_back_freed_memory", lambda: times.append(1))
    job, rows, _ = prepared(tmp_path, 50)
    (tmp_path / "scratch").mkdir()
    here = workers.Here(job, tmp_path / "scratch", tmp_path, use_folders)
    tasks = [task for row in rows.read() for task in job.tasks(row)]
    for first in range(0, 50, 4):
        assert not any(each.error for each in here.run(tasks[first : first + 4]))
    assert len(times) == 4  # after 12, 24, 36 and 48


def test_a_batch_with_nothing_to_make_loads_no_torch(tmp_path):
    """Its import alone takes longer than to look through a hundred thousand rows."""
    prepared(tmp_path, 3)
    arguments = [str(tmp_path / "p.jsonl"), "--workflow", str(tmp_path / "w.json")]
    command = [sys.executable, "-c", IDLE, os.path.dirname(__file__), *arguments]
    subprocess.run([*command, "-o", str(tmp_path / "out")], check=True)


MILLION = """
import resource, sys, time
started = time.process_time()
from imagen_nodes.cli import node_classes
sys.path.insert(0, sys.argv[1])
import test_batch_size as here
from imagen_nodes.headless.jobs import batch as jobs
node_classes.default_registry = lambda: here.NODES
def run(self, pool, groups):
    assert len(next(groups)) == 1
    print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    raise SystemExit
jobs.Batch.run = run
from imagen_nodes.cli.main import main
main(["batch", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_a_resumed_batch_of_a_million_rows_starts_in_seconds(tmp_path):
    """Two minutes, most of them to make a million files."""
    prepared(tmp_path, 1_000_000, missing=(500_000,))
    arguments = [str(tmp_path / "p.jsonl"), "--workflow", str(tmp_path / "w.json")]
    command = [sys.executable, "-c", MILLION, os.path.dirname(__file__), *arguments]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    seconds, megabytes = map(float, done.stdout.split())
    print(f"{seconds:.1f} s of CPU time, {megabytes:.0f} MB")
    assert seconds < 12  # 5.6 on the computer that it was written on
    assert megabytes < 500


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_rows(tmp_path, monkeypatch):
    from imagen_nodes.cli import node_classes
    from imagen_nodes.cli.main import main

    monkeypatch.setattr(node_classes, "default_registry", lambda: NODES)
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"color": n}) + "\n" for n in range(10_000))
    )
    sizes, take = [], jobs.Batch._take

    def watched(self, outcomes, later):
        take(self, outcomes, later)
        if self.done % 1000 == 0:
            with open("/proc/self/statm") as file:
                sizes.append(int(file.read().split()[1]) * resource.getpagesize() / 2**20)

    monkeypatch.setattr(jobs.Batch, "_take", watched)
    started = time.monotonic()
    arguments = [str(tmp_path / "p.jsonl"), "--workflow", str(tmp_path / "w.json")]
    assert main(["batch", *arguments, "-o", str(tmp_path / "out")]) == 0
    print(f"{10_000 / (time.monotonic() - started):.0f} rows a second, MB after each 1000: {sizes}")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 10_000
    assert sizes[-1] - sizes[1] < 10
