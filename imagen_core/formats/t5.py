"""T5 encoders in the forms that people have: Hugging Face folders and lone files -> TextEncoder.

Whole or sharded safetensors and torch files, ComfyUI's float8 files with and without scales, GGUF. Weights
stay mapped into memory, and stay as compressed as they are; the shape is read off them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..text.encoder import TextEncoder
from ..text.t5 import BLOCK, FEED_FORWARD, FINAL_NORM, TABLE, T5Config, T5Encoder, t5_encoder
from ..text.tokenizer import Tokenizer, no_panic
from ..weights.block_formats import BlockFormat
from ..weights.errors import CheckpointError
from ..weights.files import read_json
from ..weights.gguf import is_gguf, open_gguf
from ..weights.quantised import Matrix, Table
from ..weights.tensors import open_all, require_numbers, unwrapped, weight_files
from .stage import check_names_and_shapes, guess, require_computable
from .tokenizer import DEFAULT_LENGTH, from_gguf, read_spiece, tokenizer_for

EMBEDDED_SPIECE = "spiece_model"  # SentencePiece's file as a tensor of bytes
SCALES = ("scale_weight", "weight_scale")
NO_WEIGHT = ("scale_input", "input_scale", "comfy_quant", *SCALES)
SCALED = "scaled_fp8"  # says that float8 weights have scales
COPIES = ("encoder.embed_tokens.weight", "decoder.", "lm_head.", SCALED, EMBEDDED_SPIECE)
NO_ENCODER = ("dec.", "output.", "output_norm.", "cls.")  # GGUF's decoder and heads
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
GGUF_NAMES = {
    "attn_norm": "0.layer_norm",
    "attn_q": "0.SelfAttention.q",
    "attn_k": "0.SelfAttention.k",
    "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "ffn_norm": "1.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
}


@dataclass(frozen=True)
class Weight:
    """One weight of a file, not yet read.

    shape    of its values
    stored   reads it: the values, or out x bytes
    scale    reads what the values are multiplied by; None = 1
    blocks   how bytes become values; None = they are values
    """

    shape: tuple[int, ...]
    stored: Callable[[], Tensor]
    scale: Callable[[], Tensor] | None = None
    blocks: BlockFormat | None = None


@dataclass(frozen=True)
class Source:
    """The weights of a file by Hugging Face's names, and the tokenizer that lies in it.

    weights     by name
    tokenizer   None where the file holds none
    """

    weights: dict[str, Weight]
    tokenizer: Tokenizer | None = None


def load_text_encoder(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizers: Iterable[str | Path] = (),
) -> TextEncoder:
    """A T5 encoder from a Hugging Face folder, a lone safetensors or torch file, or GGUF.

    path         folder with weights, whole or in shards, one with text_encoder/ inside, or a file; the
                 shape is that of its config.json, else read off the weights
    device       where the weights go
    dtype        what products are computed in; float16 stores halves and computes in float32, because
                 T5-XXL overflows in it. Weights stored in fewer bits stay so and are expanded in use
    tokenizers   more folders in which a lone file's tokenizer may lie
    """
    require_computable(dtype)
    path = Path(path)
    path = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    if not path.exists():
        raise CheckpointError(
            f"text_encoder: expected a folder with weights and a tokenizer, or a file of weights, got {path}"
        )
    with ExitStack() as stack:
        source, config = open_text_encoder(path, stack)
        places = [*tokenizer_places(path), *map(Path, tokenizers)]
        tokenizer = source.tokenizer or tokenizer_for(places, config.vocab)
        model = build(config, source.weights, device, dtype)
    guard(model, [path] if path.is_file() and is_gguf(path) else weight_files(path))
    return TextEncoder(tokenizer, model)


def guard(model: nn.Module, files: list[Path]) -> None:
    """Let a model refuse to run once a file that its weights may be mapped from was changed in place.

    What is mapped changes with the file, and reading past the end of a shorter one ends the process. A file
    that is replaced or removed does no harm: the old one stays as long as it is mapped.
    """

    def state(path: Path) -> tuple[int, int, int] | None:
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    known = {path: state(path) for path in files}

    def check(*_call: Any) -> None:
        for path, then in known.items():
            now = state(path)
            if now and then and now[0] == then[0] and now != then:
                raise RuntimeError(
                    f"{path}: was changed while it was loaded, and its weights with it; load it again"
                )

    model.register_forward_pre_hook(check)


def open_text_encoder(path: Path, stack: ExitStack) -> tuple[Source, T5Config]:
    """The weights of a folder or file, none of them read yet, and the shape that they have.

    path    folder with config.json, or file
    """
    source = open_source(path, stack)
    config = read_config(path, source.weights)
    found = {name: weight.shape for name, weight in source.weights.items()}
    check_names_and_shapes(path, config.shapes(), found)
    return source, config


def tokenizer_places(path: Path) -> list[Path]:
    """Folders in which the tokenizer of some weights may lie, the likeliest first."""
    folder = path if path.is_dir() else path.parent
    places = [folder, folder / "tokenizer"]
    if path.is_dir():
        return [*places, folder.parent / "tokenizer"]
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return [*places, *inner, *(entry / "tokenizer" for entry in inner)]


def open_source(path: Path, stack: ExitStack) -> Source:
    """The weights of a folder or file, by Hugging Face's names."""
    if path.is_file() and is_gguf(path):
        return gguf_source(path)
    tensors = stack.enter_context(open_all(weight_files(path)))
    tensors = unwrapped(path, tensors, (FINAL_NORM, TABLE))
    names = tensors.shapes

    def reader(name: str) -> Callable[[], Tensor]:
        return lambda: tensors.get(name)

    weights = {}
    for name in names:
        if name.startswith(COPIES) or name.endswith(NO_WEIGHT):
            if name.endswith(".comfy_quant"):
                check_quantisation(path, name, reader(name)())
            continue
        layer = name.removesuffix("weight")
        scale = next((reader(layer + key) for key in SCALES if layer + key in names), None)
        if scale is None:
            require_numbers(path, name, tensors.get(name))
            declared = SCALED in names or layer + "comfy_quant" in names
            if declared and tensors.get(name).dtype.itemsize == 1:
                raise CheckpointError(
                    f"{path}: {name}: is said to be quantised with a scale, but has none; copy or download "
                    f"the file again"
                )
        weights[name] = Weight(names[name], reader(name), scale)
    if TABLE not in weights and COPIES[0] in names:
        require_numbers(path, COPIES[0], tensors.get(COPIES[0]))
        weights[TABLE] = Weight(names[COPIES[0]], reader(COPIES[0]))
    if EMBEDDED_SPIECE not in names:
        return Source(weights)
    data = bytes(reader(EMBEDDED_SPIECE)().flatten().tolist())
    return Source(weights, embedded_tokenizer(path, data))


def check_quantisation(path: Path, name: str, marker: Tensor) -> None:
    """Raise CheckpointError where ComfyUI's marker of a layer names a format that is not float8.

    marker   bytes of JSON
    """
    try:
        kind = json.loads(bytes(marker.flatten().tolist()))["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {name}: not a description of a quantised layer") from error
    if kind not in FLOAT8:
        raise CheckpointError(
            f"{path}: {name}: the format {kind!r} is not read, expected one of {list(FLOAT8)}"
        )


def embedded_tokenizer(path: Path, data: bytes) -> Tokenizer:
    """The tokenizer of a file that holds SentencePiece's as a tensor.

    data   spiece.model
    """
    try:
        with no_panic():
            return Tokenizer(read_spiece(data), DEFAULT_LENGTH)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise CheckpointError(f"{path}: {EMBEDDED_SPIECE}: not a T5 tokenizer: {error}") from error


def gguf_source(path: Path) -> Source:
    """The encoder's weights of a GGUF file; those of a decoder are left out."""
    file = open_gguf(path)
    gated = any(".ffn_gate." in name for name in file.tensors)
    weights = {}
    for name, tensor in file.tensors.items():
        if not name.startswith(NO_ENCODER):
            stored = tensor.stored
            weights[hugging_face_name(name, gated)] = Weight(
                tensor.shape, lambda stored=stored: stored, blocks=tensor.blocks
            )
    return Source(weights, from_gguf(file.metadata))


def hugging_face_name(name: str, gated: bool) -> str:
    """The name that Hugging Face gives a tensor of a GGUF file; an unknown one as it is.

    name    such as "enc.blk.0.attn_q.weight"
    gated   whether the feed-forward has a gate
    """
    whole = {"token_embd.weight": TABLE, "enc.output_norm.weight": FINAL_NORM}
    parts = name.removeprefix("enc.blk.").split(".")
    if name in whole or not name.startswith("enc.blk.") or len(parts) != 3:
        return whole.get(name, name)
    block, kind, ending = parts
    theirs = GGUF_NAMES.get(kind, kind)
    if theirs == FEED_FORWARD.format("wi_1").removesuffix(".weight") and not gated:
        theirs = theirs.removesuffix("_1")
    return f"{BLOCK.format(block)}{theirs}.{ending}"


def read_config(path: Path, weights: Mapping[str, Weight]) -> T5Config:
    """The shape: from config.json where a folder has one, else read off the weights."""
    source = path / "config.json"
    shapes = {name: weight.shape for name, weight in weights.items()}
    try:
        if path.is_dir() and source.is_file():
            return from_hugging_face(read_json(source))
        source = path
        return T5Config.infer(shapes)
    except KeyError as error:
        if source != path:
            raise CheckpointError(f"{path}: not a T5 encoder: config.json lacks {error}") from error
        what = guess(list(weights))
        part = what.startswith("a T5")
        what = "a part of one, choose the folder of all its shards" if part else what
        raise CheckpointError(
            f"{path}: not a whole T5 encoder, it lacks {error}: {what}"
        ) from error
    except (ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError) as error:
        told = error if isinstance(error, ValueError) else repr(error)
        raise CheckpointError(f"{source}: not a T5 encoder: {told}") from error


def from_hugging_face(config: dict[str, Any]) -> T5Config:
    """The shape in a config.json."""
    if config.get("model_type", "t5") != "t5":
        raise ValueError(f"model_type: expected 't5', got {config['model_type']!r}")
    kind = config.get("feed_forward_proj", "relu")
    gated = kind.startswith("gated-")
    # "gated-gelu" is the name under which v1.1 was published; it means the tanh approximation.
    activation = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    return T5Config(
        vocab=config["vocab_size"],
        width=config["d_model"],
        layers=config["num_layers"],
        heads=config["num_heads"],
        head_dim=config["d_kv"],
        hidden=config["d_ff"],
        gated=gated,
        activation=activation,
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        epsilon=config.get("layer_norm_epsilon", 1e-6),
    )


def build(
    config: T5Config, weights: Mapping[str, Weight], device: torch.device | str, dtype: torch.dtype
) -> T5Encoder:
    """The encoder of some weights, each where and as it is to be used."""
    compute = torch.float32 if dtype == torch.float16 else dtype

    def stored(weight: Weight) -> Tensor:
        tensor = weight.stored()
        wider = tensor.is_floating_point() and tensor.dtype.itemsize > dtype.itemsize
        return tensor.to(device, dtype if wider else None).contiguous()

    def matrix(name: str, kind: type[Matrix] = Matrix) -> Any:
        weight = weights[name]
        scale = None if weight.scale is None else weight.scale().to(device)
        if scale is not None and scale.numel() not in (1, weight.shape[0]):
            raise CheckpointError(
                f"{name}: expected one scale, or {weight.shape[0]}, one a row; got {list(scale.shape)}"
            )
        return kind(stored(weight), compute, scale, weight.blocks)

    def vector(name: str) -> Tensor:
        weight = weights[name]
        raw = weight.stored().to(device)
        if weight.blocks is not None:
            raw = weight.blocks.expand(raw.view(-1, raw.shape[-1])).view(weight.shape)
        return raw.float() if weight.scale is None else raw.float() * weight.scale().to(device)

    return t5_encoder(config, matrix, vector, matrix(TABLE, Table))
