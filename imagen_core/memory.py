"""How much memory is free, and how many pictures a stage may make at once in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .stage import Stage

PART = 0.6  # of what is free; the rest is for what comes and goes beside an evaluation
# Of an evaluation; on a CPU larger ones are slower a picture, as they leave its caches.
CPU_PIXELS = 2**17
CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> float:
    """Bytes that can be allocated on a device; infinite where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type == "cpu":
        return min(_available(), _left_in_group())
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):  # from torch 2.5 on
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return float("inf")


def _available() -> float:
    """Of the whole computer."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return float("inf")
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(found[0]) if found else float("inf")


def _left_in_group() -> float:
    """Of a container, whose processes are killed beyond its limit; files kept in memory make room."""
    try:
        limit, used, stat = (
            (CGROUP / f"memory.{name}").read_text("ascii") for name in ("max", "current", "stat")
        )
        kept = dict(line.split() for line in stat.splitlines())["inactive_file"]
        return float("inf") if limit.strip() == "max" else float(limit) - float(used) + float(kept)
    except (OSError, ValueError, KeyError):
        return float("inf")


def pictures_at_once(
    stage: Stage,
    batch: int,
    height: int,
    width: int,
    prompts: int = 2,
    device: torch.device | None = None,
) -> int:
    """How many pictures of a batch fit into memory at once, at least 1.

    height, width   pixels, of the output or of a tile of it
    prompts         evaluations of each picture in a step; two where guidance acts
    device          on which they will be made; None = where the stage is now
    """
    if batch <= 1:
        return 1
    free = free_bytes(device or stage.device)
    if device is not None and device != stage.device:
        free -= sum(each.nbytes for each in stage.unet.parameters())
    part = PART * free / stage.running_bytes(prompts, height, width)
    if (device or stage.device).type == "cpu":
        part = min(part, CPU_PIXELS / (prompts * height * width))
    return max(1, int(min(batch, part)))
