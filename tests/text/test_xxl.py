"""T5-XXL at full size, float8: loads and encodes one prompt within 6.5 GiB. Minutes, so not by default."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from imagen_nodes.imagen_core.text.t5 import T5Config
from imagen_nodes.imagen_core.text.tokenizer import unigram

XXL = T5Config(vocab=32128, width=4096, layers=24, heads=64, head_dim=64, hidden=10240)
GIB = 2**30
CHUNK = 2**24

CHECK = """
import json, resource, sys, time
from imagen_nodes.imagen_core import load_text_encoder
started = time.perf_counter()
encoder = load_text_encoder(sys.argv[1])
loaded = time.perf_counter()
states = encoder.encode(["a red apple on a hill"])
print(json.dumps({
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "load_s": loaded - started,
    "encode_s": time.perf_counter() - loaded,
    "shape": list(states.embeds.shape),
    "finite": bool(states.embeds.isfinite().all()),
    "deviation": float(states.embeds.std()),
}))
"""


def write_float8(path):
    """A safetensors file of random small numbers, written piece by piece; the bytes of its weights."""
    generator = np.random.default_rng(0)
    header, sizes, end = {}, [], 0
    for name, shape in XXL.shapes().items():
        half = len(shape) == 1 or "bias" in name
        size = int(np.prod(shape)) * (2 if half else 1)
        kind = "F16" if half else "F8_E4M3"
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        sizes.append((size, half))
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size, half in sizes:
            if half:
                file.write(np.ones(size // 2, dtype=np.float16).tobytes())
                continue
            for first in range(0, size, CHUNK):
                raw = generator.integers(0, 256, min(CHUNK, size - first), dtype=np.uint8)
                file.write((raw & 0x9F).tobytes())  # sign, and magnitudes below 0.12
    return end


@pytest.mark.slow
def test_t5_xxl_in_float8_fits(tmp_path):
    if shutil.disk_usage(tmp_path).free < 8 * GIB:
        pytest.skip("needs 5 GiB of disk")
    path = tmp_path / "t5xxl_fp8_e4m3fn.safetensors"
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"\u2581w{k}", -10.0) for k in range(32097)]
    unigram([*special, *words], None).save(str(tmp_path / "tokenizer.json"))
    try:
        weights = write_float8(path)
        done = subprocess.run(
            [sys.executable, "-c", CHECK, str(path)], check=True, capture_output=True, text=True
        )
    finally:
        path.unlink(missing_ok=True)
    measured = json.loads(done.stdout)
    print(f"weights {weights / GIB:.2f} GiB, {measured}")
    assert weights > 4.7e9
    assert measured["finite"]
    assert measured["deviation"] > 0.1
    assert measured["shape"] == [1, 77, 4096]
    assert measured["peak"] < 6.5 * GIB
