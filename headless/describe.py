"""What a file is, and whether an installation is whole."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from .graph import WorkflowError


def describe(path: Path) -> dict[str, Any]:
    """What a file or folder is, as far as the nodes care.

    path   of a stage, cascade, text encoder, workflow or picture
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.is_dir():
        return _describe_folder(path)
    if path.suffix in (".json", ".png"):
        return _describe_workflow(path)
    return _describe_tensors(path)


def _describe_folder(path: Path) -> dict[str, Any]:
    if (path / "cascade.json").is_file():
        names = json.loads((path / "cascade.json").read_text("utf-8"))
        return {"kind": "cascade", "path": str(path), **names}
    if (path / "config.json").is_file():
        config = json.loads((path / "config.json").read_text("utf-8"))
        if config.get("model_type") == "t5":
            keys = ("d_model", "num_layers", "num_heads", "vocab_size")
            return {"kind": "T5 text encoder", "path": str(path)} | {k: config.get(k) for k in keys}
    raise ValueError(f"{path}: neither a cascade (cascade.json) nor a T5 encoder (config.json)")


def _describe_workflow(path: Path) -> dict[str, Any]:
    from .registry import default_registry
    from .validate import validate
    from .workflow import load_workflow

    registry = default_registry()
    graph, ui = load_workflow(path, registry)
    try:
        validate(graph, registry)
        problems = []
    except WorkflowError as error:
        problems = [problem.line for problem in error.problems]
    return {
        "kind": "workflow",
        "format": "API" if ui is None else "UI",
        "nodes": [str(node) for node in graph.values()],
        "problems": problems,
    }


def _describe_tensors(path: Path) -> dict[str, Any]:
    from ..imagen_core.checkpoints.files import open_tensors
    from ..imagen_core.checkpoints.stages import FORMAT, guess, read_config

    with open_tensors(path) as file:
        names = list(file.keys())
        metadata = file.metadata() or {}
        shapes = [file.get_slice(name).get_shape() for name in names]
    count = sum(_product(shape) for shape in shapes)
    if metadata.get("format") != FORMAT:
        return {"kind": guess(names), "path": str(path), "tensors": len(names), "parameters": count}
    config = read_config(path, metadata, names)
    found = {"kind": "Imagen stage", "path": str(path), "parameters": count}
    return {**found, "stage": config.to_dict()}


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def examine() -> dict[str, Any]:
    """Versions, devices, bundled weights and model folders; each check says whether it is well."""
    checks = [_version("torch", "2.4"), _version("tokenizers", "0.20")]
    checks += [_version(name, "0") for name in ("einops", "safetensors", "numpy", "pillow", "tqdm")]
    checks.append(
        _line("python", platform.python_version(), platform.python_version_tuple() >= ("3", "1"))
    )
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        checks.append(
            _line("device", ", ".join(names) or f"CPU, {torch.get_num_threads()} threads", True)
        )
    except ImportError:
        checks.append(_line("device", "unknown: torch is missing", False))
    from ..nodes import host

    checks.append(
        _line("cascades", ", ".join(host.cascade_names()) or "none", bool(host.cascade_names()))
    )
    for kind in ("imagen", "diffusion_models", "text_encoders"):
        roots = ", ".join(str(root) for root in host.folders(kind))
        checks.append(_line(f"models/{kind}", roots, True))
    return {"checks": checks}


def _version(package: str, least: str) -> dict[str, Any]:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _line(package, f"missing: pip install '{package}>={least}'", False)
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in found.split(".")[:2]]
    wanted = [int(part) for part in least.split(".")]
    return _line(package, found, numbers >= wanted)


def _line(what: str, found: str, ok: bool) -> dict[str, Any]:
    return {"what": what, "found": found, "ok": ok}
