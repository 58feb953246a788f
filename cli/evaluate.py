"""`imagen evaluate`: how good pictures are, as tables and as one page."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ..headless.inputs import InputError
from .finetune import cascade_folder
from .generate import chosen_device
from .loras import with_loras


def add_evaluate_options(sub: argparse.ArgumentParser) -> None:
    """The options of `imagen evaluate`."""
    add = sub.add_argument
    of_stage = "default: the stage's own"
    about = "one that doctor lists, or a folder with a cascade.json; its base is measured"
    add("cascade", nargs="?", metavar="CASCADE", help=about)
    about = "measure a folder of images instead: with a prompts.jsonl, or each with its caption in a .txt"
    add("--images", type=Path, metavar="DIR", help=about)
    about = "a stage file to measure in place of the cascade's base"
    add("--base", type=Path, metavar="FILE", help=about)
    about = "a LoRA of the base, as in generate; repeatable; default: none"
    add("--lora", action="append", default=[], metavar="FILE[:STRENGTH]", help=about)
    about = (
        "one prompt per line, or .jsonl that says what each must show; default: the emoji cascade's"
    )
    add("--prompts", type=Path, metavar="FILE", help=about)
    about = "only the first N prompts of each set"
    add("--limit", type=int, metavar="N", help=about)
    about = "a judge file; repeatable; default: the two bundled ones"
    add("--judge", type=Path, action="append", metavar="FILE", help=about)
    about = "training images with captions, to find copies in and to compare with"
    add("--reference", type=Path, metavar="DIR", help=about)
    about = (
        "a report.json whose figures are shown beside these; repeatable; default: of real images"
    )
    add("--beside", type=Path, action="append", default=[], metavar="FILE", help=about)
    about = "folder for report.json, report.html and the images; default: %(default)s"
    add("-o", "--out", type=Path, default=Path("evaluation"), metavar="DIR", help=about)
    about = "image i of the prompts uses seed N + i; default: %(default)s"
    add("--seed", type=int, default=0, metavar="N", help=about)
    add("--steps", type=int, metavar="N", help=f"sampler steps; {of_stage}")
    add("--sampler", metavar="NAME", help=of_stage)
    add("--guidance", type=float, metavar="W", help=f"guidance scale, 1 = off; {of_stage}")
    add("--threshold", choices=("dynamic", "static", "none"), help=of_stage)
    about = f"percentile of the dynamic threshold; {of_stage}"
    add("--percentile", type=float, metavar="P", help=about)
    about = "images per evaluation of the network; default: %(default)s"
    add("--batch", type=int, default=32, metavar="N", help=about)
    about = "auto (an NVIDIA or AMD GPU where there is one), cpu, cuda, …; default: %(default)s"
    add("--device", default="auto", metavar="NAME", help=about)


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Measure a cascade's base, or a folder of pictures; write the report."""
    from ..files import replacing
    from ..imagen_core.evaluation import report as pages
    from ..imagen_core.evaluation.evaluate import evaluate as measure
    from ..imagen_core.evaluation.judge import bundled_judges, load_expert
    from ..imagen_core.evaluation.prompts import write_folder

    if (options.cascade is None) == (options.images is None):
        raise InputError("evaluate: expected a CASCADE or --images DIR, and not both")
    started = time.monotonic()
    files = bundled_judges() if options.judge is None else options.judge
    names = pages.page_names([str(path) for path in files])
    judges = {name: load_expert(path) for name, path in zip(names, files, strict=True)}
    others = {name: read_report(path) for name, path in beside(options).items()}
    judges, reference = with_reference(options, judges)
    prompts, pictures, settings = made_or_read(options)
    sampled = time.monotonic()
    found = measure(prompts, pictures, judges, reference)
    settings |= {
        "judges": ", ".join(map(str, files)),
        "reference": str(options.reference or "the judges' own"),
        "seconds": {
            "pictures": round(sampled - started, 1),
            "measuring": round(time.monotonic() - sampled, 1),
        },
    }
    report = {"settings": settings, **found}
    if options.images is None:
        write_folder(options.out / "pictures", prompts, pictures)
    for name, text in (
        ("report.json", json.dumps(report, indent=1, ensure_ascii=False)),
        ("report.html", pages.html_report(report, pictures, others)),
    ):
        with replacing(options.out / name) as temporary:
            temporary.write_text(text, "utf-8")
    if not options.json:
        print(pages.text_table(report["sets"], others))
    print(options.out / "report.html", file=sys.stderr)
    return {"report": str(options.out / "report.json"), "sets": report["sets"]}


def made_or_read(options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Prompts, their pictures, and what the report says of where they come from."""
    from .. import imagen_core as core
    from ..imagen_core.evaluation.evaluate import sample_prompts
    from ..imagen_core.evaluation.judge import bundled
    from ..imagen_core.evaluation.prompts import limited, read_folder, read_prompts

    if options.images is not None:
        prompts, pictures = read_folder(options.images)
        return prompts, pictures, {"images": str(options.images)}
    for name in ("limit", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected at least 1, got {value}")
    prompts = limited(read_prompts(options.prompts or bundled("prompts.jsonl")), options.limit)
    device = chosen_device(options.device)
    cascade = core.load_cascade(cascade_folder(options.cascade), device)
    base = (
        cascade.base
        if options.base is None
        else core.load_stage(options.base, device, cascade.base.dtype)
    )
    base = with_loras(base, options.lora)
    chosen = ("threshold", "percentile")
    guidance = base.guidance(
        guidance_scale=options.guidance, **{name: getattr(options, name) for name in chosen}
    )
    prompts, pictures = sample_prompts(
        base,
        cascade.text_encoder,
        prompts,
        guidance=guidance,
        seed=options.seed,
        steps=options.steps,
        sampler=options.sampler,
        batch=options.batch,
        on_batch=lambda done: print(f"{done} of {len(prompts)} images", file=sys.stderr),
    )
    defaults = base.config.defaults
    settings = {
        "cascade": options.cascade,
        "base": str(options.base or "the cascade's"),
        "lora": ", ".join(options.lora) or "none",
        "steps": options.steps or defaults.steps,
        "sampler": options.sampler or defaults.sampler,
        "guidance": f"{guidance.guidance_scale} {guidance.threshold}",
        "seed": options.seed,
    }
    return prompts, pictures, settings


def with_reference(
    options: argparse.Namespace, judges: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """The judges and the reference that pictures are compared to.

    judges    by name; those of a reference folder compare to it
    """
    from ..imagen_core.evaluation.evaluate import Reference
    from ..imagen_core.evaluation.judge import compared_to
    from ..imagen_core.evaluation.prompts import read_folder

    if options.reference is None:
        return judges, None
    prompts, pictures = read_folder(options.reference)
    captions = tuple(prompt.prompt for prompt in prompts)
    judges = {name: compared_to(expert, captions, pictures) for name, expert in judges.items()}
    return judges, Reference(pictures, captions)


def beside(options: argparse.Namespace) -> dict[str, Path]:
    """Files of the reports that stand beside, by the name that they get.

    options   of the command line; with the bundled prompts and judges the real pictures' figures are there
    """
    from ..imagen_core.evaluation.judge import bundled

    own = options.cascade is not None and options.prompts is None
    files = (
        {"real": bundled("real.json")} if own and not (options.judge or options.reference) else {}
    )
    return files | {p.parent.name if p.stem == "report" else p.stem: p for p in options.beside}


def read_report(path: Path) -> dict[str, Any]:
    """A report that was written before.

    path   of its report.json
    """
    try:
        report = json.loads(path.read_text("utf-8"))
        if isinstance(report["sets"], dict):
            return report
    except (ValueError, KeyError, TypeError):
        pass
    raise InputError(f"--beside: expected a report.json of imagen evaluate, got {path}")
