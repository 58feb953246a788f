"""Commands in processes of their own that may be killed: forked from one that has imported everything.

`IMAGEN_TORTURE` says how much of it: the number of kills of each kind, and a hundredth of the damaged
files. The suite does with a few; `make torture` takes more.
"""

import json
import os
import random
import signal
import subprocess
import sys

import pytest

MUCH = int(os.environ.get("IMAGEN_TORTURE", "1"))

ZYGOTE = """
import json, os, resource, signal, sys, time
import torch
torch.set_num_threads(1)
import PIL.Image, PIL.PngImagePlugin, accelerate, transformers
from imagen_nodes.cli import main as cli, node_classes
from imagen_nodes.headless.comfy_nodes import CORE_NODES
from imagen_nodes.headless.engine import execute, progress, together, validate
from imagen_nodes.headless.jobs import batch, output, workers
from imagen_nodes.headless.registry import Registry
from imagen_nodes.imagen_core.formats import convert
from imagen_nodes.imagen_core.training import loop
from imagen_nodes.nodes import NODE_CLASS_MAPPINGS


class Slow:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", ""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})}}

    def make(self, seed):
        time.sleep(0.02)
        return (torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(seed)),)


node_classes.default_registry = lambda: Registry({**CORE_NODES, **NODE_CLASS_MAPPINGS, "Slow": Slow})
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(0)
    if order.get("largest"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"],) * 2)
    sys.argv = ["imagen", *order["run"]]
    code = 99
    try:
        code = cli.main()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
"""


class Child:
    """A command that runs; what it says goes into a file."""

    def __init__(self, zygote, number, log):
        self.zygote, self.number, self.log = zygote, number, log

    def kill(self, sign=signal.SIGKILL):
        os.kill(self.number, sign)

    def wait(self):
        """Its exit code; less than 0 = the signal that ended it."""
        return int(ask(self.zygote, {"wait": self.number}))

    def said(self):
        return self.log.read_text("utf-8", "replace")


def ask(zygote, order):
    zygote.stdin.write(json.dumps(order) + "\n")
    zygote.stdin.flush()
    answer = zygote.stdout.readline()
    assert answer, "the process that starts the others is gone"
    return answer


@pytest.fixture(scope="session")
def zygote():
    if not hasattr(os, "fork") or sys.platform != "linux":
        pytest.skip("needs a system with fork and its limits")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen([sys.executable, "-c", ZYGOTE], env=environment, **pipes)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture
def start(zygote, tmp_path):
    """Starts a command of the command line."""
    count = 0

    def start(*arguments, **limits):
        nonlocal count
        count += 1
        log = tmp_path / f"log{count}"
        log.touch()
        log.chmod(0o666)
        order = {"run": [str(each) for each in arguments], "log": str(log), **limits}
        return Child(zygote, int(ask(zygote, order)), log)

    return start


@pytest.fixture
def much():
    """How many kills of a kind, and hundreds of damaged files."""
    return MUCH


@pytest.fixture
def unfinished():
    """What lies in a folder under a temporary name."""
    return lambda folder: sorted(p.name for p in folder.rglob("*") if p.name.endswith(".writing"))


@pytest.fixture
def chance():
    return random.Random(int(os.environ.get("IMAGEN_TORTURE_SEED", "0")))
