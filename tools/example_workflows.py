"""Writes example_workflows/: each graph in the UI format, in the API format, and its thumbnail.

    python tools/example_workflows.py [--pictures [NAME ...]]

With --pictures every graph, or those that are named, is run and its result becomes the thumbnail.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from imagen_nodes.cli.node_classes import default_registry, use_folders
from imagen_nodes.headless.comfy_nodes.folders import Folders
from imagen_nodes.headless.engine.execute import Bar, execute
from imagen_nodes.headless.formats.ui_write import to_ui
from imagen_nodes.headless.graph import (
    Graph,
    Link,
    Node,
    to_api,
)
from imagen_nodes.headless.registry import declared_inputs, title_of
from imagen_nodes.imagen_core.formats.cascade import read_cascade
from imagen_nodes.imagen_core.formats.stage import read_stage_config

OUT = Path(__file__).parent.parent / "example_workflows"


@cache
def shown() -> dict[str, dict[str, Any]]:
    """What the bundled stages' own settings are, by node: a template writes out numbers to begin from."""
    nodes = "ImagenBaseSample", "ImagenSR256", "ImagenSR1024"
    own = [read_stage_config(path).defaults for path in read_cascade("emoji").stages]
    guidance = {"guidance_scale": own[0].guidance_scale, "threshold": own[0].threshold}
    return {"ImagenDynamicThreshold": guidance} | {
        node: {"steps": each.steps, "sampler": each.sampler, "aug_level": each.aug_level}
        for node, each in zip(nodes, own, strict=True)
    }


class Builder:
    """Puts nodes into a graph; inputs that are not given take their declared defaults."""

    def __init__(self) -> None:
        self.graph: Graph = {}
        self.registry = default_registry()

    def add(self, class_type: str, title: str = "", **inputs: Any) -> str:
        """A new node's id."""
        node_id = str(len(self.graph) + 1)
        for name, (_, options, _) in declared_inputs(self.registry[class_type]).items():
            if name not in inputs and "default" in options:
                inputs[name] = shown().get(class_type, {}).get(name, options["default"])
        title = title or title_of(self.registry, class_type)
        self.graph[node_id] = Node(node_id, class_type, title, inputs)
        return node_id

    def start(self, prompt: str) -> tuple[str, str, str]:
        """Loader, text and guidance."""
        loader = self.add("ImagenLoadCascade")
        text = self.add("ImagenT5Encode", text_encoder=Link(loader, 0), prompt=prompt)
        return loader, text, self.add("ImagenDynamicThreshold")

    def base(self, loader: str, text: str, guidance: str, **inputs: Any) -> str:
        """A base sample."""
        wires = {"stage": Link(loader, 1), "text": Link(text, 0), "guidance": Link(guidance, 0)}
        return self.add("ImagenBaseSample", **{**wires, **inputs})

    def enlarge(self, loader: str, image: Link, text: str, upto: int = 1024, **inputs: Any) -> Link:
        """The super-resolution stages up to a resolution."""
        for slot, name in ((2, "ImagenSR256"), (3, "ImagenSR1024"))[: 1 if upto == 256 else 2]:
            stage = self.add(
                name, stage=Link(loader, slot), image=image, text=Link(text, 0), **inputs
            )
            image = Link(stage, 0)
        return image

    def save(self, image: Link, prefix: str = "imagen") -> Graph:
        """The finished graph."""
        self.add("SaveImage", "Save Image", images=image, filename_prefix=prefix)
        return self.graph

    def view(self, **images: Link) -> None:
        """The stages over each other."""
        self.add("ImagenCascadeView", **images)


def text_to_1024() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a red apple, noto style")
    small = Link(b.base(loader, text, guidance), 0)
    large = b.enlarge(loader, small, text)
    b.view(image_64=small, image_256=b.graph[large.node].inputs["image"], image_1024=large)
    return b.save(large)


def text_to_64() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a red apple, noto style")
    return b.save(Link(b.base(loader, text, guidance, batch_size=4), 0))


def image_to_image() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a red apple, noto style")
    other = b.add(
        "ImagenT5Encode",
        "Another prompt",
        text_encoder=Link(loader, 0),
        prompt="a green apple, noto style",
    )
    first = b.base(loader, text, guidance)
    second = b.base(loader, other, guidance, image=Link(first, 0), strength=0.9)
    return b.save(b.enlarge(loader, Link(second, 0), other, upto=256))


def edit_at_64() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a sunflower, noto style")
    small = Link(b.base(loader, text, guidance), 0)
    portrait = b.add(
        "ImageScale",
        "Cut to 48 x 64",
        image=small,
        upscale_method="bicubic",
        width=48,
        height=64,
        crop="center",
    )
    return b.save(b.enlarge(loader, Link(portrait, 0), text))


def restyle_in_sr() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a house, noto style")
    style = b.add(
        "ImagenT5Encode", "Prompt of the SR stages", text_encoder=Link(loader, 0), prompt="a castle"
    )
    small = Link(b.base(loader, text, guidance), 0)
    return b.save(b.enlarge(loader, small, style, aug_level=0.3))


def inpaint() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a purple heart, noto style")
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    mask = b.add(
        "LoadImageMask", "Mask: white is painted", image="imagen_mask_64.png", channel="red"
    )
    wires = {"image": Link(picture, 0), "mask": Link(mask, 0)}
    return b.save(
        b.enlarge(loader, Link(b.base(loader, text, guidance, **wires), 0), text, upto=256)
    )


def upscale_a_picture() -> Graph:
    b = Builder()
    loader, text, _ = b.start("a red apple")
    del b.graph["3"]
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    return b.save(b.enlarge(loader, Link(picture, 0), text, tile=256))


def guidance_sweep() -> Graph:
    """A table: columns of weak, medium and strong guidance; rows of the static and dynamic threshold."""
    b = Builder()
    loader = b.add("ImagenLoadCascade")
    wires = {"text_encoder": Link(loader, 0), "stage": Link(loader, 1)}
    made = b.add("ImagenXYPlot", **wires, prompt="a red apple, noto style")
    return b.save(Link(made, 0), "imagen_sweep")


def one_node() -> Graph:
    b = Builder()
    made = b.add("ImagenSampleCascade", prompt="a red apple, noto style")
    return b.save(Link(made, 0))


def crop_and_stitch() -> Graph:
    """Inpainting of a part, at the base's own size, in a picture that is larger."""
    b = Builder()
    loader, text, guidance = b.start("a purple heart, noto style")
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    mask = b.add(
        "LoadImageMask", "Mask: white is painted", image="imagen_mask_64.png", channel="red"
    )
    large = b.add(
        "ImageScaleBy", "A larger picture", image=Link(picture, 0), upscale_method="bicubic",
        scale_by=4.0,
    )  # fmt: skip
    part = b.add("ImagenCropForInpaint", image=Link(large, 0), mask=Link(mask, 0))
    wires = {"image": Link(part, 0), "mask": Link(part, 1)}
    made = b.enlarge(loader, Link(b.base(loader, text, guidance, **wires), 0), text, upto=256)
    return b.save(Link(b.add("ImagenStitch", image=made, crop=Link(part, 2)), 0))


def keep_the_base() -> Graph:
    """One seed for three stages, of which the base keeps its own."""
    b = Builder()
    loader, text, guidance = b.start("a red apple, noto style")
    seeds = b.add("ImagenSeeds", seed=1, keep="base", kept_seed=0)
    small = Link(b.base(loader, text, guidance, seed=Link(seeds, 0)), 0)
    middle = b.enlarge(loader, small, text, upto=256, seed=Link(seeds, 1), aug_level=0.3)
    large = b.add(
        "ImagenSR1024", stage=Link(loader, 3), image=middle, text=Link(text, 0), seed=Link(seeds, 2)
    )
    b.view(image_64=small, image_256=middle, image_1024=Link(large, 0))
    return b.save(Link(large, 0))


def outpaint() -> Graph:
    """Room beside a picture, painted at the base's own size."""
    b = Builder()
    loader, text, guidance = b.start("two red hearts, noto style")
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    wider = b.add(
        "ImagenOutpaint", image=Link(picture, 0), left=0.0, right=1.0, top=0.0, bottom=0.0
    )
    wires = {"image": Link(wider, 0), "mask": Link(wider, 1), "resample": 4, "jump": 4, "seed": 3}
    made = b.enlarge(loader, Link(b.base(loader, text, guidance, **wires), 0), text, upto=256)
    return b.save(Link(b.add("ImagenStitch", image=made, crop=Link(wider, 2)), 0))


def styles() -> Graph:
    """One prompt in two styles."""
    b = Builder()
    loader = b.add("ImagenLoadCascade")
    guidance = b.add("ImagenDynamicThreshold")
    for style in ("noto", "3d"):
        words = b.add("ImagenStyle", prompt="a mushroom", style=style)
        text = b.add("ImagenT5Encode", text_encoder=Link(loader, 0), prompt=Link(words, 0))
        b.save(Link(b.base(loader, text, guidance, batch_size=2), 0), f"imagen_{style}")
    return b.graph


def regional_prompt() -> Graph:
    """Two prompts, each inside its mask; the stage after the base reads one prompt of both."""
    b = Builder()
    loader, text, guidance = b.start("a red apple left of a taxi, noto style")
    chain = text
    for side, thing in (("left", "a red apple"), ("right", "a taxi")):
        own = b.add(
            "ImagenT5Encode", f"Prompt of the {side}", text_encoder=Link(loader, 0),
            prompt=f"{thing} on the {side}, noto style",
        )  # fmt: skip
        mask = b.add("LoadImageMask", f"The {side}", image=f"imagen_{side}_64.png", channel="red")
        wires = {"text": Link(chain, 0), "region": Link(own, 0), "mask": Link(mask, 0)}
        chain = b.add("ImagenRegionalPrompt", f"Region: the {side}", **wires)
    return b.save(b.enlarge(loader, Link(b.base(loader, chain, guidance), 0), text, upto=256))


def another_upscaler() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a red apple, noto style")
    small = Link(b.base(loader, text, guidance), 0)
    middle = b.add(
        "ImageScale",
        "64 to 256: any upscaler",
        image=small,
        upscale_method="lanczos",
        width=256,
        height=256,
        crop="disabled",
    )
    large = b.add("ImagenSR1024", stage=Link(loader, 3), image=Link(middle, 0), text=Link(text, 0))
    b.view(image_64=small, image_256=Link(middle, 0), image_1024=Link(large, 0))
    return b.save(Link(large, 0))


def synthetic_data() -> Graph:
    b = Builder()
    loader, text, guidance = b.start("a red apple, noto style")
    small = Link(b.base(loader, text, guidance, batch_size=8), 0)
    return b.save(b.enlarge(loader, small, text, upto=256), "dataset/red_apple")


IF_T5, IF_I, IF_II = "t5-v1_1-xxl", "IF-I-XL-v1.0", "IF-II-L-v1.0"


class DeepFloyd(Builder):
    """A graph of DeepFloyd IF's parts, each with its own loader and the settings it was published with."""

    def __init__(self, prompt: str) -> None:
        super().__init__()
        encoder = self.add("ImagenLoadTextEncoder", text_encoder=IF_T5)
        self.text = Link(
            self.add("ImagenT5Encode", text_encoder=Link(encoder, 0), prompt=prompt), 0
        )

    def scaled(self, picture: str, side: int) -> Link:
        """A loaded picture as a square of that side."""
        scale = self.add(
            "ImageScale", f"To {side}", image=Link(picture, 0), upscale_method="bicubic", width=side,
            height=side, crop="center",
        )  # fmt: skip
        return Link(scale, 0)

    def first(self, scale: float = 7.0, **inputs: Any) -> Link:
        """Stage I's picture."""
        loader = self.add("ImagenLoadStage", "DeepFloyd IF, stage I", stage=IF_I)
        guidance = self.add(
            "ImagenDynamicThreshold", guidance_scale=scale, threshold="dynamic", percentile=0.95,
            max_value=1.5,
        )  # fmt: skip
        wires = {"stage": Link(loader, 0), "text": self.text, "guidance": Link(guidance, 0)}
        chosen = {"sampler": "ddpm", "timesteps": "smart100"}
        return Link(self.add("ImagenBaseSample", **{**wires, **chosen, **inputs}), 0)

    def second(self, image: Link, scale: float = 4.0, **inputs: Any) -> Link:
        """Stage II's picture."""
        loader = self.add("ImagenLoadStage", "DeepFloyd IF, stage II", stage=IF_II)
        guidance = self.add("ImagenDynamicThreshold", guidance_scale=scale, threshold="static")
        wires = {"stage": Link(loader, 0), "text": self.text, "guidance": Link(guidance, 0)}
        chosen = {"image": image, "sampler": "ddpm", "timesteps": "smart50", "aug_level": 0.25}
        return Link(self.add("ImagenSR256", **{**wires, **chosen, **inputs}), 0)


def if_text_to_picture() -> Graph:
    b = DeepFloyd("a photo of a red apple on a wooden table")
    return b.save(b.second(b.first()))


def if_image_to_image() -> Graph:
    b = DeepFloyd("a heart of red glass, studio photo")
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    made = b.first(10.0, image=b.scaled(picture, 64), strength=0.7)
    return b.save(b.second(made, original=b.scaled(picture, 256), strength=0.8))


def if_inpaint() -> Graph:
    b = DeepFloyd("a blue heart")
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    mask = b.add(
        "LoadImageMask", "Mask: white is painted", image="imagen_mask_64.png", channel="red"
    )
    masked = {"mask": Link(mask, 0), "inpaint": "clean"}
    made = b.first(image=b.scaled(picture, 64), **masked)
    return b.save(b.second(made, original=b.scaled(picture, 256), aug_level=0.0, **masked))


def if_upscale() -> Graph:
    b = DeepFloyd("")
    picture = b.add("LoadImage", "Picture", image="imagen_heart_64.png")
    return b.save(b.second(Link(picture, 0), 6.0, timesteps="smart100", aug_level=0.5, tile=512))


def if_into_bundled_sr() -> Graph:
    """A cascade of two families: each reads the prompt with the T5 that it was trained with."""
    b = DeepFloyd("a photo of a red apple on a wooden table")
    small = b.first()
    loader = b.add("ImagenLoadCascade")
    text = b.add("ImagenT5Encode", text_encoder=Link(loader, 0), prompt="a red apple")
    return b.save(b.enlarge(loader, small, text))


SAME_SEED = ("ImagenFineTuneStage", "ImagenEvaluateCascade")
ICONS = "imagen_icons"  # a folder of example_workflows/input


def tuned_base(b: Builder, **settings: Any) -> tuple[str, str]:
    """Loader, and the base tuned on a folder; the LoRA is saved."""
    loader = b.add("ImagenLoadCascade")
    data = b.add("ImagenDatasetFromFolder", folder=ICONS)
    tuned = b.add(
        "ImagenFineTuneStage", stage=Link(loader, 1), dataset=Link(data, 0),
        text_encoder=Link(loader, 0), sr256=Link(loader, 2), **settings,
    )  # fmt: skip
    b.add("ImagenSaveLoRA", lora=Link(tuned, 1), name=settings["name"])
    return loader, tuned


def style_lora() -> Graph:
    """A style from a folder of pictures, and a picture in it."""
    b = Builder()
    prompt = "house, line icon"
    loader, tuned = tuned_base(b, name="my_style", steps=300, sample_prompts=prompt)
    text = b.add("ImagenT5Encode", text_encoder=Link(loader, 0), prompt=prompt)
    wires = {"stage": Link(tuned, 0), "text": Link(text, 0)}
    small = Link(b.add("ImagenBaseSample", guidance=Link(b.add("ImagenDynamicThreshold"), 0),
                       batch_size=4, **wires), 0)  # fmt: skip
    return b.save(b.enlarge(loader, small, text, upto=256), "my_style")


def domain_lora() -> Graph:
    """A domain from a folder of pictures, measured before and after."""
    b = Builder()
    prompts = "house, line icon\nkey, line icon\nfish, line icon\numbrella, line icon"
    loader, tuned = tuned_base(b, name="my_domain", steps=250, sample_prompts=prompts)
    made = [
        b.add("ImagenEvaluateCascade", title, stage=stage, text_encoder=Link(loader, 0),
              prompts=prompts, steps=32)
        for title, stage in (("Before", Link(loader, 1)), ("After", Link(tuned, 0)))
    ]  # fmt: skip
    b.add("PreviewImage", "Preview before", images=Link(made[0], 1))
    return b.save(Link(made[1], 1), "after")


IF_NOTE = (
    f"\n\nDeepFloyd IF's weights are yours to fetch, under their own licence: *{IF_I}* and *{IF_II}* into "
    f"*models/diffusion_models*, *{IF_T5}* into *models/text_encoders*; then choose them in the loaders."
)
NOTES = {
    text_to_1024: "## Text to 1024\nThe whole cascade: 64, 256, 1024. Change the prompt, then the seed.",
    text_to_64: "## Text to 64\nThe base alone, four at once: the quickest way to try a prompt.",
    image_to_image: "## Image to image\n*strength* says how much of the first picture is made new.",
    edit_at_64: "## Edit at 64\nBetween two stages runs an ordinary image: any image node fits there.",
    restyle_in_sr: "## Restyle in the SR stages\nSame 64 picture, another prompt, *aug_level* 0.3.",
    inpaint: "## Inpaint\nOnly white of the mask is painted. Copy the two pictures of "
    "*example_workflows/input* to ComfyUI's input folder first.",
    upscale_a_picture: "## Upscale a picture\nThe SR stages take any picture, whole or in tiles.",
    one_node: "## The cascade in one node\nAll stages. Choose 64 in *upto* to look for a seed quickly.",
    crop_and_stitch: "## Crop, inpaint, stitch\nThe masked part of a large image is painted at the base's "
    "own size and put back; all else stays pixel-exact. Copy the two pictures of *example_workflows/input* "
    "to ComfyUI's input folder first.",
    keep_the_base: "## Keep the base\nThe base keeps seed 0, the SR stages draw anew at each run. To keep "
    "another image: choose *nothing* in *keep* until the base is right, then copy that seed to *kept_seed*.",
    outpaint: "## Outpaint\nAn image and as much room again on its right, painted at the base's own size; "
    "the old part comes back pixel-exact. Copy the two pictures of *example_workflows/input* to ComfyUI's "
    "input folder first.",
    styles: "## Styles\nOne prompt, two styles. Add your own to *models/imagen/styles.txt*, one a line: "
    "*ink: ink on paper, {prompt}*.",
    regional_prompt: "## Regional prompts\nEach half has a prompt of its own, which says where its thing is. "
    "Draw other masks, or chain more *Imagen Regional Prompt*. Copy the pictures of "
    "*example_workflows/input* to ComfyUI's input folder first.",
    guidance_sweep: "## Guidance sweep\nOne seed, three guidance scales, two thresholds; choose other "
    "settings for the columns and rows. On white backgrounds, as here, dynamic thresholding greys "
    "and then breaks what static clipping leaves alone; on photographs it is static clipping that burns.",
    another_upscaler: "## Another upscaler\nLanczos stands in for the first SR stage. Put *Upscale Image "
    "(using Model)* there for one that is trained: between two stages runs an ordinary image.",
    synthetic_data: "## Synthetic data\nEach run adds eight pictures to *output/dataset* and the seeds "
    "change: choose *Run (instant)* beside the Run button and it goes on until you stop it. In a shell "
    "*imagen batch* does it, from a file with a line for each run.",
    style_lora: "## A style from your images\nA LoRA of the base, with samples and the loss while it trains. "
    "Put 50 to 300 images of one style with captions into a folder of ComfyUI's input and choose it; "
    "*example_workflows/input* has a folder of twelve to try with. Some minutes on a CPU; a second run uses "
    "what the first one made. Another name trains anew.",
    domain_lora: "## A domain from your images\nLine drawings, scans, photographs: a LoRA of the base, and "
    "images of the same prompts before and after. Put your images with captions into a folder of ComfyUI's "
    "input and choose it; write prompts that none of them is captioned with.",
    if_text_to_picture: "## DeepFloyd IF: text to picture\nStages I and II with the presets they were "
    "published with." + IF_NOTE,
    if_image_to_image: "## DeepFloyd IF: image to image\n*strength* 0.7 at guidance 10; then stage II "
    "starts from the picture too." + IF_NOTE,
    if_inpaint: "## DeepFloyd IF: inpaint\n*clean* is how IF was used; *repaint* with *resample* 5 joins "
    "old and new better. Stage II keeps the unmasked part of the large picture, pixel for pixel."
    + IF_NOTE,
    if_upscale: "## DeepFloyd IF: upscale\nStage II alone, on any picture whose sides are multiples of 4."
    + IF_NOTE,
    if_into_bundled_sr: "## DeepFloyd IF into the bundled stages\nA cascade of two families."
    + IF_NOTE,
}
# What app mode asks for, by node type: the first of each, but for prompts and pictures, of which all.
ASKED = {
    "ImagenT5Encode": "prompt",
    "ImagenSampleCascade": "prompt",
    "ImagenXYPlot": "prompt",
    "ImagenStyle": "prompt",
    "ImagenSeeds": "seed",
    "LoadImage": "image",
    "ImagenDatasetFromFolder": "folder",
    "ImagenDynamicThreshold": "guidance_scale",
    "ImagenBaseSample": "seed",
}
EVERY = ("ImagenT5Encode", "LoadImage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", nargs="*", help="run each, or these, and keep the picture")
    options = parser.parse_args()
    (OUT / "api").mkdir(parents=True, exist_ok=True)
    registry = default_registry()
    for make, note in NOTES.items():
        graph = make()
        workflow = to_ui(graph, registry, note)
        move_on(workflow)
        workflow["extra"]["linearData"] = app_of(workflow)
        write(OUT / f"{make.__name__}.json", workflow)
        write(OUT / "api" / f"{make.__name__}.json", to_api(graph))
        chosen = options.pictures is not None and (
            make.__name__ in options.pictures or not options.pictures
        )
        # Pictures of weights that are not here cannot be made here; those of trainings are docs/*.png's.
        if chosen and not make.__name__.startswith("if_") and not make.__name__.endswith("_lora"):
            thumbnail(graph, workflow, OUT / f"{make.__name__}.jpg")


def move_on(workflow: dict[str, Any]) -> None:
    """Seeds that change after each run of the interface, but those of a training and of its figures."""
    for node in workflow["nodes"]:
        if node["type"].startswith("Imagen") and node["type"] not in SAME_SEED:
            values = node["widgets_values"]
            node["widgets_values"] = ["randomize" if v == "fixed" else v for v in values]


def app_of(workflow: dict[str, Any]) -> dict[str, Any]:
    """What app mode asks for and shows: widgets as [node id, name], and the ids of the savers."""
    of = {kind: [n["id"] for n in workflow["nodes"] if n["type"] == kind] for kind in ASKED}
    inputs = [
        [node_id, name]
        for kind, name in ASKED.items()
        for node_id in (of[kind] if kind in EVERY else of[kind][:1])
    ]
    outputs = [node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage"]
    return {"inputs": inputs, "outputs": outputs}


def write(path: Path, data: dict[str, Any]) -> None:
    """JSON, two spaces, newline at the end."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")


def thumbnail(graph: Graph, workflow: dict[str, Any], path: Path) -> None:
    """Run a graph; its first picture, 384 pixels wide, as JPEG."""
    from PIL import Image, ImageOps

    folder = Path(tempfile.mkdtemp())
    use_folders(Folders(OUT / "input", folder, folder / "temp"))
    execute(graph, default_registry(), workflow, Bar)
    files = sorted(file for file in folder.rglob("*.png") if file.parent != folder / "temp")
    pictures = [Image.open(file).convert("RGB") for file in files]
    across = 1 if len(pictures) == 1 else 2
    side = 384 // across
    sheet = Image.new("RGB", (384, side * min(2, across)), "white")
    for i, picture in enumerate(pictures[: across * min(2, across)]):
        method = Image.Resampling.NEAREST if picture.width < side else Image.Resampling.LANCZOS
        square = ImageOps.pad(picture, (side, side), method, "white")
        sheet.paste(square, (i % across * side, i // across * side))
    sheet.save(path, quality=88)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
