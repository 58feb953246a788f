"""Two processes on one CPU (gloo): one clock, equal weights, one loss; and on in one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

# The first process's clock says three steps, the second's none at all.
SCRIPT = """
import hashlib
from imagen_nodes.imagen_core.training.loop import Run, Watch
from imagen_nodes.imagen_core.training.progress import Clock
from imagen_nodes.imagen_core.training.recipe import load_recipe
run = Run(load_recipe("recipe.toml"), None, Watch(line=lambda line: None, note=lambda line: None))
if run.accelerator.num_processes > 1:
    rank = run.accelerator.process_index
    Clock.own_progress = property(lambda clock: 0.0 if rank else clock.step / 3)
run.go(lambda: False)
digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in run.stage.unet.parameters()))
print("end", run.clock.step, digest.hexdigest(), len(run.ema.averages))
run.log.close()
"""
RECIPE = """
[stage]
preset = "tiny-base"
kind = "base"
resolution = 16
[data]
folder = "pictures"
text_encoder = "t5"
workers = 0
[optim]
lr = 2e-3
warmup_steps = 3
[run]
out = "run"
batch = 4
save_every = 1000
log_every = 1
"""


def launch(folder: Path, processes: int) -> list[list[str]]:
    """Run the script in so many processes; what each said at its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
              "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1}  # fmt: skip
    children = []
    for rank in range(processes):
        own = {**common, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        env = {**os.environ, **{key: str(value) for key, value in own.items()}}
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], cwd=folder, env=env, text=True, stdout=-1, stderr=-1
        )
        children.append(child)
    said = [child.communicate(timeout=240) for child in children]
    assert all(child.returncode == 0 for child in children), said
    return [out.split("end ")[1].split() for out, _ in said]


def test_the_first_clock_decides_and_weights_stay_equal(tmp_path, t5_folder):
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a red apple", "a dog", "a blue heart", "a hill"):
        pixels = np.full((16, 16, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
    (tmp_path / "t5").symlink_to(t5_folder)
    (tmp_path / "recipe.toml").write_text(RECIPE + "minutes = 60.0\n")
    first, second = launch(tmp_path, 2)
    assert first == second
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert len(lines) == int(first[0]) == 3
    (tmp_path / "recipe.toml").write_text(RECIPE + "steps = 5\n")
    ((step, digest, _),) = launch(tmp_path, 1)
    assert int(step) == 5
    assert digest != first[1]
