"""LoRAs on the command line: FILE, FILE:0.8, FILE:0.8:stage=sr256; and which stage each is for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..headless.inputs import InputError

if TYPE_CHECKING:
    from ..imagen_core import Stage, StageConfig

STAGES = ("base", "sr256", "sr1024")


class GivenLoRA(NamedTuple):
    """One --lora.

    file       as given
    strength   of it
    stage      one of STAGES; "" = the one that it fits
    """

    file: str
    strength: float
    stage: str


def parse_lora(text: str) -> GivenLoRA:
    """What an argument of --lora says.

    text   FILE[:STRENGTH][:stage=NAME]
    """
    file, strength, stage = text, 1.0, ""
    while ":" in file:
        rest, _, last = file.rpartition(":")
        if last.startswith("stage="):
            stage = last.removeprefix("stage=")
        else:
            try:
                strength = float(last)
            except ValueError:
                break
        file = rest
    if stage not in ("", *STAGES):
        raise InputError(f"--lora: stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    return GivenLoRA(file, strength, stage)


def located(file: str) -> tuple[str, Path]:
    """What Load Imagen LoRA calls a file, and where it is.

    file   a name in models/loras, or a path
    """
    from ..nodes import host

    listed = host.lora_names()
    if file in listed:
        return file, host.lora_file(file)
    path = Path(os.path.abspath(file))
    if not path.exists():
        there = ", ".join(listed[:8]) or "nothing"
        raise InputError(
            f"--lora: {file}: no such file, nor one of that name in {host.home('loras')} ({there})"
        )
    same = [name for name in listed if host.lora_file(name).samefile(path)]
    return (same[0] if same else str(path)), path


def chosen_loras(given: list[str], configs: list[StageConfig]) -> list[list[tuple[str, float]]]:
    """Each stage's LoRAs and their strengths, in the order given.

    given     the arguments of --lora
    configs   of the stages that run, base first
    """
    chosen: list[list[tuple[str, float]]] = [[] for _ in configs]
    for text in given:
        lora = parse_lora(text)
        name, path = located(lora.file)
        chosen[stage_for(lora, path, configs)].append((name, lora.strength))
    return chosen


def with_loras(stage: Stage, given: list[str]) -> Stage:
    """A stage with LoRAs on it; CheckpointError where one does not fit.

    given   the arguments of --lora
    """
    from ..imagen_core import apply_lora, load_lora

    for text in given:
        lora = parse_lora(text)
        stage = apply_lora(stage, load_lora(located(lora.file)[1], stage), lora.strength)
    return stage


def stage_for(lora: GivenLoRA, path: Path, configs: list[StageConfig]) -> int:
    """The place of the stage that a LoRA is for; InputError where it is none or several.

    lora      as given
    configs   of the stages that run, base first
    """
    from ..imagen_core import CheckpointError
    from ..imagen_core.formats.lora import fit, made_for, read_lora

    file = read_lora(path)
    names = list(STAGES[: len(configs)])
    if lora.stage:
        if lora.stage not in names:
            raise InputError(
                f"--lora: {lora.file}: is for {lora.stage}, which does not run; these do: {', '.join(names)}"
            )
        fit(file, configs[names.index(lora.stage)])
        return names.index(lora.stage)
    fitting, reasons = [], []
    for i, config in enumerate(configs):
        try:
            fit(file, config)
            fitting.append(i)
        except CheckpointError as error:
            reasons.append(str(error))
    if not fitting:
        raise InputError(f"--lora: none of the stages that run ({', '.join(names)}): {reasons[0]}")
    if len(fitting) > 1:
        fitting = [i for i in fitting if made_for(file, configs[i])] or fitting
    if len(fitting) > 1:
        fits = ", ".join(names[i] for i in fitting)
        raise InputError(
            f"--lora: {lora.file}: fits several stages ({fits}); say which, such as "
            f"{lora.file}:{lora.strength:g}:stage={names[fitting[0]]}"
        )
    return fitting[0]
