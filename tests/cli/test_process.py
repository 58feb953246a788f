"""What a process of the command line does with its memory."""

import ctypes
import subprocess
import sys

import pytest

TWICE = """
import resource
from imagen_nodes.cli.process import prepare_process
prepare_process()
bytearray(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc only"
)
def test_freed_memory_is_used_again_without_page_faults():
    made = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    assert int(made.stdout) < 1000  # of 16384 pages
