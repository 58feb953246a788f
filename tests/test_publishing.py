"""What the registry and ComfyUI's template browser read."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_registry_takes_the_name_and_the_requirements(project):
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,98}", project["project"]["name"])
    assert "comfyui" not in project["project"]["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert project["project"]["dependencies"] == [], "nothing may replace the host's packages"
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] == "Imagen Nodes"
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    assert "web" not in comfy, (
        "WEB_DIRECTORY serves the scripts; a second place would load them twice"
    )


def test_a_build_has_nothing_to_warn_of(project):
    """setuptools deprecates the licence as a table, and takes folders of data for packages left out."""
    assert project["project"]["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in project["project"]["license-files"])
    setuptools = project["tool"]["setuptools"]
    assert setuptools["include-package-data"] is False
    names = {"cli", "headless", "imagen_core", "nodes"}
    folders = {f.parent.relative_to(ROOT) for f in ROOT.glob("*/**/__init__.py")}
    found = {".".join(f.parts) for f in folders if f.parts[0] in names}
    assert set(setuptools["packages"]) == {"imagen_nodes"} | {f"imagen_nodes.{f}" for f in found}


def test_icon_and_banner_have_the_registry_s_shapes(project):
    icon, banner = (ROOT / project["tool"]["comfy"][key] for key in ("Icon", "Banner"))
    assert max(Image.open(icon).size) <= 400
    width, height = Image.open(banner).size
    assert width * 9 == height * 21
    assert icon.stat().st_size + banner.stat().st_size < 200_000


def test_the_ignore_list_is_anchored():
    """A bare docs/ would take the help pages in web/docs with it."""
    lines = (ROOT / ".comfyignore").read_text("utf-8").split()
    assert lines
    assert all(re.fullmatch(r"/[.\w]+/", line) for line in lines)
    assert not {"/web/", "/nodes/", "/cli/", "/headless/", "/imagen_core/", "/locales/"} & set(
        lines
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_template_has_a_thumbnail_a_note_and_its_api_twin(path):
    """DeepFloyd IF's show their graph: a picture of theirs would need weights that do not ship."""
    thumbnail = path.with_suffix(".jpg")
    of_graphs = path.stem.startswith("if_")
    recipe = "graph_thumbnails.py" if of_graphs else f"example_workflows.py --pictures {path.stem}"
    assert thumbnail.is_file(), f"python tools/{recipe}"
    assert 8_000 < thumbnail.stat().st_size < 100_000, "blank, or large"
    nodes = json.loads(path.read_text("utf-8"))["nodes"]
    notes = [node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote"]
    assert notes
    assert "`" not in "".join(notes), "Nodes 2.0 writes inline code in blue on blue"
    assert (path.parent / "api" / path.name).is_file()


def test_hooks_and_checks_use_the_same_tools(project):
    """ruff, oxlint and pyright: what a commit is checked with is what `make lint` installs."""
    dev = project["project"]["optional-dependencies"]["dev"]
    pinned = {line.split("[")[0].split("==")[0]: line for line in dev if "==" in line}
    assert set(pinned) == {"ruff", "pyright", "oxlint"}
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    used = set(re.findall(r'additional_dependencies: \["(.+?)"\]', hooks))
    assert used == set(pinned.values())


def test_one_address_of_the_repository(project):
    """Publishing replaces it by where it runs, so it must be written the same everywhere."""
    urls = project["project"]["urls"]
    home = urls["Repository"]
    assert all(url.startswith(home) for url in urls.values())
    assert home in (ROOT / ".github/workflows/publish.yml").read_text("utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        ".github/ISSUE_TEMPLATE/config.yml",
    ):
        text = (ROOT / name).read_text("utf-8")
        ours = re.findall(r"https://github\.com/[\w-]+/imagen-nodes", text)
        assert set(ours) <= {home}, name
