"""A picture of 1024 to 4096 in tiles: what memory it takes, and that no seam is seen.

Minutes: `pytest -m slow tests/test_large_pictures.py`.
"""

import json
import subprocess
import sys

import pytest

GIB = 2**30
RUN = """
import json, resource, sys, time
import torch
from imagen_nodes.imagen_core import load_cascade, super_resolve
from imagen_nodes.imagen_core.diffusion.tiles import windows

tile = int(sys.argv[1])
cascade = load_cascade("emoji")
text = cascade.text_encoder.encode_prompt("a castle, noto style")
rough = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
image = torch.nn.functional.interpolate(rough, scale_factor=8, mode="bicubic").clamp(0, 1)
started = time.perf_counter()
large = super_resolve(cascade.sr1024, image.permute(0, 2, 3, 1), text, tile=tile)[0].mean(-1)
seconds = time.perf_counter() - started
edges = {}
for axis, steps in (("top", large.diff(dim=0).abs()), ("left", large.diff(dim=1).abs().T)):
    borders = set()
    for window in windows(*large.shape, tile, cascade.sr1024.unet.size_multiple):
        side = window.height if axis == "top" else window.width
        borders |= {getattr(window, axis) - 1, getattr(window, axis) + side - 1}
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[[line for line in borders if 0 <= line < len(steps)]] = True
    edges[axis] = float(steps[at].mean() / steps[~at].mean())
print(json.dumps({
    "shape": list(large.shape),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "seconds": seconds,
    "edges": edges,
}))
"""


@pytest.mark.slow
def test_1024_to_4096_in_tiles_fits_and_shows_no_seams():
    done = subprocess.run(
        [sys.executable, "-c", RUN, "512"], check=True, capture_output=True, text=True
    )
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["shape"] == [4096, 4096]
    assert measured["peak"] < 6 * GIB
    # The picture is the same everywhere, statistically: a seam would show as a steeper edge.
    for ratio in measured["edges"].values():
        assert ratio < 1.05
