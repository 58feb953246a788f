"""Where a run's pictures come from, by its recipe: an array, a folder, or a maker that is given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..stage import Stage, StageConfig
from ..text.encoder import TextEncoder
from .data import Batch, MakePicture, Source, Stream, add_noise, load_pairs
from .folder import Folder, FolderMaker, Mixed, read_folder
from .recipe import Recipe

HELD_OUT_BATCHES = 4
Note = Callable[[str], None]


def open_source(
    recipe: Recipe, make: MakePicture | None, encoder: TextEncoder, stage: Stage, note: Note
) -> tuple[Source, list[Batch]]:
    """Where a run's pictures come from, its text encoder bound to them; and batches that are held out.

    make   makes each picture with its caption; None = those of [data]
    note   called with one line of text for what was found and what was skipped
    """
    data, device = recipe.data, stage.device
    stage.check_text(encoder.encode([""]).embeds)
    if make is None and not data.folder:
        return load_pairs(data, encoder, device), []
    kept = Path(data.prompts) if data.prompts else Path(recipe.run.out) / "prompts"
    if make is not None:
        return Stream(make, encoder, device, data.workers), []
    make, held = folder_maker(recipe, stage, note)
    batches: list[Batch] = []
    if held.pictures:
        maker = replace(maker_of(recipe, stage, held), random=False)
        plain = Stream(maker, encoder, device, 0, kept)
        section, config = replace(data, text_dropout=0.0), stage.config
        drawn = plain.batches(section, config.scale, recipe.run.batch, recipe.run.seed + 1, 0)
        batches = [
            add_noise(
                next(drawn), section, stage.schedule, config.scale, recipe.run.seed + 1, i,
                config.align_corners,
            )
            for i in range(HELD_OUT_BATCHES)
        ]  # fmt: skip
    return Stream(make, encoder, device, data.workers, kept), batches


def folder_maker(recipe: Recipe, stage: Stage, note: Note) -> tuple[MakePicture, Folder]:
    """What makes the training pictures of a folder, and the pictures that are held out."""
    data = recipe.data
    least = least_side(stage.config, data.crop)
    found = read_folder(data.folder, least, data.trigger)
    note(f"{data.folder}: {len(found.pictures)} images, {len(found.skipped)} files skipped")
    for path, reason in found.skipped:
        note(f"  skipped {path}: {reason}")
    used, held = found.split(data.held_out)
    maker = maker_of(recipe, stage, used)
    if not data.mix:
        return maker, held
    other = read_folder(data.mix, least)
    return Mixed(maker, maker_of(recipe, stage, other), data.mix_part), held


def least_side(config: StageConfig, crop: int) -> int:
    """Shorter side in pixels that a picture must have, to be trained on."""
    return crop or max(1, config.resolution // 2)


def maker_of(recipe: Recipe, stage: Stage, folder: Folder) -> FolderMaker:
    """Makes pictures of a folder at the size that a stage trains on."""
    data = recipe.data
    return FolderMaker(
        folder.pictures, stage.config.resolution, data.crop, data.ground, data.random_crop,
        data.buckets and stage.config.kind == "base",
    )  # fmt: skip
