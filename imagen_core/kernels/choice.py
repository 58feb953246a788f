"""Several ways to compute one thing, of which a device uses the fastest that is right there.

On first use on a GPU every way is tried on the real shapes: held against the plain one in float32, and timed.
What won is kept in a file for the next process, unless a way failed, which may be mended by then. Where
gradients are recorded those ways are tried that have them, and their gradients too. Elsewhere the plain way
computes.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPEATS = 7
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}  # relative
DEVICES = ("cuda",)  # where there is a choice
Tried = dict[str, dict[str, Any]]


def cache_file() -> Path:
    """Where choices are kept: $XDG_CACHE_HOME, %LOCALAPPDATA%, ~/.cache, or /tmp where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    home = os.path.expanduser("~")
    own = Path(home, ".cache") if os.path.isabs(home) else Path(tempfile.gettempdir())
    return Path(root or own) / "imagen-nodes" / "kernels.json"


class Choice:
    """Ways to compute one thing; called like any of them, with tensors, sequences of them, and settings.

    A setting is anything else, a choice of its own for each that prints otherwise; the first is a tensor.

    name   the environment variable IMAGEN_<NAME> names the way that is used whatever was measured
    ways   by name, the plain one first; each returns a tensor
    train  names of the ways that have gradients, beside the plain one
    """

    def __init__(
        self, name: str, ways: dict[str, Callable[..., Tensor]], train: Sequence[str] = ()
    ):
        self.name, self.ways, self.train = name, ways, train
        self.plain = next(iter(ways))
        self.chosen: dict[Any, str] = {}  # by device, dtype and shapes

    def __call__(self, *given: Any) -> Tensor:
        tensors = flat(given)
        asked = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        if tensors[0].device.type not in DEVICES or torch.compiler.is_compiling():
            return self.ways[self.plain](*given)
        if asked and not self.train:
            return self.ways[self.plain](*given)
        first = tensors[0]
        shapes = (each.shape for each in tensors)
        place = first.device, first.dtype, asked, settings(given), *shapes
        name = self.chosen.get(place)
        if name is None:
            if captured(first.device):
                return self.ways[self.plain](*given)
            key = key_of(given) + (", gradients" if asked else "")
            name = self.chosen[place] = self.decide(key, given, asked)
        return self.ways[name](*given)

    def forced(self) -> str | None:
        """The way that the environment names; ValueError where there is none of the name."""
        variable = f"IMAGEN_{self.name.upper()}"
        name = os.environ.get(variable)
        if name and name not in self.ways:
            raise ValueError(f"{variable}: expected one of {', '.join(self.ways)}, got {name!r}")
        return name or None

    def decide(self, key: str, given: Sequence[Any], asked: bool) -> str:
        """The way to use: forced, as measured before, or measured now.

        key     of `key_of`
        given   what it is to compute with
        asked   whether gradients are
        """
        ways = self.training() if asked else self.ways
        forced = self.forced()
        if forced is not None:
            return forced if forced in ways else self.plain
        kept = read(cache_file())
        known = kept.get(self.name, {}).get(key)
        if isinstance(known, str) and known in ways and self.runs(ways[known], given):
            return known
        tried = self.measured(given, ways)
        won = self.winner(tried)
        if not any("failed" in found for found in tried.values()):
            write(cache_file(), {**kept, self.name: {**kept.get(self.name, {}), key: won}})
        return won

    @torch.no_grad()
    def runs(self, way: Callable[..., Tensor], given: Sequence[Any]) -> bool:
        """Whether a way that was once the fastest runs in this process: its compiler may be gone."""
        try:
            way(*given)
        except Exception:  # as in `measured`
            return False
        return True

    def training(self) -> dict[str, Callable[..., Tensor]]:
        """The ways that have gradients, each as what computes its result and them, in one row."""
        return {name: with_gradients(self.ways[name]) for name in (self.plain, *self.train)}

    @torch.no_grad()
    def measured(
        self, given: Sequence[Any], ways: dict[str, Callable[..., Tensor]] | None = None
    ) -> Tried:
        """Of each way: {"ms", "error", "right"}, or {"failed"} where it does not run here.

        given   what it is to compute with
        ways    None = those without gradients
        """
        ways = self.ways if ways is None else ways
        with torch.autocast(flat(given)[0].device.type, enabled=False):
            try:
                expected = ways[self.plain](*in_float32(given))
            except torch.cuda.OutOfMemoryError as error:  # float32 is twice the bytes
                return {name: {"failed": told(error)} for name in ways}
            return self.compared(given, ways, expected)

    def compared(
        self, given: Sequence[Any], ways: dict[str, Callable[..., Tensor]], expected: Tensor
    ) -> Tried:
        """What `measured` says, given the result in float32."""
        first = flat(given)[0]
        size, tried = expected.abs().max().item() or 1.0, {}
        for name, way in ways.items():
            try:
                apart = (way(*given).float() - expected).abs().max().item() / size
                times = [seconds(way, given, first.device) for _ in range(REPEATS)]
            except Exception as error:  # whatever a compiler of kernels raises
                tried[name] = {"failed": told(error)}
                continue
            right = name == self.plain or apart <= TOLERANCE.get(first.dtype, 0.0)
            tried[name] = {
                "ms": 1e3 * statistics.median(times), "error": apart, "right": right,
            }  # fmt: skip
        return tried

    def winner(self, tried: Tried) -> str:
        """The fastest way whose result was right."""
        right = {name: found["ms"] for name, found in tried.items() if found.get("right")}
        return min(right, key=lambda name: right[name]) if right else self.plain


def told(error: Exception) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def with_gradients(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What computes a way's result and the gradients of all its arguments, one after the other in a row."""

    def computed(*given: Any) -> Tensor:
        with torch.enable_grad():
            leaves = detached(given)
            out = way(*leaves)
            grads = torch.autograd.grad(out, flat(leaves), out.detach())
        return torch.cat([each.detach().flatten() for each in (out, *grads)])

    return computed


def detached(given: Sequence[Any]) -> list[Any]:
    """The same arguments as leaves that ask for gradients."""
    return each_tensor(given, lambda tensor: tensor.detach().requires_grad_())


def captured(device: torch.device) -> bool:
    """Whether what is computed goes into a CUDA graph, where nothing may be timed."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def seconds(way: Callable[..., Tensor], given: Sequence[Any], device: torch.device) -> float:
    """Wall-clock time of one call, the device idle before and after it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # alone it waits for the current device

    wait()
    started = time.perf_counter()
    way(*given)
    wait()
    return time.perf_counter() - started


def flat(given: Sequence[Any]) -> list[Tensor]:
    """All tensors of the arguments, in order."""
    found: list[Tensor] = []
    for part in given:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (tuple, list)):
            found += flat(part)
    return found


def settings(given: Sequence[Any]) -> str:
    """Arguments that are neither tensors nor sequences, as words."""
    return " ".join(str(part) for part in given if not isinstance(part, (Tensor, tuple, list)))


def each_tensor(given: Sequence[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
    """The same arguments with every tensor changed."""
    return [
        change(part) if isinstance(part, Tensor)
        else each_tensor(part, change) if isinstance(part, (tuple, list))
        else part
        for part in given
    ]  # fmt: skip


def in_float32(given: Sequence[Any]) -> list[Any]:
    """The same arguments in float32."""
    return each_tensor(given, Tensor.float)


def key_of(given: Sequence[Any]) -> str:
    """What a choice holds for: device, torch, dtype, shapes and settings."""
    tensors, more = flat(given), settings(given)
    device = tensors[0].device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shapes = " ".join("x".join(map(str, each.shape)) for each in tensors)
    kind = str(tensors[0].dtype).removeprefix("torch.")
    return f"{name}, torch {torch.__version__}, {kind}, {shapes}" + (f", {more}" if more else "")


def read(path: Path) -> dict[str, Any]:
    """What a file of choices holds; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    usable = isinstance(found, dict) and all(isinstance(part, dict) for part in found.values())
    return found if usable else {}


def write(path: Path, choices: dict[str, Any]) -> None:
    """Keep choices in a file where it can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(choices, indent=1), "utf-8")
        os.replace(part, path)
    except OSError:
        return
