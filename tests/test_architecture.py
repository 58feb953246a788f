"""The rules of the house, read off the syntax trees: who may import whom, how long a function is."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("imagen_core", "nodes", "headless", "cli")
FILES = sorted([ROOT / "files.py", *(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))])
LAZY = {"transformers", "accelerate", "diffusers", "tensorboard", "tqdm", "PIL", "tokenizers"}
EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(path, top_level_only=False):
    """Absolute dotted names that a file imports; relative ones resolved from the package's root."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found.add(module)
            if node.level and not node.module:
                found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def uses(path, *packages, **options):
    return {
        name
        for name in imports(path, **options)
        if any(name == package or name.startswith(package + ".") for package in packages)
    }


@EACH
def test_arrows_point_one_way(path):
    where = path.relative_to(ROOT).parts
    if where[0] == "files.py":
        assert not uses(path, *PACKAGES)
    if where[0] == "imagen_core":
        assert not uses(path, "nodes", "headless", "cli", "comfy", "folder_paths", "server")
        if where[1] != "training":
            assert not uses(path, "imagen_core.training")
        if where[1] == "unet":
            assert not uses(
                path, "imagen_core.diffusion", "imagen_core.sampling", "imagen_core.stage"
            )
        if where[1] == "diffusion":
            allowed = {"imagen_core.unet.layers"} if where[2] == "denoiser.py" else set()
            assert uses(path, "imagen_core.unet") <= allowed
            assert not uses(path, "imagen_core.sampling", "imagen_core.formats")
    if where[0] == "nodes":
        assert not uses(path, "headless", "cli")
    if where[0] == "headless":
        assert not uses(path, "imagen_core", "nodes", "cli"), "node classes come in a registry"
    assert not uses(path, "comfy", "folder_paths"), "the host is reached through sys.modules only"


def modules():
    """The package's modules by dotted name; a package's is its __init__."""
    found = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path, known):
    """The package's modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in base if part)
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                yield inner if inner in known else base


def test_no_module_imports_itself_by_way_of_others():
    """Nor in functions, nor for type checkers alone: what runs first must not decide what works."""
    known = modules()
    left = {name: set(imported(path, known)) & set(known) for name, path in known.items()}
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"a circle among, or behind one: {sorted(left)}"


def test_the_drawing_shows_the_imports():
    """docs/architecture.svg; a new folder, or a file beside headless' or the core's own, needs a place."""
    spec = importlib.util.spec_from_file_location("drawing", ROOT / "tools" / "architecture.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.drawing() == tool.OUT.read_text("utf-8"), "run python tools/architecture.py"


@cache
def names_of(path):
    """What can be imported from a file, or from a package: its top level's names and its modules."""
    names = {p.stem for p in path.parent.iterdir()} if path.name == "__init__.py" else set()
    left = list(ast.parse(path.read_text("utf-8")).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # what a package loads on demand is listed as text
        left += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("folder", ["tools", "recipes", "benchmarks", "tests"])
def test_what_scripts_import_from_the_package_is_there(folder):
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imagen_nodes"):
                where = ROOT.joinpath(*(node.module or "").split(".")[1:])
                file = where / "__init__.py" if where.is_dir() else where.with_suffix(".py")
                known = names_of(file) if file.is_file() else set()
                wrong += [
                    f"{path}: {node.module}.{a.name}" for a in node.names if a.name not in known
                ]
    assert wrong == []


def test_only_the_host_touches_comfyui():
    """nodes/host/ holds all that knows ComfyUI; of its files adapter.py alone looks ComfyUI's modules up."""
    for path in FILES:
        where = path.relative_to(ROOT).parts
        if where[0] == "nodes" and where != ("nodes", "host", "adapter.py"):
            assert "sys.modules" not in path.read_text("utf-8"), path
        if where[:2] != ("nodes", "host"):
            assert not uses(path, "nodes.host.adapter"), path


NETWORK = ("socket", "ssl", "http", "urllib.request", "requests", "websockets", "huggingface_hub")


@EACH
def test_only_the_remote_runner_opens_connections(path):
    used = uses(path, *NETWORK)
    assert not used or path == ROOT / "headless/remote.py", used
    assert not uses(path, "pickle", "dill", "joblib", "marshal", "shelve"), (
        "they run what they read"
    )


def test_attention_knows_its_kernels_and_layers_know_attention_only():
    known = uses(ROOT / "imagen_core/unet/attention.py", "imagen_core")
    assert all(name.startswith("imagen_core.kernels") for name in known), known
    assert uses(ROOT / "imagen_core/unet/layers.py", "imagen_core.unet") == {
        "imagen_core.unet.attention"
    }


@EACH
def test_heavy_libraries_are_imported_where_they_are_used(path):
    assert not uses(path, *LAZY, top_level_only=True)
    if path.relative_to(ROOT).parts[0] == "nodes":
        assert not uses(path, "torch", "numpy", "imagen_core", top_level_only=True)


@EACH
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
    assert path.name != "utils.py"


def methods_of_nodes():
    """Names of the methods that ComfyUI calls with a node's inputs."""
    from imagen_nodes import NODE_CLASS_MAPPINGS

    return {cls.FUNCTION for cls in NODE_CLASS_MAPPINGS.values()}


@EACH
def test_functions_take_at_most_ten_parameters(path):
    """But for the public sampling calls, the methods of nodes, whose inputs are parameters, and Triton's
    kernels, which are told the strides of every tensor.
    """
    many = {"sample_base", "super_resolve", "generate"}
    if path.relative_to(ROOT).parts[0] == "nodes":
        many |= methods_of_nodes()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in many:
            if "triton.jit" in map(ast.unparse, node.decorator_list):
                continue
            given = node.args
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
            assert count <= 10, f"{node.name} has {count} parameters"


def docstrings(tree):
    """Each definition with a docstring, the module too, and the docstring's node."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node):
            yield node, node.body[0]


def test_the_core_s_code_is_three_times_as_long_as_its_docstrings():
    """Lines with something on them; comments count as neither. A line that repeats a name says nothing."""
    code = said = 0
    for path in (path for path in FILES if path.is_relative_to(ROOT / "imagen_core")):
        lines = path.read_text("utf-8").split("\n")
        written = {i for i, line in enumerate(lines, 1) if line.split("#")[0].strip()}
        inside = {
            i
            for _, text in docstrings(ast.parse("\n".join(lines)))
            for i in range(text.lineno, text.end_lineno + 1)
        }
        said += len(written & inside)
        code += len(written - inside)
    assert code > 3 * said, f"{code} lines of code, {said} of docstrings"


def test_equations_are_numbered_where_they_are_implemented():
    """What cites an equation or algorithm as its source has the number above it."""
    found = 0
    for path in (path for path in FILES if path.is_relative_to(ROOT / "imagen_core")):
        text = path.read_text("utf-8")
        lines = text.split("\n")
        for node, _ in docstrings(ast.parse(text)):
            cited = re.search(r"(Eq\. \d+|algorithm \d+)\.?$", ast.get_docstring(node) or "", re.M)
            if not cited or not isinstance(node, ast.FunctionDef):
                continue
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            assert f"({cited[1]}" in lines[first - 2], f"{path.name}: {node.name}: {cited[1]}"
            found += 1
    assert found >= 8


def test_public_names_explain_every_parameter():
    from imagen_nodes import imagen_core

    for name in imagen_core.__all__:
        thing = getattr(imagen_core, name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        assert thing.__doc__, name
        if inspect.isfunction(thing):
            for parameter in inspect.signature(thing).parameters:
                assert parameter in thing.__doc__, f"{name}: {parameter}"


CHECK = """
import sys, time
started = time.process_time()
import imagen_nodes
seconds = time.process_time() - started
heavy = [name for name in ("torch", "transformers", "numpy", "PIL") if name in sys.modules]
assert not heavy, heavy
assert seconds < 0.3, seconds
import torch
torch.manual_seed(3)
before = torch.get_rng_state()
from imagen_nodes import imagen_core
assert "transformers" not in sys.modules
assert torch.equal(torch.get_rng_state(), before)
assert torch.get_default_dtype() == torch.float32
assert not torch.cuda.is_initialized()
"""


def test_importing_costs_nothing_and_changes_nothing():
    subprocess.run([sys.executable, "-c", CHECK], check=True, cwd=ROOT.parent)


FIRST_STEP = """
import sys
from functools import cache
from imagen_nodes import imagen_core as core
cascade = core.load_cascade("emoji")
cascade.generate("a red apple", upto=64, steps=1)
heavy = {"transformers", "torch._dynamo", "sympy", "torch.distributed.fsdp", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_way_to_the_first_step_imports_nothing_that_is_not_needed():
    """Each of these takes a second or more; a network of shapes alone must not draw normal numbers."""
    subprocess.run([sys.executable, "-c", FIRST_STEP], check=True, cwd=ROOT.parent)
