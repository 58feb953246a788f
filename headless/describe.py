"""What a file is, and whether an installation is whole."""

import importlib.metadata
import json
import platform
from math import prod
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
    return _describe_tensors(path)


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
    from ..imagen_core.checkpoints.deepfloyd import find_layout
    from ..imagen_core.checkpoints.stages import FORMAT, guess, open_stage, stage_files
    from ..imagen_core.checkpoints.weights import open_all

    files = stage_files(path)
    with open_all(files) as tensors:
        shapes, layout = tensors.shapes, find_layout(tensors.shapes)
        ours = tensors.metadata.get("format") == FORMAT
        dtypes = sorted({str(tensors.get(name).dtype).removeprefix("torch.") for name in shapes})
    found = {
        "path": str(path),
        "files": [file.name for file in files],
        "tensors": len(shapes),
        "parameters": sum(map(prod, shapes.values())),
        "dtypes": dtypes,
    }
    if not ours and layout is None:
        return {"kind": guess(list(shapes)), **found}
    with open_stage(path) as stored:
        config = stored.config.to_dict()
    if layout is None:
        return {"kind": "Imagen stage", **found, "stage": config}
    stage = {"base": "I", "sr": "II"}[config["kind"]]
    return {"kind": f"DeepFloyd IF stage {stage}", "layout": layout, **found, "stage": config}


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
