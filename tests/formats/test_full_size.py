"""DeepFloyd IF's largest network at full size: 4.3 billion random half-precision weights, in shards.

Minutes, 9 GB of disk and 10 GiB of memory: `pytest -m slow tests/formats/test_full_size.py`.
"""

import json
import subprocess
import sys
from math import prod

import pytest
import torch

from imagen_nodes.imagen_core import ADMConfig
from imagen_nodes.imagen_core.formats.deepfloyd import stage_config
from imagen_nodes.imagen_core.formats.diffusers_config import to_diffusers
from imagen_nodes.imagen_core.formats.stage import foreign_shapes, table_of
from imagen_nodes.imagen_core.stage import build_unet
from imagen_nodes.imagen_core.weights.files import write_tensors

XL = ADMConfig(
    channels=(704, 1408, 2112, 2816),
    num_res_blocks=(3, 3, 3, 3),
    attention=(False, True, True, True),
    text_dim=4096,
    context_dim=2816,
    time_dim=2816,
    out_channels=6,
)
PARAMETERS = 4_304_695_110
SHARDS = 4

STEP = """
import resource, sys, time, torch
from imagen_nodes.imagen_core import EncodedPrompt, Guidance, TextEmbedding, load_stage, sample_base
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, started = peak(), time.monotonic()
stage = load_stage(sys.argv[1], dtype=torch.bfloat16)
loaded, seconds = peak(), time.monotonic() - started
text = TextEmbedding(torch.randn(1, 77, 4096), torch.ones(1, 77, dtype=torch.bool))
image = sample_base(stage, EncodedPrompt(text, text), guidance=Guidance(1.0), steps=1)
assert image.shape == (1, 64, 64, 3) and image.isfinite().all()
print(before, loaded, peak(), seconds, time.monotonic() - started - seconds)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in diffusers' layout, written shard by shard from one random block."""
    folder = tmp_path_factory.mktemp("IF-I-XL")
    block = (0.02 * torch.randn(2**24, generator=torch.Generator().manual_seed(0))).half()
    with torch.device("meta"):
        wanted = build_unet(XL).state_dict()
    table = table_of(stage_config(XL), "diffusers", set(wanted))
    shapes = foreign_shapes(table, wanted, XL.head_dim)
    assert sum(map(prod, shapes.values())) == PARAMETERS

    def produce(name):
        size = prod(shapes[name])
        return block.repeat(-(-size // len(block)))[:size].reshape(shapes[name])

    names, weight_map = sorted(shapes), {}
    for k in range(SHARDS):
        file = f"diffusion_pytorch_model-{k + 1:05d}-of-{SHARDS:05d}.safetensors"
        plan = {
            n: torch.empty(shapes[n], dtype=block.dtype, device="meta") for n in names[k::SHARDS]
        }
        write_tensors(folder / file, plan, {}, produce)
        weight_map |= dict.fromkeys(plan, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(to_diffusers(XL)))
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="resident memory is measured as Linux counts it"
)
def test_stage_one_xl_loads_and_takes_a_step(folder):
    run = subprocess.run(
        [sys.executable, "-c", STEP, str(folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    before, loaded, stepped, load_seconds, step_seconds = map(float, run.stdout.split())
    print(
        f"weights {2 * PARAMETERS / 1e9:.2f} GB; peak after loading {loaded / 1e9:.2f} GB, of which "
        f"{before / 1e9:.2f} before it, in {load_seconds:.0f} s; after a step {stepped / 1e9:.2f} GB, "
        f"{step_seconds:.0f} s"
    )
    assert loaded < 1.15 * 2 * PARAMETERS
    assert stepped < 24 * 2**30
