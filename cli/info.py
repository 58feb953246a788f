"""`imagen info`: what a file or folder is."""

import argparse
from collections import Counter
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

from ..headless.graph import WorkflowError

WEIGHTS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
# Whether the feed-forward is gated, width of the states, width inside the feed-forward.
PUBLISHED_T5 = {
    (True, 512, 1024): "T5 v1.1 small",
    (True, 768, 2048): "T5 v1.1 base",
    (True, 1024, 2816): "T5 v1.1 large",
    (True, 2048, 5120): "T5 v1.1 XL",
    (True, 4096, 10240): "T5 v1.1 XXL",
    (False, 512, 2048): "T5 small",
    (False, 768, 3072): "T5 base",
    (False, 1024, 4096): "T5 large",
    (False, 1024, 16384): "T5 3B",
    (False, 1024, 65536): "T5 11B",
}


def add_info_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen info`."""
    sub.add_argument("path", type=Path, help="a model, an encoded prompt, a workflow or an image")
    about = "show instead how much memory a stage or cascade needs to make one image"
    sub.add_argument("--memory", action="store_true", help=about)


def info(options: argparse.Namespace) -> dict[str, Any]:
    """Say what a file or folder is."""
    path = options.path if options.path.exists() else cascade_called(str(options.path))
    found = memory_of(path) if options.memory else describe(path)
    if not options.json:
        for key, value in found.items():
            print(f"{key}: {value}")
    return found


def describe(path: Path) -> dict[str, Any]:
    """What a file or folder is, as far as the nodes care.

    path   of a stage, cascade, text encoder, workflow or picture
    """
    from ..imagen_core.weights.files import is_pickle
    from ..imagen_core.weights.gguf import is_gguf

    if path.is_dir():
        return _describe_folder(path)
    if is_workflow(path):
        return _describe_workflow(path)
    if is_gguf(path):
        return _describe_text_encoder(path)
    if path.suffix.lower() not in WEIGHTS and not is_pickle(path):
        with path.open("rb") as file:
            if file.read(9)[8:] != b"{":  # safetensors under another name
                known = ", ".join(WEIGHTS)
                raise ValueError(
                    f"{path}: expected weights ({known}), a workflow, or an image of one"
                )
    return _describe_tensors(path)


def memory_of(path: Path) -> dict[str, Any]:
    """MB that one image takes at each stage's peak, on this machine's device in its own precision."""
    from ..imagen_core.cascade import sizes_of
    from ..imagen_core.formats.cascade import read_cascade
    from ..imagen_core.formats.stage import open_stage
    from ..imagen_core.peak import TILES, peak_of
    from ..nodes import host

    whole = (path / "cascade.json").is_file()
    paths = list(read_cascade(path).stages) if whole else [path]
    configs = []
    for each in paths:
        with open_stage(each) as stored:
            configs.append(stored.config)
    device, dtype = host.compute_device(), host.dtype("auto")
    found: dict[str, Any] = {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    sides = sizes_of(configs) if len(configs) > 1 else [configs[0].resolution]
    for config, side in zip(configs, sides, strict=True):
        tiles = [tile for tile in TILES if tile < side] if config.kind == "sr" else []
        for tile in [0, *tiles]:
            peak = peak_of(config, dtype, 1, side, side, tile, device.type)
            name = f"{config.kind} {side} x {side}" + (f" in tiles of {tile}" if tile else "")
            found[f"{name}, MB"] = round(peak.total / 1e6)
    return found


def cascade_called(name: str) -> Path:
    """The folder of a cascade that the loaders offer under this name."""
    from ..nodes import host

    if name not in host.cascade_names():
        raise ValueError(f"{name}: no such file or folder")
    return host.cascade_folder(name)


def is_workflow(path: Path) -> bool:
    """Whether a file is to be read as a workflow: by what it holds, or where that is damaged, by its name."""
    from ..headless.png_chunks import is_png

    if is_png(path) or path.suffix.lower() in (".json", ".png"):
        return True
    with path.open("rb") as file:
        start = file.read(512)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    # The first bytes of safetensors, the length of its header, hold zeros.
    return text.startswith((b"{", b"[")) and b"\0" not in start


def _describe_folder(path: Path) -> dict[str, Any]:
    from ..imagen_core.weights.files import read_json

    if (path / "cascade.json").is_file():
        names = read_json(path / "cascade.json")
        return {"kind": "cascade", "path": str(path), **names}
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        if config.get("model_type") == "t5":
            return _describe_text_encoder(path)
    return _describe_tensors(path)


def _describe_workflow(path: Path) -> dict[str, Any]:
    from ..headless.engine.validate import validate
    from ..headless.formats.workflow import load_workflow
    from .node_classes import default_registry

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
    from ..imagen_core.formats.deepfloyd import find_layout
    from ..imagen_core.formats.prompt import load_text
    from ..imagen_core.formats.stage import FORMAT, guess, open_stage, open_weights, stage_files

    files = stage_files(path)
    with open_weights(files) as tensors:
        shapes, layout = tensors.shapes, find_layout(tensors.shapes)
        ours = tensors.metadata.get("format") == FORMAT
        if any(".SelfAttention." in name for name in shapes):
            return _describe_text_encoder(path)
        if (
            not ours
            and layout is None
            and any(".lora" in name or ".diff" in name for name in shapes)
        ):
            return _describe_lora(path)
        if "text.embeds" in shapes:
            shape = list(load_text(path).text.embeds.shape)
            return {"kind": "encoded prompt", "path": str(path), "rows, tokens, width": shape}
        dtypes = sorted({str(tensors.get(name).dtype).removeprefix("torch.") for name in shapes})
    found = {
        "path": str(path),
        "files": [file.name for file in files],
        "tensors": len(shapes),
        "parameters": sum(map(prod, shapes.values())),
        "dtypes": dtypes,
    }
    if not ours and layout is None:
        raise ValueError(
            f"{path}: expected a stage, a cascade, a T5 encoder, an encoded prompt, a workflow or an image "
            f"that carries one; it looks like {guess(list(shapes))}"
        )
    with open_stage(path) as stored:
        config = stored.config.to_dict()
        config["defaults"]["threshold"] = stored.config.guidance().threshold
    if layout is None:
        return {"kind": "Imagen stage", **found, "stage": config}
    stage = {"base": "I", "sr": "II"}[config["kind"]]
    return {"kind": f"DeepFloyd IF stage {stage}", "layout": layout, **found, "stage": config}


def _describe_lora(path: Path) -> dict[str, Any]:
    from ..imagen_core.formats.lora import purpose, read_lora

    file = read_lora(path)
    tensors = [tensor for matrices in file.layers.values() for tensor in matrices.values()]
    ranks = sorted({len(found["down"]) for found in file.layers.values() if "down" in found})
    return {
        "kind": "LoRA",
        "for": purpose(file),
        "path": str(file.path),
        "layers": len(file.layers),
        "ranks": ranks,
        "parameters": sum(tensor.numel() for tensor in tensors),
        "DoRA": any({"magnitude", "dora_scale"} & found.keys() for found in file.layers.values()),
        "text encoder's tensors, left out": len(file.text),
    }


def _describe_text_encoder(path: Path) -> dict[str, Any]:
    """Read off the files' headers; of the weights nothing is read but what lies beside them."""
    from ..imagen_core.formats.t5 import open_text_encoder
    from ..imagen_core.weights.gguf import is_gguf
    from ..imagen_core.weights.tensors import weight_files

    files = weight_files(path)
    stored: Counter[str] = Counter()
    with ExitStack() as stack:
        source, config = open_text_encoder(path, stack)
        for weight in source.weights.values():
            tensor = weight.stored()
            kind = str(tensor.dtype).removeprefix("torch.")
            kind = weight.blocks.name if weight.blocks else kind
            stored[f"{kind} with scales" if weight.scale else kind] += tensor.nbytes
    safetensors = "safetensors" if files[0].suffix in (".safetensors", ".sft") else "torch"
    form = "GGUF" if is_gguf(files[0]) else f"Hugging Face {safetensors}"
    return {
        "kind": "T5 text encoder",
        "size": PUBLISHED_T5.get((config.gated, config.width, config.hidden), "custom"),
        "layout": f"{form}, {'folder' if path.is_dir() else 'one file'}",
        "path": str(path),
        "files": [file.name for file in files],
        "stored as": [kind for kind, _ in stored.most_common()],
        "parameters": sum(prod(weight.shape) for weight in source.weights.values()),
        "bytes": stored.total(),
        "d_model": config.width,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "vocab_size": config.vocab,
    }
