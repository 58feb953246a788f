"""The most memory that a run of a bundled stage takes beside its weights, and what its shapes predict.

    MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/memory.py STAGE ROWS SIDE TILE DTYPE

Prints one JSON object, in bytes. glibc must give memory back at once, hence the variable. Linux only.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import torch

from imagen_nodes.imagen_core import load_cascade, sample_base, super_resolve
from imagen_nodes.imagen_core.peak import peak_of


def status(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return 1024 * int(found[1])


@torch.no_grad()
def main() -> None:
    """Run the stage once and print what was measured and what was predicted."""
    name, rows, side, tile = sys.argv[1], *map(int, sys.argv[2:5])
    dtype = getattr(torch, sys.argv[5])
    cascade = load_cascade("emoji", dtype=dtype)
    stage, text = getattr(cascade, name), cascade.text_encoder.encode_prompt("a cat")
    small = cascade.sr256
    assert small is not None
    super_resolve(small, torch.rand(1, 16, 16, 3), text, steps=1)  # what the first run loads
    sum(float(each.float().sum()) for each in stage.unet.parameters())  # and maps
    for module in stage.unet.modules():
        getattr(module, "packed", {}).clear()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # forgets the highest so far
    before = status("VmRSS")
    if name == "base":
        sample_base(stage, text, batch_size=rows, height=side, width=side, steps=2)
    else:
        super_resolve(stage, torch.rand(rows, side // 4, side // 4, 3), text, tile=tile, steps=2)
    measured = status("VmHWM") - before
    _, packed, running = peak_of(stage.config, dtype, rows, side, side, tile)
    print(json.dumps({"measured": measured, "predicted": packed + running}))


if __name__ == "__main__":
    main()
