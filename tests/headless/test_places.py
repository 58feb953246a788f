"""Files under final names: whole, on the disk, one for each process; what dead processes left is removed."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from imagen_nodes.files import owner, replacing, temporary_path
from imagen_nodes.headless import files
from imagen_nodes.headless.comfy_nodes import save
from imagen_nodes.headless.comfy_nodes.folders import Folders, folders

SAVER = """
import sys
from pathlib import Path
import torch
from imagen_nodes.headless.comfy_nodes import save
from imagen_nodes.headless.comfy_nodes.folders import Folders, folders
folders.set(Folders(output=Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(8):
    save.SaveImage().save(torch.rand(2, 4, 4, 3), "p")
"""


def test_processes_that_save_at_once_lose_nothing(tmp_path):
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for each in running:
        assert each.stdout.readline() == "ready\n"
    for each in running:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in running:
        each.communicate()
        assert each.returncode == 0
    assert sorted(os.listdir(tmp_path)) == [f"p_{n:05}_.png" for n in range(1, 49)]


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_was_taken_meanwhile_is_spared(tmp_path, monkeypatch, links):
    """Another process saves between the look at the folder and the write; also where there are no links."""
    if not links:

        def refuse(source, target):
            raise OSError(errno.EPERM, "no hard links")

        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "p_00001_.png").write_bytes(b"another's")
    monkeypatch.setattr(save, "next_counter", lambda folder, stem: 1)
    token = folders.set(Folders(output=tmp_path))
    try:
        shown = save.SaveImage().save(torch.rand(2, 4, 4, 3), "p")
    finally:
        folders.reset(token)
    names = [entry["filename"] for entry in shown["ui"]["images"]]
    assert names == ["p_00002_.png", "p_00003_.png"]
    assert (tmp_path / "p_00001_.png").read_bytes() == b"another's"
    assert sorted(os.listdir(tmp_path)) == ["p_00001_.png", *names]


def test_file_and_folder_are_synced_before_a_save_returns(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def watch(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        sync(number)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not tell the names of open files")
    monkeypatch.setattr(os, "fsync", watch)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert [Path(name).name for name in synced] == [temporary.name, tmp_path.name]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    computer = owner().partition("-")[0]
    dead, alive = dead_process(), os.getppid()
    gone = [f".a.png.{computer}-{dead}-0.writing", f".folder.{computer}-{dead}-7.writing"]
    old = [".b.png.000000-1-0.writing", ".c.safetensors.123.writing"]
    stays = [f".d.png.{computer}-{alive}-0.writing", ".e.png.000000-1-0.writing", "f.png.writing"]
    for name in [gone[0], *old, *stays]:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / gone[1]).mkdir()
    (tmp_path / gone[1] / "part").write_bytes(b"half")
    for name in old:
        os.utime(tmp_path / name, (time.time() - 2 * files.STALE,) * 2)
    files.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(stays)
    files.remove_leftovers(tmp_path / "not there")


def test_temporaries_are_known_by_their_names(tmp_path):
    for name in ("stage.safetensors", "x" * 250):
        found = files.UNFINISHED.fullmatch(temporary_path(tmp_path / name).name)
        assert found[1] == owner().partition("-")[0]
        assert int(found[2]) == os.getpid()
