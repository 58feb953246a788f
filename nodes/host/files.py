"""Where models lie: ComfyUI's folders, else those under IMAGEN_MODELS, and the package's own."""

import os
import re
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

from .adapter import comfy
from .listing import files_below

TEXTS, TRAINING = "texts", "training"
MOST_NAMES = 8  # in a message
NONE = "none in "  # begins the one entry of a list for which there is nothing
# In the folder of a published U-Net, or of shards.
MODEL_SIGNS = (
    "diffusion_pytorch_model*.safetensors*",
    "diffusion_pytorch_model*.bin*",
    "config.yml",
)
INDEX = "*.index*.json"
inputs: ContextVar[Path] = ContextVar("inputs", default=Path("input"))
"""Outside ComfyUI: where images come from; a runner sets it."""
BUNDLED = Path(__file__).parents[2] / "imagen_core" / "pretrained"
LORAS = "loras"  # of the package
# Of models/imagen and of the package: folders of something else.
NO_STAGES = tuple(f"{folder}/" for folder in (TEXTS, TRAINING, LORAS, "emoji_judge"))


def register_folders() -> None:
    """Tell ComfyUI of models/imagen, so that extra_model_paths.yaml may name more such folders."""
    folder_paths = comfy("folder_paths")
    if folder_paths is None:
        return
    folder_paths.add_model_folder_path("imagen", str(Path(folder_paths.models_dir) / "imagen"))
    paths, _ = folder_paths.folder_names_and_paths["imagen"]
    folder_paths.folder_names_and_paths["imagen"] = (paths, {".safetensors"})


def folders(kind: str) -> list[Path]:
    """The folders that hold models of a kind, the package's own last.

    kind   "imagen" (cascades and stages), "diffusion_models", "text_encoders" or "loras"
    """
    folder_paths = comfy("folder_paths")
    if folder_paths is None:
        roots = [Path(os.environ.get("IMAGEN_MODELS", "models")) / kind]
    elif kind in folder_paths.folder_names_and_paths:
        roots = [Path(root) for root in folder_paths.get_folder_paths(kind)]
    else:
        roots = [Path(folder_paths.models_dir) / kind]
    own = {"imagen": [BUNDLED], "loras": [BUNDLED / LORAS]}
    return roots + own.get(kind, [])


def home(kind: str) -> Path:
    """Where a model of a kind is best put: ComfyUI's folder of that name, before those of other names.

    kind   as for `folders`
    """
    roots = folders(kind)
    return next((root for root in roots if root.name == kind), roots[0])


def cascade_names() -> list[str]:
    """Cascades to choose from: those of the package first, then the folders under models/imagen."""
    found = [Path(path).parent.name for path in sorted(files_below(BUNDLED, "*/cascade.json"))]
    return _unique(found + _names("imagen", "*/cascade.json", lambda path: path.parent))


def cascade_by_path(name: str) -> bool:
    """Whether a name is the whole path of a cascade's folder, which counts in a shell alone.

    name   of a cascade

    In ComfyUI, whose workflows come from anywhere, names stay inside the folders of models.
    """
    return _path_in_shell(name) and (Path(name) / "cascade.json").is_file()


def _path_in_shell(name: str) -> bool:
    remote = name.startswith(("//", "\\\\"))
    return comfy("folder_paths") is None and not remote and Path(name).is_absolute()


def cascade_folder(name: str) -> Path:
    """The folder of a cascade: one of `cascade_names`, or one that its whole path names in a shell.

    name   of a cascade
    """
    return Path(name) if cascade_by_path(name) else resolve(("imagen",), name, "cascade")


def stage_names() -> list[str]:
    """Stages to choose from: files, and DeepFloyd IF's folders, in diffusion_models and imagen."""
    names = []
    for kind in ("diffusion_models", "imagen"):
        models = [
            name for sign in (*MODEL_SIGNS, INDEX) for name in _names(kind, f"**/{sign}", _model_of)
        ]
        inside = tuple(f"{name}/" for name in models)
        lone = _names(kind, "**/*.safetensors", lambda path: path)
        lone += _names(kind, "**/*.bin", lambda path: path)
        inside += NO_STAGES if kind == "imagen" else ()
        names += models + [name for name in lone if not name.startswith(inside)]
    encoders = re.compile(r"(^|/)text_encoder")
    return _unique(name for name in names if not encoders.search(name))


def _model_of(path: Path) -> Path:
    """The folder of a model that has this file, both below a root: the one above where it lies in unet."""
    return path.parent.parent if path.parent.name == "unet" else path.parent


def text_encoder_names() -> list[str]:
    """Text encoders to choose from: folders and lone files in models/text_encoders, and cascades' own."""
    names = _names("text_encoders", "**/config.json", lambda path: path.parent)
    names += _names("text_encoders", f"**/{INDEX}", lambda path: path.parent)
    for ending in ("safetensors", "gguf", "bin", "pt"):
        files = _names("text_encoders", f"**/*.{ending}", lambda path: path)
        names += [name for name in files if not name.startswith(tuple(f"{n}/" for n in names))]
    return _unique(names + _names("imagen", "*/*/config.json", lambda path: path.parent))


def tokenizer_folders() -> list[Path]:
    """Where a T5's tokenizer may lie besides the text encoder's surroundings: ComfyUI brings one."""
    package = comfy("comfy")
    roots = [] if package is None else [Path(root) for root in package.__path__]
    return [root / "text_encoders" / "t5_tokenizer" for root in roots]


def text_names() -> list[str]:
    """Saved texts to choose from, in models/imagen/texts."""
    return _unique(_names("imagen", f"{TEXTS}/**/*.safetensors", lambda path: path))


def text_path(name: str, input_name: str) -> Path:
    """Where a text of that name is saved: in models/imagen/texts, which it never leaves.

    name         without ending; may have folders
    """
    return _below(folders("imagen")[0] / TEXTS, name, input_name)


def lora_names() -> list[str]:
    """LoRAs to choose from: in models/loras, and the package's own."""
    names = _names("loras", "**/adapter_config.json", lambda path: path.parent)
    files = _names("loras", "**/*.safetensors", lambda path: path)
    return _unique(names + [n for n in files if not n.startswith(tuple(f"{m}/" for m in names))])


def lora_by_path(name: str) -> bool:
    """Whether a name is the whole path of a LoRA, which counts in a shell alone, as a cascade's does.

    name   of a LoRA
    """
    return _path_in_shell(name) and Path(name).exists()


def lora_file(name: str) -> Path:
    """The file or folder of a LoRA: one of `lora_names`, or one that its whole path names in a shell.

    name   of a LoRA
    """
    return Path(name) if lora_by_path(name) else resolve(("loras",), name, "lora")


def lora_path(name: str, input_name: str) -> Path:
    """Where a LoRA of that name is saved: in models/loras, which it never leaves.

    name         without ending; may have folders
    """
    return _below(home("loras"), name, input_name)


def training_folder(name: str, input_name: str) -> Path:
    """The folder of a training of that name: in models/imagen/training, which it never leaves.

    name   may have folders
    """
    return _below(folders("imagen")[0] / TRAINING, name, input_name).with_suffix("")


def image_folders() -> list[str]:
    """Folders of images to choose from: those below the input folder that hold any."""
    found = {os.path.dirname(path) for path in files_below(_input(), "**/*")}
    return sorted(name for name in found if name)


def image_folder(name: str) -> Path:
    """A folder below the input folder, or one that its whole path names in a shell."""
    if _path_in_shell(name) and Path(name).is_dir():
        return Path(name)
    root = Path(os.path.abspath(_input()))
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(root) or path == root or not path.is_dir():
        raise ValueError(f"folder: expected a folder inside {root}, got {name!r}")
    return path


def _input() -> Path:
    folder_paths = comfy("folder_paths")
    return inputs.get() if folder_paths is None else Path(folder_paths.get_input_directory())


def _below(root: Path, name: str, input_name: str) -> Path:
    root = root.resolve()
    bare = name.strip().removesuffix(".safetensors")
    path = (root / f"{bare}.safetensors").resolve()
    if not bare or not path.is_relative_to(root) or path.name.startswith("."):
        raise ValueError(f"{input_name}: expected a name inside {root}, got {name!r}")
    return path


def offered(names: list[str], name: str | None, advice: str) -> bool | str:
    """True where a name is among those to choose from; else what a person can do.

    names    to choose from
    name     chosen; None = not known before the run, which passes
    advice   where to put or how to make what is missing
    """
    if name is None or name in names:
        return True
    others = ", ".join(names[:MOST_NAMES]) + (", …" if len(names) > MOST_NAMES else "")
    missing = "there is none yet" if name.startswith(NONE) else f"{name!r} is not there"
    return f"{missing}; {advice}{f', or choose one of: {others}' if names else ''}"


# Where weights that do not ship are fetched from, by how their names begin.
SOURCES = {
    "IF-": "DeepFloyd IF's weights: accept their licence at huggingface.co/DeepFloyd, then fetch and",
    "t5-v1_1-": "T5 by Google: fetch it from huggingface.co/google and",
}


def advice(name: str | None, kind: str) -> str:
    """What a person can do about a model that is not there.

    name   chosen
    kind   as for `folders`
    """
    known = (text for start, text in SOURCES.items() if (name or "").startswith(start))
    return f"{next(known, '')} put it into {home(kind)}".strip()


def resolve(kinds: tuple[str, ...], name: str, input_name: str) -> Path:
    """The file or folder of that name, which never leads out of the folders of its kinds.

    kinds        searched in order

    Links that somebody put into a folder are followed, as ComfyUI does.
    """
    roots = [Path(os.path.abspath(root)) for kind in kinds for root in folders(kind)]
    for root in roots:
        path = Path(os.path.normpath(root / name))
        if path.is_relative_to(root) and path != root and path.exists():
            return path
    where = ", ".join(str(root) for root in roots)
    raise ValueError(f"{input_name}: expected a name inside {where}, got {name!r}")


def _names(kind: str, pattern: str, entry: Callable[[Path], Path]) -> list[str]:
    """Names below the roots of a kind, links followed; what lies in a root itself has no name."""
    found = (entry(Path(path)) for root in folders(kind) for path in files_below(root, pattern))
    return sorted(path.as_posix() for path in found if path != Path("."))


def _unique(names) -> list[str]:
    return list(dict.fromkeys(names))
