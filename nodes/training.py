"""Training in the graph: a dataset, the tuning of a stage, and figures of a cascade."""

from typing import Any

from . import host
from .checks import named, require_places, require_stage
from .widgets import boolean, choice, file_choice, integer, number, steps_input, string, wire

CATEGORY = "imagen/training"
REPORTED = 20  # skipped files that are named


class ImagenDatasetFromFolder:
    """Pictures with captions, to train on."""

    DESCRIPTION = (
        "Reads a folder of images with captions for Fine-Tune Imagen Stage. Captions come from "
        "metadata.jsonl or metadata.csv, from a .txt or .caption file beside each image, from "
        "folder names such as “10_red car”, or from file names. name_mask.png weighs the loss of "
        "name.png. Broken, tiny and duplicate files are skipped and listed."
    )
    CATEGORY = CATEGORY
    FUNCTION = "read"
    RETURN_TYPES = ("IMAGEN_DATASET", "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "contact_sheet", "report")
    OUTPUT_TOOLTIPS = (
        "Connect to Fine-Tune Imagen Stage.",
        "Up to 64 of the images, as training crops them.",
        "How many images and captions there are, and which files were skipped and why.",
    )
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["dataset", "load images", "training data", "captions"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "folder": file_choice(
                    host.image_folders(), "input", "A folder below ComfyUI's input folder."
                ),
                "trigger": string(
                    "",
                    "Words put before every caption, such as “in my style”. Leave empty to "
                    "keep captions as they are.",
                ),
                "ground": string("white", "Colour behind transparent images: a name or #rrggbb."),
                "random_crop": boolean(True, "Crop at random places; off = from the middle."),
                "buckets": boolean(
                    False,
                    "Keep about the aspect ratio of each image instead of cropping to a "
                    "square. For base stages.",
                ),
                "held_out": number(
                    (0.05, 0.0, 0.9, 0.01),
                    "Fraction of the images that is never trained on, and only measured.",
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, folder: str | None = None) -> bool | str:
        """Whether the folder is there; else where to put it."""
        try:
            return folder is None or bool(host.image_folder(folder))
        except ValueError as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, folder: str = "", **_given: Any) -> str:
        """The files with their times of change."""
        root = host.image_folder(folder)
        files = sorted((str(p), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file())
        return str(hash(tuple(files)))

    def read(
        self,
        folder: str,
        trigger: str,
        ground: str,
        random_crop: bool,
        buckets: bool,
        held_out: float,
    ) -> dict[str, Any]:
        """The dataset, its contact sheet and its report."""
        from ..imagen_core.training.finetune import captions_of, contact_sheet
        from ..imagen_core.training.folder import read_folder
        from ..imagen_core.training.recipe import DataSection, check_ground

        with named("Imagen Dataset from Folder"):
            check_ground(ground)
            data = DataSection(
                text_encoder="",
                folder=str(host.image_folder(folder).resolve()),
                trigger=trigger,
                ground=ground,
                random_crop=random_crop,
                buckets=buckets,
                held_out=held_out,
                workers=0,
            )
            found = read_folder(data.folder, trigger=trigger)
            sheet = contact_sheet(found, 96, ground)
        masks = sum(bool(picture.mask) for picture in found.pictures)
        lines = [
            f"{len(found.pictures)} images, {len(captions_of(found))} captions, {masks} masks",
            f"{len(found.skipped)} files skipped",
            *(f"  {path}: {reason}" for path, reason in found.skipped[:REPORTED]),
            *(["  …"] if len(found.skipped) > REPORTED else []),
        ]
        report = "\n".join(lines)
        ui = {"images": [host.save_temporary(sheet)], "text": [report]}
        return {"ui": ui, "result": (data, sheet[None], report)}


def tuning_options(own: Any, mix_part: float) -> dict[str, Any]:
    """The optional inputs of Fine-Tune Imagen Stage.

    own        the library's Wishes, whose values are the defaults
    mix_part   the library's part of a mixed dataset
    """
    stage_tip = "The cascade's {}, so that samples show what the whole cascade makes."
    return {
        "base": wire("IMAGEN_STAGE", stage_tip.format("base")),
        "sr256": wire("IMAGEN_STAGE", stage_tip.format("SR 256")),
        "sr1024": wire("IMAGEN_STAGE", stage_tip.format("SR 1024")),
        "mix": wire(
            "IMAGEN_DATASET",
            "Other images mixed in unchanged, so that the stage keeps what it knew.",
        ),
        "mix_part": number((mix_part, 0.0, 1.0, 0.05), "Fraction of the images taken from mix."),
        "targets": choice(
            ["both", "attention", "convolutions"], own.targets, "Layers that the LoRA changes."
        ),
        "crop": integer(
            (0, 0, 4096, 8),
            "Side in pixels of the windows trained on; 0 = whole images for a base, a quarter of "
            "the side for super-resolution.",
        ),
        "accumulation": integer(
            (own.accumulation, 1, 4096, 1),
            "Gradient accumulation: parts of each batch, to save memory.",
        ),
    }


class ImagenFineTuneStage:
    """A stage tuned on a dataset: a LoRA."""

    DESCRIPTION = (
        "Trains a LoRA of a stage on a dataset. While it runs, the node shows images of the sample "
        "prompts, through all connected stages, and the loss. Interrupting keeps a checkpoint, and "
        "the same settings queued again continue from it. A super-resolution stage is trained on "
        "its own task: to enlarge a clean small image with a known amount of noise on it."
    )
    CATEGORY = CATEGORY
    FUNCTION = "tune"
    RETURN_TYPES = ("IMAGEN_STAGE", "IMAGEN_LORA", "LOSS_MAP")
    RETURN_NAMES = ("stage", "lora", "loss")
    OUTPUT_TOOLTIPS = (
        "The stage with the LoRA: connect to a sampling node.",
        "The LoRA: connect to Save Imagen LoRA.",
        "The loss over the run: connect to ComfyUI's Plot Loss Graph.",
    )
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["train", "finetune", "train lora", "dreambooth", "my style"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        from ..imagen_core.training.finetune import STEPS, Wishes
        from ..imagen_core.training.recipe import DataSection

        own, mix_part = Wishes(), DataSection.mix_part
        rate = {"default": own.lr, "min": 1e-7, "max": 1.0, "step": 1e-5, "round": 1e-7}
        return {
            "required": {
                "stage": wire("IMAGEN_STAGE", "The stage to tune, without a LoRA on it."),
                "dataset": wire("IMAGEN_DATASET", "From Imagen Dataset from Folder."),
                "text_encoder": wire("IMAGEN_TEXT_ENCODER", "The stage's T5, from a loader."),
                "name": string(
                    "my_style",
                    "Name of the run, which is kept in models/imagen/training. Another name "
                    "begins a new run.",
                ),
                "steps": integer((STEPS, 1, 1_000_000, 1), "Training steps; 200 to 2000 is usual."),
                "minutes": number(
                    (0.0, 0.0, 100_000.0, 0.5), "Training time, in place of steps; 0 = use steps."
                ),
                "learning_rate": (
                    "FLOAT",
                    {
                        **rate,
                        "tooltip": "0.001 suits small stages, 0.0001 to 0.00001 DeepFloyd IF. Lower it if "
                        "the loss rises.",
                    },
                ),
                "rank": integer(
                    (own.rank, 1, 512, 1),
                    "The LoRA's rank: more learns more and needs more memory.",
                ),
                "batch_size": integer((own.batch, 1, 4096, 1), "Images per step."),
                "seed": integer(
                    (own.seed, 0, 2**31 - 1, 1),
                    "Sets the LoRA's first weights and the batches. A run that continues keeps "
                    "the seed that it began with.",
                ),
                "sample_prompts": string(
                    "",
                    "One prompt per line, whose images are made on the way. Leave empty to "
                    "use four captions of the dataset.",
                    multiline=True,
                ),
                "sample_every": integer(
                    (0, 0, 1_000_000, 1), "Steps between those images; 0 = a tenth of the run."
                ),
            },
            "optional": tuning_options(own, mix_part),
        }

    def tune(
        self,
        stage: Any,
        dataset: Any,
        text_encoder: Any,
        name: str,
        steps: int,
        minutes: float,
        learning_rate: float,
        rank: int,
        batch_size: int,
        seed: int,
        sample_prompts: str,
        sample_every: int,
        base: Any = None,
        sr256: Any = None,
        sr1024: Any = None,
        mix: Any = None,
        mix_part: float | None = None,
        targets: Any = None,
        crop: int = 0,
        accumulation: int | None = None,
    ) -> dict[str, Any]:
        """The tuned stage, its LoRA and the losses; None = the library's own."""
        from .tuning import Tuning

        with named("Fine-Tune Imagen Stage"):
            require_stage(stage)
            require_places(base, sr256, sr1024)
            tuning = Tuning(stage, text_encoder, (base, sr256, sr1024))
            return tuning.run(
                host.training_folder(name, "name"),
                tuning.data(dataset, mix, mix_part),
                steps=0 if minutes else steps,
                minutes=minutes,
                lr=learning_rate,
                rank=rank,
                batch=batch_size,
                accumulation=accumulation,
                seed=seed,
                sample=[line.strip() for line in sample_prompts.splitlines() if line.strip()],
                sample_every=sample_every or None,
                targets=targets,
                crop=crop or None,
            )


class ImagenEvaluateCascade:
    """Figures of a base's pictures, by judges."""

    DESCRIPTION = (
        "Makes images of many prompts with a base stage and measures them, as `imagen evaluate` "
        "does: by two bundled judges of emoji drawings, by colours and counts, and by copies of a "
        "dataset. Run it before and after tuning, and compare."
    )
    CATEGORY = CATEGORY
    FUNCTION = "measure"
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("report", "images")
    OUTPUT_TOOLTIPS = (
        "The tables as text: connect to Preview as Text.",
        "The images that were measured.",
    )
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["metrics", "benchmark", "fid", "quality", "clip score"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's declaration of inputs."""
        return {
            "required": {
                "stage": wire("IMAGEN_STAGE", "The base stage to measure."),
                "text_encoder": wire("IMAGEN_TEXT_ENCODER", "The stage's T5, from a loader."),
                "prompts": string(
                    "",
                    "One prompt per line. Leave empty to use the emoji cascade's own sets.",
                    multiline=True,
                ),
                "limit": integer(
                    (16, 0, 100_000, 1),
                    "Number of prompts from each set; 0 = all, which takes long.",
                ),
                "seed": integer((0, 0, 2**31 - 1, 1), "Image i uses seed + i."),
                "batch_size": integer((16, 1, 1024, 1), "Images per evaluation of the network."),
                "steps": steps_input("Fewer are faster. Compare only runs with the same number."),
            },
            "optional": {
                "guidance": wire(
                    "IMAGEN_GUIDANCE",
                    "From Dynamic-Threshold Guidance; else the stage's own settings.",
                ),
                "reference": wire(
                    "IMAGEN_DATASET",
                    "Training images: the report says which results are copies of one of them.",
                ),
            },
        }

    def measure(
        self,
        stage: Any,
        text_encoder: Any,
        prompts: str,
        limit: int,
        seed: int,
        batch_size: int,
        steps: int,
        guidance: Any = None,
        reference: Any = None,
    ) -> dict[str, Any]:
        """The report and the images."""
        from .tuning import measured

        with named("Evaluate Cascade"):
            require_stage(stage, "base")
            settings = dict(seed=seed, batch=batch_size, steps=steps or None, guidance=guidance)
            report, images = measured(stage, text_encoder, prompts, limit, reference, settings)
        return {"ui": {"text": [report]}, "result": (report, images)}
