"""The memory of a run, known from shapes: against what the system measures, and tiles chosen by it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagen_nodes.cli.main import main
from imagen_nodes.imagen_core import load_stage, peak
from imagen_nodes.imagen_core.formats.stage import read_stage_config
from imagen_nodes.imagen_core.peak import fitting_tile, peak_of

BUNDLED = Path(peak.__file__).parent / "pretrained" / "emoji"
MEASURE = """
import gc, re, sys
from pathlib import Path
import torch
from imagen_nodes.imagen_core import load_cascade, sample_base, super_resolve
from imagen_nodes.imagen_core.peak import peak_of

def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_grad_enabled(False)
name, rows, side, tile, dtype = sys.argv[1], *map(int, sys.argv[2:5]), getattr(torch, sys.argv[5])
cascade = load_cascade("emoji", dtype=dtype)
stage, text = getattr(cascade, name), cascade.text_encoder.encode_prompt("a cat")
super_resolve(cascade.sr256, torch.rand(1, 16, 16, 3), text, steps=1)  # what the first run loads
sum(float(each.float().sum()) for each in stage.unet.parameters())  # and maps
for module in stage.unet.modules():
    getattr(module, "packed", {}).clear()
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the highest resident size so far is forgotten
before = status("VmRSS")
if name == "base":
    sample_base(stage, text, batch_size=rows, height=side, width=side, steps=2)
else:
    super_resolve(stage, torch.rand(rows, side // 4, side // 4, 3), text, tile=tile, steps=2)
measured = status("VmHWM") - before
_, packed, running = peak_of(stage.config, dtype, rows, side, side, tile)
print((packed + running) / measured)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measured on Linux")
@pytest.mark.parametrize(
    "run",
    [
        "sr256 1 256 0 float32",
        "base 8 64 0 float32",
        "sr1024 1 512 0 bfloat16",
        "sr1024 1 1024 512 float32",
    ],
)
def test_the_peak_is_what_the_system_measures(run):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, *run.split()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert float(done.stdout) == pytest.approx(1, abs=0.1)


def test_tiles_bound_the_network_and_pictures_cost_what_they_hold():
    config, kind = read_stage_config(BUNDLED / "sr1024.safetensors"), torch.float32
    whole, half, small = (
        peak_of(config, kind, 1, 2048, 2048, tile).running for tile in (0, 512, 256)
    )
    assert small < half < whole / 3
    picture = 3 * 4 * 2048**2
    larger = peak_of(config, kind, 1, 4096, 4096, 256).running
    # Twice the side: the tile's part is the same, each of the run's pictures four times as large.
    assert larger - small < 3 * 9 * picture
    assert (
        peak_of(config, torch.bfloat16, 1, 1024, 1024).running
        < 0.6 * peak_of(config, kind, 1, 1024, 1024).running
    )


def test_the_largest_tile_within_a_budget_is_chosen():
    stage = load_stage(BUNDLED / "sr256.safetensors")
    sizes = {tile: peak_of(stage.config, stage.dtype, 1, 512, 512, tile) for tile in (0, 384, 128)}
    for tile, needed in sizes.items():
        budget = needed.packed + needed.running
        assert fitting_tile(stage, 1, 512, 512, budget=budget) == tile
    assert fitting_tile(stage, 1, 512, 512, budget=0) == peak.TILES[-1]


def test_info_tells_the_peak_of_each_stage(capsys):
    assert main(["info", str(BUNDLED / "sr256.safetensors"), "--memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 5 < found["sr 256 x 256 in tiles of 128, MB"] < found["sr 256 x 256, MB"] < 60
