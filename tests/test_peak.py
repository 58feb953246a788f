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
MEASURE = Path(__file__).parents[1] / "benchmarks" / "memory.py"


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
    command = [sys.executable, str(MEASURE), *run.split()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)


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
