"""The host's services, in a shell and with ComfyUI's modules standing by as fakes."""

import sys
import types

import pytest
import torch

from imagen_nodes.nodes import host


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEN_MODELS", str(tmp_path))
    cascade = tmp_path / "imagen" / "mine"
    (cascade / "text_encoder").mkdir(parents=True)
    (cascade / "cascade.json").write_text("{}")
    (cascade / "base.safetensors").write_bytes(b"")
    (cascade / "text_encoder" / "config.json").write_text("{}")
    (tmp_path / "diffusion_models").mkdir()
    (tmp_path / "diffusion_models" / "lone.safetensors").write_bytes(b"")
    (tmp_path / "secret.safetensors").write_bytes(b"")
    return tmp_path


def test_models_are_listed_by_kind(models):
    assert "mine" in host.cascade_names()
    assert {"lone.safetensors", "mine/base.safetensors"} <= set(host.stage_names())
    assert "mine/text_encoder" in host.text_encoder_names()
    assert not any("text_encoder" in name for name in host.stage_names())


def test_names_resolve_inside_their_folders_only(models):
    found = host.resolve(("diffusion_models", "imagen"), "mine/base.safetensors", "stage")
    assert found == (models / "imagen/mine/base.safetensors").resolve()
    for name in ("../secret.safetensors", str(models / "secret.safetensors"), "", ".", "absent"):
        with pytest.raises(ValueError, match="stage: expected a name inside"):
            host.resolve(("diffusion_models", "imagen"), name, "stage")


def test_a_link_out_of_the_folder_is_not_followed(models):
    (models / "diffusion_models" / "way_out.safetensors").symlink_to(models / "secret.safetensors")
    with pytest.raises(ValueError, match="expected a name inside"):
        host.resolve(("diffusion_models",), "way_out.safetensors", "stage")


def test_progress_goes_to_the_reporter_of_the_runner():
    seen = []
    token = host.reporter.set(lambda *step: seen.append(step))
    try:
        host.progress()(1, 2, "x0")
    finally:
        host.reporter.reset(token)
    assert seen == [(1, 2, "x0")]
    host.progress()(1, 2, "nobody listens")


class FakeComfy:
    """The modules of ComfyUI that the host may touch, and what it did with them."""

    def __init__(self, monkeypatch, folder):
        self.loaded, self.updates, self.interrupted = [], [], False
        outer = self

        class ProgressBar:
            def __init__(self, total):
                self.total = total

            def update_absolute(self, value, total, preview):
                outer.updates.append((value, total, preview))

        def check():
            if outer.interrupted:
                raise InterruptedError

        class ModelPatcher:
            """As ComfyUI's: the patched module carries a device, which loading assigns."""

            def __init__(self, model, load_device, offload_device):
                self.model, self.load_device = model, load_device
                if not hasattr(model, "device"):
                    model.device = offload_device

        def load(patchers, force_full_load=False):
            for patcher in patchers:
                outer.loaded.append((patcher, force_full_load))
                patcher.model.to(patcher.load_device)
                patcher.model.device = patcher.load_device

        management = types.SimpleNamespace(
            get_torch_device=lambda: torch.device("cpu"),
            unet_offload_device=lambda: torch.device("cpu"),
            load_models_gpu=load,
            throw_exception_if_processing_interrupted=check,
        )
        paths = types.SimpleNamespace(
            folder_names_and_paths={"diffusion_models": ([str(folder)], set())},
            get_folder_paths=lambda kind: [str(folder)],
            models_dir=str(folder),
        )
        utils = types.SimpleNamespace(ProgressBar=ProgressBar)
        patchers = types.SimpleNamespace(ModelPatcher=ModelPatcher)
        for name, module in {
            "comfy.model_management": management,
            "comfy.model_patcher": patchers,
            "comfy.utils": utils,
            "folder_paths": paths,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    return FakeComfy(monkeypatch, tmp_path)


def test_comfy_manages_the_memory_of_a_network_by_one_patcher(comfy):
    network = torch.nn.Linear(2, 2)
    for _ in range(2):
        with host.on_device(network):
            pass
    (first, _), (second, _) = comfy.loaded
    assert first is second
    assert network in first.model.modules()


def test_comfy_loads_a_network_whole(comfy):
    """A partial load leaves plain layers where they are, and a network on two devices."""
    with host.on_device(torch.nn.Linear(2, 2)):
        pass
    assert [whole for _, whole in comfy.loaded] == [True]


def test_comfy_loads_a_t5_whose_device_cannot_be_set(comfy, t5_folder):
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(t5_folder)
    before = set(model.state_dict())
    with host.on_device(model):
        assert model.device == torch.device("cpu")
    assert set(model.state_dict()) == before


def test_comfy_shows_previews_and_may_interrupt(comfy):
    on_step = host.progress()
    x0 = torch.zeros(2, 3, 64, 64)
    on_step(1, 2, x0)
    on_step(2, 2, x0)
    assert [update[:2] for update in comfy.updates] == [(1, 2), (2, 2)]
    kind, picture, _ = comfy.updates[-1][2]
    assert kind == "JPEG"
    assert picture.size == (256, 256)
    assert picture.getpixel((0, 0)) == (127, 127, 127)
    comfy.interrupted = True
    with pytest.raises(InterruptedError):
        on_step(2, 2, x0)


def test_comfy_folders_are_used(comfy, tmp_path):
    (tmp_path / "here.safetensors").write_bytes(b"")
    assert "here.safetensors" in host.stage_names()
    assert host.folders("imagen")[0] == tmp_path / "imagen"


def test_auto_dtype_is_float32_on_a_cpu(comfy):
    assert host.dtype("auto") == torch.float32
    assert host.dtype("bfloat16") == torch.bfloat16
