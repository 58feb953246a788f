"""`imagen doctor`: whether an installation is whole."""

import argparse
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Packages that one thing needs, by their names in pip.
OPTIONAL = {
    "accelerate": "imagen train",
    "tensorboard": "imagen train",
    "ftfy": "clean_caption",
    "beautifulsoup4": "clean_caption",
    "gguf": "the tests of GGUF files, which load without it",
    "websockets": "the progress of imagen run --comfy",
}


# Images of one prompt, heads, width of a head, positions and tokens.
ATTENTIONS = [
    ("the bundled base, 2 images", 2, 8, 32, 16, 32),
    ("DeepFloyd IF-I-XL at 32 x 32, 2 images", 2, 22, 64, 1024, 77),
    ("DeepFloyd IF-I-XL at 16 x 16, 8 images", 8, 33, 64, 256, 77),
]
# Images, channels, height and width, groups, and the activation.
NORMS = [
    ("the bundled base, 2 images", 2, 64, 64, 64, 32, "silu"),
    ("DeepFloyd IF-I-XL at 32 x 32, 2 images", 2, 1408, 32, 32, 32, "gelu"),
    ("32 channels of 512 x 512, 1 image", 1, 32, 512, 512, 16, "silu"),
]
MARKS = {True: "ok  ", False: "FIX ", None: "--  "}  # None = optional, and not there


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """Check this installation."""
    if options.kernels:
        return {"kernels": kernels(show=not options.json)}
    found = examine()
    if not options.json:
        for line in found["checks"]:
            print(f"{MARKS[line['ok']]} {line['what']}: {line['found']}")
    well = all(line["ok"] is not False for line in found["checks"])
    return {**found, "exit": 0 if well else 1}


def kernels(show: bool) -> list[dict[str, Any]]:
    """Each way to compute attention and group norm, timed on this device on shapes of the networks.

    show   whether to print them as a table
    """
    from ..nodes import host

    device, dtype, found = host.compute_device(), host.dtype("auto"), []
    for about, choice, given in (*attentions(device, dtype), *norms(device, dtype)):
        tried = choice.measured(given)
        used = choice.forced() or choice.winner(tried)
        found.append({"what": about, "dtype": str(dtype), "used": used, "ways": tried})
    for line in found if show else []:
        print(f"{line['what']}, {line['dtype'].removeprefix('torch.')}")
        for name, way in line["ways"].items():
            told = way.get("failed") or f"{way['ms']:.3f} ms, error {way['error']:.1e}"
            print(f"  {'*' if name == line['used'] else ' '} {name}: {told}")
    return found


def attentions(device: Any, dtype: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """What is timed of attention: its name, the choice, and what that is given."""
    import torch

    from ..imagen_core.unet.attention import ATTENTION

    for about, images, heads, head, queries, tokens in ATTENTIONS:
        own = torch.randn(images, queries, 3, heads, head, device=device, dtype=dtype)
        text = torch.randn(2, 1, heads, tokens, head, device=device, dtype=dtype)
        q, k, v = own.permute(2, 0, 3, 1, 4)
        yield f"attention of {about}", ATTENTION, (q, tuple(text), (k, v))


def norms(device: Any, dtype: Any) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """What is timed of group norm, as `attentions` tells it."""
    import torch

    from ..imagen_core.kernels.norm import NORM

    last = torch.channels_last
    for about, images, channels, height, width, groups, act in NORMS:
        x = torch.randn(images, channels, height, width, device=device, dtype=dtype)
        weight, bias = torch.randn(2, channels, device=device, dtype=dtype)
        level = torch.randn(2, images, channels, 1, 1, device=device, dtype=dtype)
        given = (x.contiguous(memory_format=last), weight, bias, tuple(level), groups, 1e-5, act)
        yield f"group norm of {about}", NORM, (*given, "channels last")


def examine() -> dict[str, Any]:
    """Versions, devices, bundled weights and model folders.

    Each check says whether it is well: true, false, or null where something optional is not there.
    """
    checks = [_version("torch", "2.4"), _version("tokenizers", "0.20")]
    checks += [_version(name, "0") for name in ("einops", "safetensors", "numpy", "pillow", "tqdm")]
    checks += [_optional(package, use) for package, use in OPTIONAL.items()]
    checks.append(_line("python", platform.python_version(), sys.version_info >= (3, 10)))
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
        checks += [_folder(f"models/{kind}", root) for root in host.folders(kind)]
    return {"checks": checks}


def _optional(package: str, use: str) -> dict[str, Any]:
    import importlib.metadata

    try:
        return _line(package, f"{importlib.metadata.version(package)}, for {use}", True)
    except importlib.metadata.PackageNotFoundError:
        return _line(package, f"not there (optional, for {use}): pip install {package}", None)


def _folder(what: str, root: Path) -> dict[str, Any]:
    there = root.is_dir()
    found = str(root.absolute())
    return _line(what, found if there else f"not there (optional): {found}", there or None)


def _version(package: str, least: str) -> dict[str, Any]:
    import importlib.metadata

    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _line(package, f"missing: pip install '{package}>={least}'", False)
    numbers = [int("".join(filter(str.isdigit, part)) or 0) for part in found.split(".")[:2]]
    wanted = [int(part) for part in least.split(".")]
    return _line(package, found, numbers >= wanted)


def _line(what: str, found: str, ok: bool | None) -> dict[str, Any]:
    return {"what": what, "found": found, "ok": ok}
