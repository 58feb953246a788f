"""LoRAs as nodes, and how a host holds the weights that stages share."""

import pytest
import torch

from imagen_nodes import NODE_CLASS_MAPPINGS
from imagen_nodes.imagen_core import PRESETS, Stage, StageConfig, apply_lora, load_lora, save_lora
from imagen_nodes.imagen_core.lora import LoRA, Update
from imagen_nodes.nodes import host
from imagen_nodes.nodes.host import model

BUNDLED = {"emoji_few_steps.safetensors"}


def node(node_id, **inputs):
    cls = NODE_CLASS_MAPPINGS[node_id]
    made = getattr(cls(), cls.FUNCTION)(**inputs)
    return made["result"] if isinstance(made, dict) else made


def tiny(kind="base"):
    return Stage(StageConfig(kind, 16, 4 if kind == "sr" else 1, PRESETS[f"tiny-{kind}"]))


def a_lora(stage, **more):
    weight = stage.unet.get_submodule("time_embedding.linear_1").weight
    update = Update(torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2), **more)
    return LoRA(stage.config, {"time_embedding.linear_1": update})


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    return tmp_path


def test_saved_and_loaded_they_stack(models):
    stage = tiny()
    lora = a_lora(stage)
    node("ImagenSaveLoRA", lora=lora, name="styles/mine", layout="kohya")
    assert set(host.lora_names()) == {"styles/mine.safetensors", *BUNDLED}
    once, again = node("ImagenLoadLoRA", stage=stage, lora="styles/mine.safetensors", strength=0.5)
    twice, _ = node("ImagenLoadLoRA", stage=once, lora="styles/mine.safetensors", strength=0.5)
    x = torch.randn(3, 16)
    expected = apply_lora(stage, lora).unet.get_submodule("time_embedding.linear_1")(x)
    found = twice.unet.get_submodule("time_embedding.linear_1")(x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert again.updates.keys() == lora.updates.keys()
    cls = NODE_CLASS_MAPPINGS["ImagenLoadLoRA"]
    assert cls.VALIDATE_INPUTS("styles/mine.safetensors") is True
    assert "models/loras" in cls.VALIDATE_INPUTS("gone.safetensors") or "loras" in str(
        cls.VALIDATE_INPUTS("gone.safetensors")
    )


def test_the_tooltip_says_what_the_bundled_ones_are_for(models):
    names, options = NODE_CLASS_MAPPINGS["ImagenLoadLoRA"].INPUT_TYPES()["required"]["lora"]
    assert set(names) == BUNDLED
    for name in ("emoji_few_steps", "steps 4", "sampler ddim", "guidance scale of 1"):
        assert name in options["tooltip"]


@pytest.mark.parametrize("name", ["../out", "", "/etc/x", ".safetensors"])
def test_a_name_stays_in_its_folder(models, name):
    with pytest.raises(ValueError, match="Save Imagen LoRA: name: expected a name inside"):
        node("ImagenSaveLoRA", lora=a_lora(tiny()), name=name, layout="peft")


def test_one_for_another_stage_is_refused_by_the_nodes_name(models):
    save_lora(a_lora(tiny("sr")), models / "loras/sr.safetensors")
    with pytest.raises(
        ValueError, match=r"Load Imagen LoRA: .*a LoRA for a super-resolution stage"
    ):
        node("ImagenLoadLoRA", stage=tiny(), lora="sr.safetensors", strength=1.0)


class Patcher:
    def __init__(self):
        self.patches = []

    def add_patches(self, patches, strength):
        self.patches.append((patches, strength))


def test_comfyui_gets_them_as_patches_of_the_plain_stages_model(monkeypatch):
    """One handle holds the weights; what it patches them with is what our layers compute."""
    stage, bias = tiny(), torch.randn(32)
    lora, made = a_lora(stage, bias=bias), []
    dora = a_lora(stage, magnitude=torch.rand(32) + 0.5)
    both = apply_lora(apply_lora(stage, lora, 0.5), dora, 2.0)
    real = model.native_model

    def native_model(given):
        if given.plain is not None:
            return real(given)
        made.append(given)
        return Patcher()

    monkeypatch.setattr(model, "native_model", native_model)
    monkeypatch.setattr(model, "comfy", lambda name: None if "adapter" in name else object())
    (one, first), (other, second) = native_model(both).patches
    assert made == [stage]
    assert (first, second) == (0.5, 2.0)
    layer = stage.unet.get_submodule("time_embedding.linear_1")
    merged = layer.weight.clone()
    for patches, strength in ((one, first), (other, second)):
        kind, (difference,) = patches["diffusion_model.time_embedding.linear_1.weight"]
        assert kind == "diff"
        merged += strength * difference
    x = torch.randn(4, 16)
    expected = both.unet.get_submodule("time_embedding.linear_1")(x)
    bias = layer.bias + 0.5 * one["diffusion_model.time_embedding.linear_1.bias"][1][0]
    assert torch.allclose(x @ merged.T + bias, expected, atol=1e-5)


def test_comfyui_is_told_of_the_plain_network_alone(monkeypatch):
    """Two handles of one weight would each believe that they know where it is."""
    from imagen_nodes.nodes.host import memory

    stage = tiny()
    both, told = apply_lora(stage, a_lora(stage)), []

    class Management:
        def get_torch_device(self):
            return torch.device("cpu")

        def load_models_gpu(self, handles, memory_required, force_full_load):
            assert force_full_load, "its twin's layers do not bring weights"
            told.extend(handles)

    monkeypatch.setattr(memory, "comfy", lambda name: Management())
    monkeypatch.setattr(memory, "patcher_of", lambda module, role: module)
    with host.on_device(both.unet):
        pass
    assert told == [stage.unet]


def test_a_folder_of_pefts_is_a_name(models):
    folder = models / "loras/peft"
    stage = tiny()
    save_lora(a_lora(stage), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    assert set(host.lora_names()) == {"peft", *BUNDLED}
    assert load_lora(host.lora_file("peft"), stage).rank == 2
