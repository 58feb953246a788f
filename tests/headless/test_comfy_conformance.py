"""ComfyUI's own tests of execution against the headless executor, run from the checkout COMFYUI_DIR."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("COMFYUI_DIR")
PLUGIN = Path(__file__).parent / "conformance"
SERVER_ONLY = "not offset and not job"  # windows of the history, the list of jobs


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="COMFYUI_DIR names no checkout of ComfyUI")
def test_comfyuis_own_tests_of_execution_pass():
    """The bodies that need no server: lazy inputs, caching, blockers, loops, coroutines, targets."""
    path = os.pathsep.join([str(PLUGIN), os.environ.get("PYTHONPATH", "")])
    tests = ["tests/execution/test_execution.py", "tests/execution/test_async_nodes.py"]
    options = "-p headless_client -p no:cacheprovider -q --disable-warnings --skip-timing-checks"
    command = [sys.executable, "-m", "pytest", *options.split(), "-c", os.devnull]
    run = subprocess.run(
        [*command, "-k", SERVER_ONLY, *tests],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    counts = run.stdout.splitlines()[-1]
    print(counts)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", counts)[0]) >= 150
