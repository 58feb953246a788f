"""How far a run is, what it tells, and how it ends: clock, log, signals, divergence."""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .recipe import Recipe

EXPLODED = 30.0  # times the loss of the first step


class DivergedError(RuntimeError):
    """A run whose loss is no number, or has exploded."""


class Clock:
    """How far a run is: by steps, or by the time spent training where the recipe gives minutes.

    Looked at once a step, so that all that a step does agrees; of several processes the first one decides.
    """

    def __init__(self, recipe: Recipe, step: int = 0, seconds: float = 0.0):
        self.steps, self.limit = recipe.run.steps, 60 * recipe.run.minutes
        self.step = step
        self.started = time.monotonic() - seconds
        self.progress, self.stopped = self.own_progress, False

    @property
    def seconds(self) -> float:
        """Time spent training, over all parts of the run."""
        return time.monotonic() - self.started

    @property
    def own_progress(self) -> float:
        """Part of the run that is done by this process's clock, 0..1."""
        return self.step / self.steps if self.steps else min(1.0, self.seconds / self.limit)

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.progress >= 1

    def look(self, accelerator: Any, stopped: bool = False) -> None:
        """Read the clock, and whether the run was asked to stop, for all processes alike."""
        self.progress, self.stopped = self.own_progress, stopped
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            said = torch.tensor([self.progress, stopped], device=accelerator.device)
            said = broadcast(said.double() if said.device.type != "mps" else said)
            self.progress, self.stopped = said[0].item(), bool(said[1])

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"step": self.step, "seconds": self.seconds}


class Log:
    """Loss, gradient norm, learning rate and pictures a second: TensorBoard events and JSON lines."""

    def __init__(
        self, out: Path, active: bool, kept: dict[str, Any], told: Callable[[dict[str, Any]], None]
    ):
        """Go on with a log.

        active   whether this process writes it
        kept     what `state` gave at the checkpoint that the run goes on from; {} = a new run
        told     called with each line
        """
        self.losses: list[Tensor] = [torch.tensor(x) for x in kept.get("losses", [])]
        self.norms: list[Tensor] = [torch.tensor(x) for x in kept.get("norms", [])]
        self.first_loss: float | None = kept.get("first_loss")
        self.active, self.told, self.last_time = active, told, time.monotonic()
        self.timed = 0  # steps of this process since the last line
        if active:
            out.mkdir(parents=True, exist_ok=True)
            self.events = event_writer(out / "events", kept.get("step", 0))
            keep_lines(out / "log.jsonl", kept.get("step", 0))
            self.lines = (out / "log.jsonl").open("a", encoding="utf-8")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that no step is missing from the next line."""
        return {
            "losses": [x.item() for x in self.losses],
            "norms": [x.item() for x in self.norms],
            "first_loss": self.first_loss,
        }

    def add(self, loss: Tensor, norm: Tensor | None) -> None:
        """Keep a step's numbers on the device."""
        self.timed += 1
        self.losses.append(loss)
        if norm is not None:
            self.norms.append(norm)

    def check(self, step: int, lr: float) -> None:
        """Raise DivergedError where the steps since the last line went wrong."""
        losses = [x.item() for x in self.losses]
        if not losses:
            return
        self.first_loss = losses[0] if self.first_loss is None else self.first_loss
        bad = [x for x in losses if not math.isfinite(x)]
        bad += [x.item() for x in self.norms if not math.isfinite(x.item())]
        mean = sum(losses) / len(losses)
        if bad or mean > EXPLODED * max(self.first_loss, 1e-3):
            raise DivergedError(
                f"the loss was {self.first_loss:.3g} at first and is {bad[0] if bad else mean:.3g} at step "
                f"{step}: training diverged at learning rate {lr:g}"
            )

    def write(self, clock: Clock, lr: float, batch: int, **more: float) -> None:
        """Write the means since the last line.

        batch   pictures a step
        more    values of this step alone
        """
        speed = self.timed * batch / max(1e-9, time.monotonic() - self.last_time)
        values = {
            "loss": torch.stack([x.cpu() for x in self.losses]).mean().item(),
            "grad_norm": torch.stack([x.cpu() for x in self.norms]).mean().item(),
            "lr": lr,
            "images_per_second": speed,
            **more,
        }
        self.losses, self.norms, self.timed, self.last_time = [], [], 0, time.monotonic()
        if not self.active:
            return
        line = {"step": clock.step, "seconds": round(clock.seconds, 1), **values}
        for name, value in values.items():
            if self.events is not None:
                self.events.add_scalar(name, value, clock.step)
        self.lines.write(json.dumps(line) + "\n")
        self.lines.flush()
        self.told(line)

    def picture(self, grid: Tensor, step: int) -> None:
        """Show pictures in TensorBoard.

        grid   h w 3 in 0..1
        """
        if self.active and self.events is not None:
            self.events.add_image("samples", grid.numpy(), step, dataformats="HWC")

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """What happens inside does not count into the pictures a second."""
        begun = time.monotonic()
        yield
        self.last_time += time.monotonic() - begun

    def close(self) -> None:
        """Write what is still in memory."""
        if self.active:
            self.lines.close()
            if self.events is not None:
                self.events.close()


def event_writer(folder: Path, step: int) -> Any:
    """TensorBoard's writer; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step)


def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of steps after a checkpoint: the run makes them again."""
    if not path.is_file():
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if whole(line) and json.loads(line)["step"] <= step]
    if kept != lines:
        path.write_text("".join(kept), "utf-8")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; none where there is no such file."""
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if whole(line)]


def whole(line: str) -> bool:
    """Whether a line of a log was written to its end."""
    return line.endswith("\n")


def tell(line: dict[str, Any]) -> None:
    """Print a line of the log."""
    print(" · ".join(f"{k} {v:.4g}" for k, v in line.items()), flush=True)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came; the second one ends the process as usual.

    In another thread than the main one signals stay as they are.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: Any) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
