"""A full disk, a read-only one, SIGTERM, two at once, a power cut: clear ends, and it goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from imagen_nodes.headless import files
from imagen_nodes.headless.jobs import manifest
from imagen_nodes.headless.jobs.manifest import append

GRAPH = {
    "1": {"class_type": "Slow", "inputs": {"seed": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
}


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(GRAPH))
    lines = [{"id": f"k{n}", "Slow.seed": 1000 + n} for n in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def command(out, *more):
        paths = ["batch", tmp_path / "p.jsonl", "--workflow", tmp_path / "w.json", "-o", out]
        return [*paths, *more]

    return command


def finished_later(start, command, out):
    """The batch goes on once the fault is gone, and makes each key once."""
    child = start(*command)
    assert child.wait() == 0, child.said()
    done = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in done) == sorted(f"k{n}" for n in range(40))
    assert len(list(out.rglob("*.png"))) == 40


def test_a_file_that_may_not_grow_stops_a_batch(start, rows, tmp_path, unfinished):
    out = tmp_path / "out"
    child = start(*rows(out), largest=8000)  # of the manifest
    assert child.wait() == 1
    assert f"{out}: cannot be written to: File too large; make room" in child.said()
    assert "Traceback" not in child.said()
    assert unfinished(out) == []
    finished_later(start, rows(out), out)


def test_what_does_not_fit_into_the_manifest_leaves_no_part_of_a_line(tmp_path):
    resource = pytest.importorskip("resource")
    manifest, first = tmp_path / "manifest.jsonl", {"key": "a", "state": "done"}
    append(manifest, [first])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (manifest.stat().st_size + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(manifest, [{"key": "b", "state": "done"}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert manifest.read_text() == json.dumps(first) + "\n"


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts a disk, and not in every container")

    def again(options):
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)

    yield folder, again
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_a_batch(start, rows, disk, unfinished):
    out = disk[0] / "out"
    child = start(*rows(out))
    assert child.wait() == 1, child.said()
    assert "No space left on device; make room" in child.said()
    assert "Traceback" not in child.said()
    assert unfinished(out) == []
    disk[1]("size=8m")
    finished_later(start, rows(out), out)


@pytest.mark.parametrize("kind", ["imagefolder", "webdataset"])
def test_a_disk_that_is_full_at_the_end_is_one_clear_error(start, rows, disk, unfinished, kind):
    """The images have room; the metadata beside them, or the archive, has none."""
    out = disk[0] / "out"
    more = ["--format", kind]
    disk[1]("size=8m")
    assert start(*rows(out)).wait() == 0
    files = [*out.rglob("*.png"), out / "manifest.jsonl"]
    needed = sum(path.stat().st_blocks for path in files) // 2
    shutil.rmtree(out)
    disk[1](f"size={needed}k")
    child = start(*rows(out, *more))
    assert child.wait() == 1, child.said()
    assert f"{out}: " in child.said()
    assert "No space left on device; make room" in child.said()
    assert "Traceback" not in child.said()
    assert unfinished(out) == []
    disk[1]("size=8m")
    child = start(*rows(out, *more))
    assert child.wait() == 0, child.said()
    done = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in done if "key" in line) == sorted(
        f"k{n}" for n in range(40)
    )


@pytest.mark.parametrize("command", ["batch", "run", "generate", "convert"])
def test_a_read_only_disk_is_one_clear_error(start, rows, disk, tmp_path, command):
    out = disk[0] / "out"
    out.mkdir()
    disk[1]("ro")
    source = Path(__file__).parents[2] / "imagen_core/pretrained/emoji/sr256.safetensors"
    arguments = {
        "batch": rows(out),
        "run": ["run", tmp_path / "w.json", "-o", out],
        "generate": ["generate", "x", "-o", out / "x.png"],
        "convert": ["convert", source, out / "x.safetensors", "--layout", "imagen"],
    }[command]
    child = start(*arguments)
    assert child.wait() in (1, 2), child.said()
    assert "Traceback" not in child.said()
    assert str(out) in child.said()
    assert list(out.iterdir()) == []


def test_sigterm_ends_a_batch_in_order(start, rows, tmp_path, unfinished):
    out = tmp_path / "out"
    child, manifest = start(*rows(out)), out / "manifest.jsonl"
    while len(list(out.rglob("*.png"))) < 3:  # so that one row at least is whole
        time.sleep(0.02)
    child.kill(signal.SIGTERM)
    assert child.wait() == 130, child.said()
    assert "interrupted" in child.said()
    assert unfinished(out) == []
    assert 0 < len(manifest.read_text().splitlines()) < 40
    finished_later(start, rows(out), out)


def test_two_batches_at_once_make_each_row_once(start, rows, tmp_path):
    out = tmp_path / "out"
    children = [start(*rows(out)) for _ in range(2)]
    codes = sorted(child.wait() for child in children)
    assert codes in ([0, 0], [0, 2])
    if codes == [0, 2]:
        assert any(
            "another imagen batch works in this folder" in child.said() for child in children
        )
    finished_later(start, rows(out), out)


class Disk:
    """What a power cut would leave below a folder: of files and folders what was synced, at that moment."""

    def __init__(self, root, monkeypatch):
        self.root, self.contents, self.listings, self.folders = root, {}, {}, {}
        sync, together = os.fsync, files.sync_all

        def watched(number):
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
            sync(number)
            self.note(path, number)

        def all_together(paths):
            together(paths)
            if len(paths) > files.FEW:  # the whole disk
                for folder, _, names in os.walk(self.root):
                    self.note(Path(folder))
                    for name in names:
                        self.note(Path(folder, name))

        monkeypatch.setattr(os, "fsync", watched)
        for module in (files, __import__("imagen_nodes.headless.jobs.output", fromlist=["x"])):
            monkeypatch.setattr(module, "sync_all", all_together)

    def note(self, path, number=None):
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            entries = {name: (path / name).stat().st_ino for name in os.listdir(path)}
            self.listings[path.stat().st_ino] = entries
            return
        found = os.fstat(number) if number is not None else path.stat()
        source = f"/proc/self/fd/{number}" if number is not None else path
        self.contents[found.st_ino] = Path(source).read_bytes()

    def after_the_cut(self, target):
        """The folder as it would be found."""

        def restore(inode, folder):
            folder.mkdir()
            for name, inner in self.listings.get(inode, {}).items():
                if inner in self.listings:
                    restore(inner, folder / name)
                else:
                    (folder / name).write_bytes(self.contents.get(inner, b""))

        restore(self.root.stat().st_ino, target)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs the names of open files")
@pytest.mark.parametrize("kind", ["files", "imagefolder", "webdataset"])
def test_a_power_cut_leaves_no_record_without_its_pictures(tmp_path, monkeypatch, kind):
    """At each commit the disk is cut off: what is recorded is there and whole."""
    from imagen_nodes.headless.jobs.output import Layout, Output
    from imagen_nodes.headless.jobs.rows import Row
    from imagen_nodes.headless.jobs.tasks import Task
    from imagen_nodes.headless.jobs.workers import Outcome, Staged

    out = tmp_path / "out"
    out.mkdir()
    disk = Disk(out, monkeypatch)
    (out / "manifest.jsonl").touch()
    files.sync_folder(out)
    output = Output(out, Layout(kind, "", 6), manifest.Share(), manifest.read_history(out))
    chance = random.Random(0)
    for group in range(6):
        outcomes = []
        for n in range(chance.choice([1, 2, 9])):
            key = f"k{group}-{n}"
            path = tmp_path / key
            Image.effect_noise((8, 8), 50).save(path, "PNG")
            inner = out / f"staged-{key}"
            shutil.move(path, inner)
            task = Task(Row(1, {"id": key}), 1, key, os.urandom(16))
            outcomes.append(Outcome(task, [Staged("p_00001_.png", inner)]))
        output.commit(outcomes, {})
        found = tmp_path / f"cut{group}"
        disk.after_the_cut(found)
        lines = (found / "manifest.jsonl").read_text().splitlines()
        told = [record for line in lines if "packed" not in (record := json.loads(line))]
        assert {f"k{group}-{n}" for n in range(len(outcomes))} <= {r["key"] for r in told}
        history = manifest.read_history(found)
        assert len(history.done) == len(told), "a record without its picture"
        for path in found.rglob("*.png"):
            if not path.name.startswith("staged"):
                Image.open(path).load()
