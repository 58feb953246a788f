"""LoRA files: peft's, diffusers', kohya's and ComfyUI's names read; peft's and kohya's written.

A name is a layer of ours or of DeepFloyd IF's (dotted, or with underscores), behind a prefix or none,
before what says which matrix it is. peft keeps its alpha in the header or in adapter_config.json.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..lora import LoRA, Update
from ..stage import KINDS, Stage, StageConfig
from ..weights.errors import CheckpointError
from ..weights.files import write_tensors
from ..weights.tensors import open_all
from .lora_names import Place, has_published_names, places_of, published_places, weights_of

LoRALayout = Literal["peft", "kohya"]
LAYOUTS: tuple[LoRALayout, ...] = ("peft", "kohya")
FORMAT = "imagen_nodes.lora"
ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
PREFIXES = ("base_model.model.", "model.", "unet.", "diffusion_model.", "lora_unet_", "lycoris_")
TEXT_PREFIXES = ("text_encoder.", "text_encoder_2.", "lora_te", "te_", "text_encoders.")
# What stands behind a layer's name, and which matrix that is.
ENDINGS = {
    r"\.lora_A(\.\w+)?\.weight": "down",
    r"\.lora_B(\.\w+)?\.weight": "up",
    r"\.lora_magnitude_vector(\.\w+)?(\.weight)?": "magnitude",
    r"\.lora[._]down\.weight": "down",
    r"\.lora[._]up\.weight": "up",
    r"\.lora_mid\.weight": "mid",
    r"\.alpha": "alpha",
    r"\.dora_scale": "dora_scale",
    r"\.diff(\.weight)?": "weight",
    r"\.diff_b": "bias",
}
# What the numbers and patterns of a file that nobody vouches for may raise.
DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    re.error,
)
# diffusers' attention processors: X.processor.to_q_lora.down.weight is of the layer X.to_q.
PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora\.")
OTHERS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "glora": "GLoRA",
    "a1.weight": "GLoRA",
}
PEERS = {
    "Stable Diffusion 1 or 2": ("attn1", "lora_te_text_model"),
    "Stable Diffusion XL": ("lora_te2", "add_embedding_linear", "transformer_blocks.9"),
    "FLUX": ("double_blocks", "single_blocks", "single_transformer_blocks"),
    "Stable Diffusion 3": ("joint_blocks", "context_block"),
    "DeepFloyd IF": ("add_k_proj", "encoder_kv"),
    "an Imagen stage of these nodes": ("text_kv", "attention.qkv", "attention_qkv"),
}


@dataclass(frozen=True)
class LoRAFile:
    """A file's matrices, sorted by layer.

    path       of the file
    layers     the file's name of a layer, without prefix -> matrix -> tensor
    metadata   strings of its header
    text       names of a text encoder's layers, which are left out
    """

    path: Path
    layers: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]
    text: tuple[str, ...]


def load_lora(path: str | Path, stage: Stage) -> LoRA:
    """A LoRA from a file, fitted to a stage: for `apply_lora`.

    path     a .safetensors file, or a folder as peft and diffusers write it
    stage    that it is for; its weights are not read

    A file that fits another network raises CheckpointError, which says what the file is for.
    """
    return fit(read_lora(path), stage.config)


def read_lora(path: str | Path) -> LoRAFile:
    """The matrices of a LoRA file, in whatever naming; they are not fitted to anything yet.

    path   a .safetensors file, or a folder as peft and diffusers write it
    """
    path = adapter_file(Path(path))
    layers: dict[str, dict[str, Tensor]] = {}
    text, unknown = [], []
    with open_all([path]) as tensors:
        metadata = dict(tensors.metadata)
        for name in tensors.shapes:
            if name.startswith(TEXT_PREFIXES):
                text.append(name)
                continue
            layer, matrix = split_name(name)
            if matrix:
                layers.setdefault(layer, {})[matrix] = tensors.get(name).clone()
            else:
                unknown.append(name)
    if unknown:
        kind = next((k for sign, k in OTHERS.items() if any(sign in n for n in unknown)), None)
        what = f"a {kind} file, which is not read" if kind else "not a LoRA"
        raise CheckpointError(
            f"{path}: {what}: it has {len(unknown)} tensors such as {unknown[0]}; expected a LoRA with "
            f"the names of peft, diffusers, kohya or ComfyUI"
        )
    if not layers:
        of = "a text encoder alone" if text else "nothing"
        raise CheckpointError(f"{path}: expected a LoRA of a stage, got one of {of}")
    return LoRAFile(path, layers, metadata, tuple(text))


def adapter_file(path: Path) -> Path:
    """The file of a LoRA: itself, or the one in a folder."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_file():
        return path
    found = [path / name for name in ADAPTER_FILES if (path / name).is_file()]
    found = found or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: expected one LoRA file in the folder, such as {ADAPTER_FILES[0]}, got {len(found)}"
        )
    return found[0]


def split_name(name: str) -> tuple[str, str]:
    """A tensor's layer, without its prefix, and which matrix of it the tensor is; "" = none that is known."""
    old = PROCESSOR.match(name)
    if old:
        layer, part = old.groups()
        name = f"{layer}.{'to_out.0' if part == 'to_out' else part}.lora." + name[old.end() :]
    for ending, matrix in ENDINGS.items():
        found = re.search(ending + "$", name)
        if found:
            return without_prefix(name[: found.start()]), matrix
    return name, ""


def without_prefix(layer: str) -> str:
    """A layer's name without what says that it is a U-Net's."""
    for prefix in PREFIXES:
        layer = layer.removeprefix(prefix)
    return layer


def fit(file: LoRAFile, config: StageConfig) -> LoRA:
    """A LoRA whose updates are named and shaped as a stage's layers."""
    places = places_of(config)
    flat = {name.replace(".", "_"): place for name, place in places.items()}
    wanted = weights_of(config)
    missing, misshapen, updates = [], [], {}
    for layer, matrices in file.layers.items():
        place = places.get(layer) or flat.get(layer)
        if place is None or f"{place.layer}.weight" not in wanted:
            missing.append(layer)
            continue
        weight = wanted[f"{place.layer}.weight"]
        try:
            update = update_of(matrices, scale_of(file, layer, matrices), place, weight)
        except DAMAGED as error:
            misshapen.append(f"{layer}: {error}")
            continue
        known = updates.get(place.layer)
        updates[place.layer] = update if known is None else joined(known, update)
    kind = json_of(file.metadata.get("stage", "")).get("kind", config.kind)
    if missing or misshapen or kind != config.kind:
        raise CheckpointError(misfit(file, config, missing, misshapen))
    return LoRA(config, updates, file.metadata)


def misfit(file: LoRAFile, config: StageConfig, missing: list[str], misshapen: list[str]) -> str:
    """Why a LoRA does not fit a stage, and what it is for.

    missing     layers that the stage does not have
    misshapen   layers of another shape, and how
    """
    wrong = len(missing) + len(misshapen)
    example = misshapen[0] if misshapen else f"{missing[0]}: no such layer" if missing else ""
    why = (
        f"{wrong} of its {len(file.layers)} layers do not fit, such as {example}; " if wrong else ""
    )
    return (
        f"{file.path}: a LoRA for {purpose(file)}, and this is {KINDS[config.kind]} ({config.resolution}): "
        f"{why}choose the stage that it was trained on"
    )


def purpose(file: LoRAFile) -> str:
    """What a LoRA is for, by its header or by its names."""
    about = json_of(file.metadata.get("stage", ""))
    if about:
        kind = KINDS.get(str(about.get("kind")), "a stage")
        return f"{kind} ({about.get('resolution', '?')})"
    for key in ("modelspec.architecture", "ss_base_model_version", "base_model"):
        if file.metadata.get(key):
            return file.metadata[key]
    names = " ".join(file.layers)
    for peer, signs in reversed(PEERS.items()):
        if any(sign in names for sign in signs):
            return peer
    return "another network"


def made_for(file: LoRAFile, config: StageConfig) -> bool:
    """Whether a file's header names a stage of this kind and size; files of other programs never do."""
    about = json_of(file.metadata.get("stage", ""))
    return (about.get("kind"), about.get("resolution")) == (config.kind, config.resolution)


def json_of(text: str) -> dict[str, Any]:
    """The JSON object in a string; empty where there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def scale_of(file: LoRAFile, layer: str, matrices: Mapping[str, Tensor]) -> float:
    """alpha / rank of a layer: by its own tensor, by peft's configuration, else 1.

    layer      its name in the file
    """
    if "down" not in matrices:
        return 1.0
    rank = len(matrices["down"])
    if "alpha" in matrices:
        return float(matrices["alpha"]) / rank
    config = peft_config(file)
    alpha = config.get("lora_alpha", config.get("alpha"))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|[._]){pattern}$", layer):
            alpha = value
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def peft_config(file: LoRAFile) -> dict[str, Any]:
    """peft's configuration: in the header as diffusers keeps it, or beside the file."""
    kept = json_of(file.metadata.get("lora_adapter_metadata", ""))
    if kept:
        return {key.removeprefix("unet."): value for key, value in kept.items()}
    beside = file.path.with_name("adapter_config.json")
    if file.path.name == ADAPTER_FILES[0] and beside.is_file():
        return json_of(beside.read_text("utf-8"))
    return {}


def update_of(matrices: Mapping[str, Tensor], scale: float, place: Place, weight: Tensor) -> Update:
    """One foreign layer's matrices as an update of ours.

    scale      alpha / rank
    place      which rows of which layer
    weight     ours, on the meta device
    """
    rows = torch.arange(len(weight)) if place.rows is None else place.rows
    count, columns = len(rows), weight.shape[1:]
    found = {name: tensor.float() for name, tensor in matrices.items()}
    down, up = low_rank(found, count, columns)

    def spread(part: Tensor, fill: float = 0.0) -> Tensor:
        """The foreign layer's rows among all of ours."""
        whole = torch.full((len(weight), *part.shape[1:]), fill)
        whole[rows] = part
        return whole

    magnitude = found.get("magnitude", found.get("dora_scale"))
    if (
        magnitude is not None
        and magnitude.numel() == count
        and ("magnitude" in found or len(magnitude) == count)
    ):
        magnitude = spread(magnitude.flatten(), math.nan)
    elif magnitude is not None:
        if place.rows is not None or magnitude.numel() != columns[0]:
            raise ValueError(f"dora_scale: expected {count} rows, got {list(magnitude.shape)}")
        magnitude = magnitude.reshape(1, -1)
    dense = found.get("weight")
    if dense is not None:
        if dense.numel() != count * math.prod(columns):
            raise ValueError(f"diff: expected {[count, *columns]}, got {list(dense.shape)}")
        dense = spread(dense.reshape(count, *columns))
    bias = found.get("bias")
    if bias is not None:
        if bias.numel() != count:
            raise ValueError(f"diff_b: expected {count} values, got {list(bias.shape)}")
        bias = spread(bias.flatten())
    return Update(down, None if up is None else spread(scale * up), magnitude, dense, bias)


def low_rank(
    found: Mapping[str, Tensor], rows: int, columns: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """down and up in our shapes; None, None where a layer has neither.

    found     matrices by name
    rows      of the foreign layer
    columns   shape of one row of the weight
    """
    if "down" not in found and "up" not in found:
        return None, None
    if not {"down", "up"} <= found.keys():
        missing = "up" if "down" in found else "down"
        raise ValueError(f"its {missing} matrix is missing")
    down, up = found["down"], found["up"].flatten(1)
    if "mid" in found:  # a convolution in three parts: its window is in the middle
        down = torch.einsum("r s ..., s i -> r i ...", found["mid"], down.flatten(1))
    expected = (len(down), *columns)
    if down.numel() != math.prod(expected) or up.shape != (rows, len(down)):
        raise ValueError(
            f"expected {rows} x {list(columns)}, got {list(found['up'].shape)} x "
            f"{list(found['down'].shape)}"
        )
    return down.reshape(expected), up


def joined(one: Update, other: Update) -> Update:
    """Two updates of different rows of a layer as one.

    one, other   of one layer of ours
    """

    def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return b if a is None else a if b is None else a + b

    if one.down is None or one.up is None or other.down is None or other.up is None:
        lower = one if one.down is not None else other
        down, up = lower.down, lower.up
    else:
        down, up = torch.cat([one.down, other.down]), torch.cat([one.up, other.up], dim=1)
    magnitude = one.magnitude if other.magnitude is None else other.magnitude
    if one.magnitude is not None and other.magnitude is not None:
        magnitude = torch.where(one.magnitude.isnan(), other.magnitude, one.magnitude)
    return Update(down, up, magnitude, added(one.weight, other.weight), added(one.bias, other.bias))


def save_lora(lora: LoRA, path: str | Path, layout: LoRALayout = "peft") -> None:
    """Write a LoRA to a safetensors file; it appears whole or not at all.

    lora     as it was fitted to a stage or trained
    path     of the file
    layout   "peft" or "kohya"

    Layers of DeepFloyd IF get their names in diffusers' layout; ours stand behind "diffusion_model.",
    which ComfyUI's own loaders read.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    config = lora.config
    published = has_published_names(config)
    for name, update in named_updates(lora):
        key = name.replace(".", "_") if layout == "kohya" else name
        prefix = "lora_unet_" if layout == "kohya" else "unet." if published else "diffusion_model."
        tensors |= stored(prefix + key, update, layout)
        ranks[name] = update.rank
    about = {"kind": config.kind, "resolution": config.resolution, "scale": config.scale}
    metadata = {
        "format": "pt",
        "made_by": FORMAT,
        "stage": json.dumps(about),
        "modelspec.architecture": "deepfloyd-if/lora" if published else "imagen-nodes/lora",
        "lora_adapter_metadata": json.dumps(adapter_metadata(ranks)),
        **{k: v for k, v in lora.metadata.items() if k.startswith(("training", "modelspec.title"))},
    }
    write_tensors(Path(path), tensors, metadata)


def adapter_metadata(ranks: Mapping[str, int]) -> dict[str, Any]:
    """What peft has to know of a LoRA: alpha = rank for every layer, as the scale is in the matrices.

    ranks   by the file's name of a layer
    """
    found = [rank for rank in ranks.values() if rank]
    rank = max(set(found), key=found.count, default=1)
    own = {name: r for name, r in ranks.items() if r and r != rank}
    return {
        "unet.r": rank,
        "unet.lora_alpha": rank,
        "unet.rank_pattern": own,
        "unet.alpha_pattern": own,
        "unet.target_modules": sorted(ranks),
    }


def named_updates(lora: LoRA) -> list[tuple[str, Update]]:
    """Updates by the names of a file: ours, or those of diffusers' layout, fused layers cut apart."""
    config = lora.config
    if not has_published_names(config):
        return list(lora.updates.items())
    places: dict[str, list[tuple[str, Tensor | None]]] = {}
    for name, place in published_places(config, "diffusers").items():
        places.setdefault(place.layer, []).append((name, place.rows))
    found = []
    for layer, update in lora.updates.items():
        for name, rows in places[layer]:
            found.append((name, update if rows is None else taken(update, rows)))
    return found


def taken(update: Update, rows: Tensor) -> Update:
    """The part of an update that acts on some rows; ranks that do not act there are left out.

    update   of a fused layer
    rows     of its weight
    """
    if update.magnitude is not None and update.magnitude.ndim == 2:
        raise CheckpointError(
            "a LoRA with DoRA by columns cannot be cut into DeepFloyd IF's layers"
        )
    parts = {k: None if v is None else v[rows] for k, v in vars(update).items() if k != "down"}
    down, up = update.down, parts["up"]
    if down is not None and up is not None:
        acting = up.any(dim=0)
        down, parts["up"] = down[acting], up[:, acting]
    return replace(update, down=down, **parts)


def stored(key: str, update: Update, layout: LoRALayout) -> dict[str, Tensor]:
    """An update's tensors by the names of a file.

    key      the layer's name with its prefix
    """
    down_name, up_name = (
        ("lora_A.weight", "lora_B.weight")
        if layout == "peft"
        else ("lora_down.weight", "lora_up.weight")
    )
    tensors: dict[str, Tensor] = {}
    if update.down is not None and update.up is not None and update.rank:
        window = [1] * (update.down.ndim - 2)
        tensors[f"{key}.{down_name}"] = update.down
        tensors[f"{key}.{up_name}"] = update.up.reshape(*update.up.shape, *window)
        if layout == "kohya":
            tensors[f"{key}.alpha"] = torch.tensor(float(update.rank))
    if update.magnitude is not None:
        magnitude = update.magnitude
        if layout == "peft" and magnitude.ndim == 1:
            tensors[f"{key}.lora_magnitude_vector.weight"] = magnitude
        else:
            columns = magnitude.ndim == 2
            tensors[f"{key}.dora_scale"] = magnitude if columns else magnitude[:, None]
    if update.weight is not None:
        tensors[f"{key}.diff"] = update.weight
    if update.bias is not None:
        tensors[f"{key}.diff_b"] = update.bias
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
