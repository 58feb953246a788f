"""The host's services, in a shell and with ComfyUI's modules standing by as fakes."""

import sys
import types
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imagen_nodes.headless.jobs.workers import Outcome
from imagen_nodes.imagen_core import PRESETS, load_text_encoder
from imagen_nodes.imagen_core.kernels import precision
from imagen_nodes.imagen_core.offload import offloaded
from imagen_nodes.imagen_core.stage import build_unet
from imagen_nodes.nodes import host, loaders
from imagen_nodes.nodes.host import listing


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
    assert not any("text_encoder" in name or "judge" in name for name in host.stage_names())


def test_a_stage_may_lie_in_a_folder_of_any_name(models):
    """What lies in models/imagen beside stages has its folders there alone."""
    names = ["training/mine.safetensors", "loras/tuned.safetensors", "no_text_encoder.safetensors"]
    for place in ("diffusion_models", "imagen"):
        for name in names:
            (models / place / name).parent.mkdir(exist_ok=True)
            (models / place / name).write_bytes(b"")
    assert set(names) <= set(host.stage_names())
    for name in names:
        (models / "diffusion_models" / name).unlink()
    assert set(names) & set(host.stage_names()) == {"no_text_encoder.safetensors"}


def test_deepfloyd_folders_are_listed_whole(models):
    """By the folder's name, their files and the shards of those not one by one."""
    for file in (
        "IF-I-M/unet/diffusion_pytorch_model.fp16.safetensors",
        "IF-I-M/config.yml",
        "IF-II-M/diffusion_pytorch_model-00001-of-00002.safetensors",
        "IF-I-L/pytorch_model.bin",
        "IF-I-L/config.yml",
    ):
        (models / "diffusion_models" / file).parent.mkdir(parents=True, exist_ok=True)
        (models / "diffusion_models" / file).write_bytes(b"")
    (models / "diffusion_models" / "lone.bin").write_bytes(b"")
    names = [name for name in host.stage_names() if "emoji" not in name and "mine" not in name]
    assert sorted(names) == ["IF-I-L", "IF-I-M", "IF-II-M", "lone.bin", "lone.safetensors"]


def test_folders_are_searched_once_until_they_change(models, monkeypatch):
    searched = []
    search = listing.search
    monkeypatch.setattr(listing, "search", lambda root: searched.append(root) or search(root))
    for _ in range(20):
        for names in (host.stage_names, host.text_encoder_names, host.cascade_names):
            names()
        host.text_names()
    assert len(searched) == len(set(searched))
    (models / "diffusion_models" / "second.safetensors").write_bytes(b"")
    assert "second.safetensors" in host.stage_names()
    (models / "diffusion_models" / "second.safetensors").unlink()
    assert "second.safetensors" not in host.stage_names()
    (models / "imagen" / "mine" / "new").mkdir()
    (models / "imagen" / "mine" / "new" / "config.json").write_text("{}")
    assert "mine/new" in host.text_encoder_names()
    (models / "text_encoders" / "t5").mkdir(parents=True)
    (models / "text_encoders" / "t5" / "config.json").write_text("{}")
    assert "t5" in host.text_encoder_names()


def test_links_in_a_circle_end(models):
    (models / "diffusion_models" / "again").symlink_to(models / "diffusion_models")
    (models / "diffusion_models" / "gone").symlink_to(models / "not there")
    assert "lone.safetensors" in host.stage_names()


def test_a_validation_asks_each_class_once(models, monkeypatch):
    from imagen_nodes.cli.node_classes import default_registry
    from imagen_nodes.headless.engine.validate import check
    from imagen_nodes.headless.graph import Link, Node

    asked, searched = [], []
    search = listing.search
    monkeypatch.setattr(listing, "search", lambda root: searched.append(root) or search(root))
    for cls in (loaders.ImagenLoadStage, loaders.ImagenLoadTextEncoder):
        types = cls.INPUT_TYPES()
        answer = classmethod(lambda cls, types=types: asked.append(cls) or types)
        monkeypatch.setattr(cls, "INPUT_TYPES", answer)
    graph = {}
    for n in range(10):
        inputs = {"stage": "lone.safetensors", "dtype": "auto"}
        graph[f"s{n}"] = Node(f"s{n}", "ImagenLoadStage", "", inputs)
        inputs = {"text_encoder": "mine/text_encoder", "dtype": "auto"}
        graph[f"t{n}"] = Node(f"t{n}", "ImagenLoadTextEncoder", "", inputs)
        graph[f"p{n}"] = Node(f"p{n}", "PreviewImage", "", {"images": Link(f"s{n}", 0)})
        graph[f"q{n}"] = Node(f"q{n}", "PreviewImage", "", {"images": Link(f"t{n}", 0)})
    searched.clear()
    problems = check(graph, default_registry()).problems
    assert {problem.type for problem in problems} == {"return_type_mismatch"}
    assert len(asked) == 2
    assert len(searched) == len(set(searched))


def test_names_resolve_inside_their_folders_only(models):
    found = host.resolve(("diffusion_models", "imagen"), "mine/base.safetensors", "stage")
    assert found == (models / "imagen/mine/base.safetensors").resolve()
    for name in ("../secret.safetensors", str(models / "secret.safetensors"), "", ".", "absent"):
        with pytest.raises(ValueError, match="stage: expected a name inside"):
            host.resolve(("diffusion_models", "imagen"), name, "stage")


def test_links_that_lie_in_a_folder_are_offered_and_followed(models):
    """Models shared between programs, and those of a hub's cache, are links."""
    disk = models / "disk"
    disk.mkdir()
    (disk / "shared.safetensors").write_bytes(b"")
    (models / "diffusion_models" / "linked.safetensors").symlink_to(disk / "shared.safetensors")
    (models / "diffusion_models" / "folder").symlink_to(disk)
    for name in ("linked.safetensors", "folder/shared.safetensors"):
        assert name in host.stage_names()
        assert host.resolve(("diffusion_models",), name, "stage").is_file()


def test_a_published_file_in_a_root_that_is_called_unet_is_a_file_like_any(models, monkeypatch):
    root = models / "unet"
    root.mkdir()
    (root / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (root / "IF" / "unet").mkdir(parents=True)
    (root / "IF" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (root / "config.json").write_bytes(b"{}")
    monkeypatch.setattr("imagen_nodes.nodes.host.files.folders", lambda kind: [root])
    assert host.stage_names() == ["IF", "diffusion_pytorch_model.safetensors"]
    assert "." not in host.text_encoder_names()


def test_a_batch_that_a_gpu_cannot_hold_begins_so_that_it_can_be_split(monkeypatch):
    unet = build_unet(PRESETS["tiny-base"])
    monkeypatch.setattr(host.memory, "compute_device", lambda role="unet": torch.device("cuda"))
    monkeypatch.setattr("imagen_nodes.imagen_core.memory.free_bytes", lambda device: 1e6)
    budget = host.memory._budget(unet, 1e12, "unet")
    with offloaded(unet, budget, torch.device("cpu")):
        pass
    assert budget < sum(each.nbytes for each in unet.parameters())


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    ],
)
def test_no_memory_is_known_by_what_each_device_says(said):
    assert host.out_of_memory(RuntimeError(said))
    assert Outcome(None, error=said).short_of_memory, "a batch tries the row again"
    assert not host.out_of_memory(ValueError(said))
    assert not host.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


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
                self.offload_device = offload_device
                if not hasattr(model, "device"):
                    model.device = offload_device
                self.loaded = 0

            def model_size(self):
                return 100

            def loaded_size(self):
                return self.loaded

            def load(
                self,
                device_to=None,
                lowvram_model_memory=0,
                force_patch_weights=False,
                full_load=False,
            ):
                self.loaded = 100 if full_load else lowvram_model_memory
                self.model.to(device_to)
                self.model.device = device_to

        def load(patchers, memory_required=0, force_full_load=False):
            for patcher in patchers:
                outer.loaded.append((patcher, memory_required))
                patcher.load(patcher.load_device, lowvram_model_memory=10)

        management = types.SimpleNamespace(
            get_torch_device=lambda: torch.device("cpu"),
            unet_offload_device=lambda: torch.device("cpu"),
            text_encoder_device=lambda: torch.device("cpu"),
            text_encoder_offload_device=lambda: torch.device("meta"),
            intermediate_device=lambda: torch.device("meta"),
            load_models_gpu=load,
            throw_exception_if_processing_interrupted=check,
        )
        named = {"diffusion_models": ([str(folder)], set())}
        paths = types.SimpleNamespace(
            folder_names_and_paths=named,
            get_folder_paths=lambda kind: named[kind][0],
            add_model_folder_path=lambda kind, path: named.setdefault(kind, ([], set()))[0].append(
                path
            ),
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


def test_what_is_usual_is_no_warning_in_comfy(comfy, caplog):
    with caplog.at_level("INFO", "imagen_nodes"):
        host.tell("12 images, 0 files skipped")
        host.note("out of memory; trying with less")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_a_shell_shows_what_is_usual_too(caplog):
    host.tell("12 images, 0 files skipped")
    assert caplog.text.count("0 files skipped") == 1


def test_comfy_manages_the_memory_of_a_network_by_one_patcher(comfy):
    network = torch.nn.Linear(2, 2)
    for _ in range(2):
        with host.on_device(network):
            pass
    first, second = (patcher for patcher, *_ in comfy.loaded)
    assert first is second
    assert network in first.model.modules()


def test_comfy_may_leave_a_part_of_a_network_behind_whose_layers_are_its_own(comfy):
    network = torch.nn.Linear(2, 2)
    network.comfy_cast_weights = False
    with host.on_device(network):
        pass
    ((patcher, _),) = comfy.loaded
    assert patcher.loaded_size() < patcher.model_size()


def test_comfy_loads_a_network_whole_however_little_memory_it_means_to_use(comfy):
    """A partial load leaves plain layers where they are, and a network on two devices."""
    with host.on_device(torch.nn.Linear(2, 2)):
        pass
    ((patcher, _),) = comfy.loaded
    assert patcher.loaded_size() == patcher.model_size()


def test_comfy_is_told_how_much_memory_running_takes(comfy):
    with host.on_device(torch.nn.Linear(2, 2), memory_required=5e9):
        pass
    assert [required for *_, required in comfy.loaded] == [5e9]


def test_a_text_encoder_goes_where_comfy_wants_text_encoders(comfy):
    with host.on_device(torch.nn.Linear(2, 2), role="text_encoder"):
        pass
    ((patcher, *_),) = comfy.loaded
    assert patcher.offload_device == torch.device("meta")


def test_results_go_where_comfy_wants_them(comfy):
    assert host.to_results(torch.zeros(1)).device == torch.device("meta")


def test_the_imagen_folder_is_registered_beside_those_of_the_user(comfy, tmp_path):
    paths = sys.modules["folder_paths"]
    paths.folder_names_and_paths["imagen"] = (["/mine"], set())  # from extra_model_paths.yaml
    host.register_folders()
    assert host.folders("imagen")[:2] == [Path("/mine"), tmp_path / "imagen"]
    assert paths.folder_names_and_paths["imagen"][1] == {".safetensors"}


def test_comfy_loads_a_t5_and_its_weights_keep_their_names(comfy, t5_folder):
    model = load_text_encoder(t5_folder).model
    before = set(model.state_dict())
    with host.on_device(model, role="text_encoder"):
        pass
    assert set(model.state_dict()) == before
    ((patcher, _),) = comfy.loaded
    assert patcher.model is model


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


def test_a_large_preview_is_made_small_by_averaging(comfy):
    x0 = torch.full((1, 3, 1024, 512), -1.0)
    x0[..., ::2] = 1.0  # columns that alternate; any smaller picture that averages is grey
    host.progress()(1, 2, x0)
    picture = comfy.updates[-1][2][1]
    assert picture.size == (128, 256)
    assert picture.getextrema() == ((127, 127),) * 3


def test_the_last_preview_stays_and_has_the_picture_s_own_size(comfy):
    """ComfyUI writes the size of what it shows below it."""
    host.progress()(2, 2, torch.zeros(1, 3, 512, 384))
    kind, picture, most = comfy.updates[-1][2]
    assert (kind, picture.size, most) == ("JPEG", (384, 512), 512)


def test_comfy_folders_are_used(comfy, tmp_path):
    (tmp_path / "here.safetensors").write_bytes(b"")
    assert "here.safetensors" in host.stage_names()
    assert host.folders("imagen")[0] == tmp_path / "imagen"


@pytest.mark.parametrize("fast", [True, False])
def test_auto_dtype_on_a_cpu_is_what_it_computes_in(comfy, monkeypatch, fast):
    monkeypatch.setattr(precision, "cpu_computes_bfloat16", lambda: fast)
    assert host.dtype("auto") == (torch.bfloat16 if fast else torch.float32)
    assert host.dtype("auto", role="text_encoder") == torch.float32
    assert host.dtype("float32") == torch.float32
    assert host.dtype("bfloat16", role="text_encoder") == torch.bfloat16


GPUS = [
    ((8, 6), "NVIDIA GeForce RTX 3060", torch.bfloat16),
    ((7, 5), "Tesla T4", torch.float16),
    ((7, 5), "NVIDIA GeForce GTX 1660 Ti", torch.float32),
    ((6, 1), "NVIDIA GeForce GTX 1080", torch.float32),
]


@pytest.mark.parametrize(("capability", "name", "expected"), GPUS)
def test_auto_dtype_on_a_gpu_is_one_that_it_computes_in(monkeypatch, capability, name, expected):
    """Torch says of old ones that they support bfloat16, which it emulates there."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given, **named: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert host.dtype("auto", torch.device("cuda", 1)) == expected
    assert precision.computes_bfloat16("cuda") == (expected is torch.bfloat16)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert host.dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_auto_dtype_is_that_of_the_device_that_was_chosen(monkeypatch):
    monkeypatch.setattr(
        "imagen_nodes.nodes.host.memory.compute_device", lambda role="unet": torch.device("cuda")
    )
    assert host.dtype("auto", torch.device("cpu")) == torch.float32
    assert host.dtype("auto", torch.device("mps")) == torch.float16


def test_the_device_is_named_as_tensors_there_name_it(monkeypatch):
    """Else weights that are there are taken for absent."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    token = host.chosen_device.set(torch.device("cuda"))
    try:
        assert host.compute_device() == torch.device("cuda", 1)
        host.chosen_device.set(torch.device("cuda", 0))
        assert host.compute_device() == torch.device("cuda", 0)
    finally:
        host.chosen_device.reset(token)


@pytest.mark.parametrize("role", ["unet", "text_encoder"])
def test_weights_are_lent_to_a_device_and_not_copied_back(monkeypatch, role):
    lent, network = [], torch.nn.Linear(2, 2)

    @contextmanager
    def lend(module, budget, device):
        lent.append((module, device))
        assert budget > 2**40
        yield

    device = torch.device("mps")
    monkeypatch.setattr(host.memory, "compute_device", lambda role="unet": device)
    monkeypatch.setattr("imagen_nodes.imagen_core.offload.offloaded", lend)
    monkeypatch.setattr(network, "to", None)
    with host.on_device(network, role=role):
        assert lent == [(network, device)]


def test_a_network_may_be_lent_twice(monkeypatch):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GroupNorm(1, 2))
    network.register_buffer("kept", torch.zeros(1))
    homes = [each.data_ptr() for each in network.state_dict().values()]
    monkeypatch.setattr(host.memory, "LENDING", ("cpu",))
    with host.on_device(network), host.on_device(network, role="text_encoder"):
        network(torch.zeros(1, 2))
    assert [each.data_ptr() for each in network.state_dict().values()] == homes


def test_auto_dtype_of_a_text_encoder_is_that_of_its_own_device(monkeypatch):
    """ComfyUI may run T5 on the CPU and networks on a GPU."""
    management = SimpleNamespace(
        get_torch_device=lambda: torch.device("cuda"),
        text_encoder_device=lambda: torch.device("cpu"),
        should_use_bf16=lambda device: True,
        should_use_fp16=lambda device: True,
    )
    known = {"comfy.model_management": management}
    monkeypatch.setattr("imagen_nodes.nodes.host.memory.comfy", known.get)
    given = {}
    core = "imagen_nodes.imagen_core"
    monkeypatch.setattr(
        f"{core}.load_text_encoder", lambda path, **told: given.update(text=told["dtype"])
    )
    monkeypatch.setattr(
        f"{core}.load_stage", lambda path, **told: given.update(stage=told["dtype"])
    )

    def load_cascade(path, dtype, text_dtype):
        given["cascade"] = dtype, text_dtype
        return SimpleNamespace(text_encoder=0, base=0, sr256=0, sr1024=0)

    monkeypatch.setattr(f"{core}.load_cascade", load_cascade)
    monkeypatch.setattr("imagen_nodes.nodes.host.resolve", lambda *given: Path("x"))
    loaders.ImagenLoadTextEncoder().load("x", "auto")
    loaders.ImagenLoadStage().load("x", "auto")
    loaders.ImagenLoadCascade().load("emoji", "auto")
    assert given == {
        "text": torch.float32, "stage": torch.bfloat16, "cascade": (torch.bfloat16, torch.float32)
    }  # fmt: skip
