"""LoRAs in every naming, against diffusers with peft on tiny DeepFloyd IF networks, and on our own stages."""

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from imagen_nodes.imagen_core import (
    PRESETS,
    CheckpointError,
    Stage,
    StageConfig,
    TextEmbedding,
    apply_lora,
    load_lora,
    load_stage,
    merge_loras,
    save_lora,
    save_stage,
)
from imagen_nodes.imagen_core.formats.convert import convert
from imagen_nodes.imagen_core.formats.lora_names import published_places

ATTENTION = ["to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv_shortcut", "time_emb_proj", "conv_in"]


def inputs(number) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple]:
    generator = torch.Generator().manual_seed(1)
    x, lowres = torch.randn(2, 2, 3, 32, 32, generator=generator)
    states = torch.randn(2, 8, 64, generator=generator)
    t, k = torch.tensor([857.0, 37.0]), torch.tensor([250.0, 100.0])
    return x, t, states, (lowres, k) if number == 2 else ()


@torch.no_grad()
def ours(stage, number):
    x, t, states, lowres = inputs(number)
    text = TextEmbedding(states, torch.ones(2, 8, dtype=torch.bool))
    return stage.unet(x, t, stage.unet.prepare(text), *lowres)


@torch.no_grad()
def theirs(peer, number):
    x, t, states, lowres = inputs(number)
    if number == 1:
        return peer(x, t, states).sample
    return peer(torch.cat([x, lowres[0]], dim=1), t, states, class_labels=lowres[1]).sample


def agree(found, expected, plain):
    """Within 2e-5, as sums in another order are, over an effect that is 500 times as large."""
    assert (expected - plain).abs().max() > 0.01
    assert (found - expected).abs().max() <= 2e-5


class Tuned:
    """A tiny DeepFloyd IF stage with a random LoRA, by diffusers and peft."""

    def __init__(self, published, targets, **settings):
        peft = pytest.importorskip("peft")
        self.number, self.folder = published.number, published.folder
        self.untuned, self.peer = published.peer, copy.deepcopy(published.peer)
        config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.peer.add_adapter(config)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in self.peer.named_parameters():
                if "lora_" in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    magnitude = "magnitude" in name
                    parameter.copy_(parameter * (1 + 0.2 * noise) if magnitude else 0.1 * noise)
        self.stage = load_stage(published.folder)
        self.plain = ours(self.stage, self.number)
        self.expected = theirs(self.peer, self.number)

    def tensors(self):
        """By peft's names: layer.lora_A.weight."""
        from peft import get_peft_model_state_dict

        return {k: v.contiguous() for k, v in get_peft_model_state_dict(self.peer).items()}


@pytest.fixture(scope="module", params=[1, 2])
def tuned(request, deepfloyd):
    return Tuned(deepfloyd(request.param), ATTENTION + CONVOLUTIONS)


def form(tensors, name):
    """The tensors in another naming; alpha is 6 at rank 4."""
    if name == "diffusers":
        from diffusers.utils import convert_state_dict_to_diffusers

        found = convert_state_dict_to_diffusers(dict(tensors))
        return {f"unet.{key}": 1.5**0.5 * tensor for key, tensor in found.items()}
    if name == "kohya":
        from diffusers.utils import convert_state_dict_to_kohya

        found = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in tensors.items()})
        return {
            key: torch.tensor(6.0) if key.endswith("alpha") else tensor
            for key, tensor in found.items()
        }
    found = {}
    for key, tensor in tensors.items():
        layer, matrix = key.rsplit(".lora_", 1)
        down = matrix.startswith("A")
        if name == "default":
            found[f"base_model.model.{layer}.lora_{'A' if down else 'B'}.default.weight"] = tensor
            continue
        flat = layer.replace(".", "_")
        prefix = {"lycoris": f"lycoris_{flat}", "comfyui": f"diffusion_model.{layer}"}[name]
        found[f"{prefix}.lora_{'down' if down else 'up'}.weight"] = tensor
        found[f"{prefix}.alpha"] = torch.tensor(6.0)
    if name == "default":
        found = {key: 1.5**0.5 * tensor for key, tensor in found.items()}
    return found


@pytest.mark.parametrize("name", ["diffusers", "kohya", "default", "lycoris", "comfyui"])
def test_every_naming_is_diffusers_with_peft(tuned, name, tmp_path):
    path = tmp_path / "lora.safetensors"
    found = {k: v.contiguous() for k, v in form(tuned.tensors(), name).items()}
    save_file(found, path)
    with_lora = apply_lora(tuned.stage, load_lora(path, tuned.stage))
    agree(ours(with_lora, tuned.number), tuned.expected, tuned.plain)
    assert torch.equal(ours(tuned.stage, tuned.number), tuned.plain)


def test_processor_names_are_those_of_the_layers(deepfloyd, tmp_path):
    """X.processor.to_q_lora.down.weight, as diffusers wrote them before peft."""
    tuned = Tuned(deepfloyd(1), ["to_q", "to_out.0", "add_k_proj"])
    found = {}
    for key, tensor in tuned.tensors().items():
        layer, matrix = key.rsplit(".lora_", 1)
        layer, part = layer.removesuffix(".0").rsplit(".", 1)
        which = "down" if matrix.startswith("A") else "up"
        found[f"unet.{layer}.processor.{part}_lora.{which}.weight"] = 1.5**0.5 * tensor
    assert any(".processor.to_out_lora.down.weight" in key for key in found)
    save_file(found, tmp_path / "old.safetensors")
    stage = apply_lora(tuned.stage, load_lora(tmp_path / "old.safetensors", tuned.stage))
    agree(ours(stage, 1), tuned.expected, tuned.plain)


def test_diffusers_own_files_keep_their_alpha(tuned, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.peer.save_lora_adapter(tmp_path)
    stage = apply_lora(tuned.stage, load_lora(tmp_path, tuned.stage))
    agree(ours(stage, tuned.number), tuned.expected, tuned.plain)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}])
def test_dora_and_rslora_are_pefts(deepfloyd, settings, tmp_path):
    tuned = Tuned(
        deepfloyd(1), ["to_q", "to_v", "add_v_proj", "conv2", "time_emb_proj"], **settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.peer.save_lora_adapter(tmp_path)
    lora = load_lora(tmp_path, tuned.stage)
    with_lora = apply_lora(tuned.stage, lora)
    agree(ours(with_lora, 1), tuned.expected, tuned.plain)
    agree(ours(merge_loras(with_lora), 1), tuned.expected, tuned.plain)


def test_a_stage_of_the_original_layout_takes_the_same_lora(tuned, tmp_path):
    """Its query, key and value lie head by head in one matrix; ours does not, whatever was loaded."""
    convert(tuned.folder, tmp_path / "original", "original")
    stage = load_stage(tmp_path / "original")
    save_file(form(tuned.tensors(), "comfyui"), tmp_path / "lora.safetensors")
    found = ours(apply_lora(stage, load_lora(tmp_path / "lora.safetensors", stage)), tuned.number)
    agree(found, tuned.expected, tuned.plain)


def test_names_of_the_original_layout_are_rows_head_by_head(tuned):
    """An update by the original name of a fused layer is the update of the original's own matrix."""
    places = published_places(tuned.stage.config, "original")
    head = tuned.stage.config.unet.head_dim
    if tuned.number == 2:  # attends to the text alone: its query is by itself
        assert places["middle_block.1.qkv"].rows is None
    name, parts = ("qkv", 3) if tuned.number == 1 else ("encoder_kv", 2)
    rows = places[f"middle_block.1.{name}"].rows.tolist()
    # The original's second block of head_dim rows is the first head's key, or its value.
    assert rows[head : 2 * head] == list(range(len(rows) // parts, len(rows) // parts + head))


@pytest.mark.parametrize("layout", ["peft", "kohya"])
def test_what_is_written_is_read_by_diffusers_and_by_us(tuned, layout, tmp_path):
    save_file(form(tuned.tensors(), "comfyui"), tmp_path / "given.safetensors")
    lora = load_lora(tmp_path / "given.safetensors", tuned.stage)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_lora(lora, path, layout)
    again = apply_lora(tuned.stage, load_lora(path, tuned.stage))
    agree(ours(again, tuned.number), tuned.expected, tuned.plain)
    if layout == "kohya":  # whose names diffusers reads of Stable Diffusion alone
        return
    peer = copy.deepcopy(tuned.untuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.load_lora_adapter(tmp_path, weight_name=path.name, prefix="unet")
    agree(theirs(peer, tuned.number), tuned.expected, tuned.plain)


def tiny(kind="base"):
    torch.manual_seed(0)
    config = StageConfig(kind, 16, 4 if kind == "sr" else 1, PRESETS[f"tiny-{kind}"])
    stage = Stage(config)
    with torch.no_grad():
        for parameter in stage.unet.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return stage


@torch.no_grad()
def output(stage):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    states = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(3))
    text = TextEmbedding(states, torch.ones(2, 8, dtype=torch.bool))
    given = () if stage.config.kind == "base" else (x.flip(0), torch.tensor([10.0, 200.0]))
    return stage.unet(x, torch.tensor([100.0, 700.0]), stage.unet.prepare(text), *given)


def random_lora(path, layers, seed=0, rank=2):
    """A file in kohya's naming over layers: name -> weight's shape."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, *columns) in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = 0.3 * torch.randn(rank, *columns, generator=generator)
        window = [1] * (len(columns) - 1)
        tensors[f"{key}.lora_up.weight"] = 0.3 * torch.randn(
            rows, rank, *window, generator=generator
        )
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


def some_layers(stage):
    names = ["conv_in", "time_embedding.linear_1"]
    names += [
        n for n, _ in stage.unet.named_modules() if n.endswith((".qkv", ".text_kv", "conv_1"))
    ]
    return {name: tuple(stage.unet.get_submodule(name).weight.shape) for name in names}


@pytest.mark.parametrize("kind", ["base", "sr"])
def test_loras_of_our_stages_stack_and_merge(kind, tmp_path):
    stage = tiny(kind)
    layers = some_layers(stage)
    one = load_lora(random_lora(tmp_path / "1.safetensors", layers, 1), stage)
    other = load_lora(random_lora(tmp_path / "2.safetensors", layers, 2, rank=3), stage)
    both = apply_lora(apply_lora(stage, one, 0.5), other, -0.7)
    expected = {}
    for name, update in one.updates.items():
        second = other.updates[name]
        delta = 0.5 * update.up @ update.down.flatten(1) - 0.7 * second.up @ second.down.flatten(1)
        expected[name] = delta
    by_hand = tiny(kind)
    with torch.no_grad():
        for name, delta in expected.items():
            weight = by_hand.unet.get_submodule(name).weight
            weight += delta.view_as(weight)
    assert (output(both) - output(by_hand)).abs().max() < 1e-5 * output(by_hand).std()
    merged = merge_loras(both)
    assert (output(merged) - output(by_hand)).abs().max() < 1e-5 * output(by_hand).std()
    assert (output(both) - output(stage)).abs().max() > 0.01
    save_stage(both, tmp_path / "merged.safetensors")
    assert torch.equal(output(load_stage(tmp_path / "merged.safetensors")), output(merged))


def test_a_strength_that_is_no_number_is_refused(tmp_path):
    stage = tiny()
    lora = load_lora(random_lora(tmp_path / "1.safetensors", some_layers(stage)), stage)
    with pytest.raises(ValueError, match="strength: expected a finite number, got nan"):
        apply_lora(stage, lora, float("nan"))


def test_weights_are_shared_and_strength_zero_is_the_stage_itself(tmp_path):
    stage = tiny()
    lora = load_lora(random_lora(tmp_path / "1.safetensors", some_layers(stage)), stage)
    with_lora = apply_lora(stage, lora)
    theirs = dict(stage.unet.named_parameters())
    for name, parameter in with_lora.unet.named_parameters():
        assert parameter is theirs[name], name
    assert torch.equal(output(apply_lora(stage, lora, 0.0)), output(stage))
    assert with_lora.to(dtype=torch.float64).dtype == torch.float64
    assert stage.dtype == torch.float64


def test_differences_and_dora_by_columns(tmp_path):
    stage = tiny()
    layer = stage.unet.get_submodule("time_embedding.linear_2")
    rows, columns = layer.weight.shape
    magnitude = torch.rand(1, columns) + 0.5
    down, up = torch.randn(2, columns), torch.randn(rows, 2)
    difference, bias, norm = torch.randn(16, 3, 3, 3), torch.randn(16), torch.randn(16)
    key = "diffusion_model.time_embedding.linear_2"
    save_file(
        {
            f"{key}.lora_down.weight": down,
            f"{key}.lora_up.weight": up,
            f"{key}.dora_scale": magnitude,
            "diffusion_model.conv_in.diff": difference,
            "diffusion_model.conv_in.diff_b": bias,
            "diffusion_model.norm_out.diff": norm,
        },
        tmp_path / "full.safetensors",
    )
    found = apply_lora(stage, load_lora(tmp_path / "full.safetensors", stage), 0.5).unet
    merged = layer.weight + up @ down
    merged = merged * magnitude / merged.norm(dim=0)
    expected = layer.weight + 0.5 * (merged - layer.weight)
    assert torch.allclose(found.time_embedding.linear_2.weight, expected, atol=1e-5)
    assert torch.allclose(found.conv_in.weight, stage.unet.conv_in.weight + 0.5 * difference)
    assert torch.allclose(found.conv_in.bias, stage.unet.conv_in.bias + 0.5 * bias)
    assert torch.allclose(found.norm_out.weight, stage.unet.norm_out.weight + 0.5 * norm)


def test_a_lora_that_fits_nothing_says_what_it_is_for(tmp_path, deepfloyd):
    base, sr = tiny(), tiny("sr")
    path = random_lora(tmp_path / "1.safetensors", some_layers(sr))
    lora = load_lora(path, sr)
    save_lora(lora, tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"a LoRA for a super-resolution stage \(16\)"):
        load_lora(tmp_path / "own.safetensors", base)
    foreign = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {
        f"{foreign}.lora_A.weight": torch.zeros(2, 8),
        f"{foreign}.lora_B.weight": torch.zeros(8, 2),
    }
    save_file(pair, tmp_path / "sd.safetensors")
    with pytest.raises(
        CheckpointError,
        match="a LoRA for Stable Diffusion 1 or 2, and this is a base stage .*: 1 of its 1 layers",
    ):
        load_lora(tmp_path / "sd.safetensors", base)
    save_file({"a.hada_w1_a": torch.zeros(2)}, tmp_path / "loha.safetensors")
    with pytest.raises(CheckpointError, match="a LoHa file, which is not read"):
        load_lora(tmp_path / "loha.safetensors", base)
    layers = {"time_embedding.linear_1": (32, 99)}
    path = random_lora(tmp_path / "shape.safetensors", layers)
    with pytest.raises(CheckpointError, match=r"linear_1: expected 32 x \[16\], got"):
        load_lora(path, base)
    for name, alpha in ((0, {"r": 0}), (1, {"lora_alpha": [1]}), (2, {"alpha_pattern": {"(": 1}})):
        folder = tmp_path / f"peft{name}"
        folder.mkdir()
        rank = alpha.get("r", 2)
        pair = {
            "base_model.model.time_embedding.linear_1.lora_A.weight": torch.zeros(rank, 16),
            "base_model.model.time_embedding.linear_1.lora_B.weight": torch.zeros(32, rank),
        }
        save_file(pair, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, **alpha}))
        with pytest.raises(CheckpointError, match="1 of its 1 layers do not fit, such as time_emb"):
            load_lora(folder, base)
    save_file({"lora_te_a.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "te.safetensors")
    with pytest.raises(CheckpointError, match="of a text encoder alone"):
        load_lora(tmp_path / "te.safetensors", base)
