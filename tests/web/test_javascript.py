"""The tests of web/, which need Node.js and nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WEB = HERE.parent.parent / "web"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="Node.js 20 or later is not installed: tests/web not run")
def test_javascript():
    files = sorted(str(path) for path in HERE.glob("*.test.js"))
    done = subprocess.run([str(NODE), "--test", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.search(r"^# pass (\d+)", done.stdout, re.M)[1]) >= 20


def test_texts_are_never_html():
    """What a workflow or a server says is set as text, so it can hold no script."""
    risky = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    for path in WEB.rglob("*.js"):
        assert not re.search(risky, path.read_text("utf-8")), path


def test_one_file_knows_the_app():
    """ComfyUI imports every .js of the folder: modules must do nothing by themselves."""
    for path in WEB.rglob("*.js"):
        text = path.read_text("utf-8")
        assert ("scripts/app.js" in text) == (path == WEB / "imagen.js"), path
        if path != WEB / "imagen.js":
            assert not re.search(r"\b(window|globalThis|localStorage)\.", text), path
