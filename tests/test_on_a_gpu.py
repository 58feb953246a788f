"""The bundled cascade and a step of training on a real GPU, held against the CPU: `pytest -m gpu`."""

import pytest
import torch

from imagen_nodes.imagen_core import load_cascade
from imagen_nodes.imagen_core.kernels.precision import gpu_half
from imagen_nodes.imagen_core.offload import layers_of, least_budget
from imagen_nodes.imagen_core.training.ema import EMA
from imagen_nodes.imagen_core.training.loss import diffusion_loss
from imagen_nodes.imagen_core.training.optim import make_optimizer

GPU = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU"),
]
CLOSE = 0.02  # root mean square of values in 0..1; convolutions of float32 may round to TF32


def made_on(device, dtype, **given):
    cascade = load_cascade("emoji", device, dtype)
    return cascade.generate(["a red apple", "a blue heart"], steps=4, **given)


def apart(one, other):
    assert one.isfinite().all()
    return (one - other).square().mean().sqrt().item()


@pytest.mark.parametrize("sampler", ["unipc", "ddpm"])
def test_images_are_those_of_the_cpu(sampler):
    given = dict(upto=256, sampler=sampler)
    made = made_on(GPU, torch.float32, **given)
    assert made.device.type == "cpu"
    assert apart(made, made_on("cpu", torch.float32, **given)) < CLOSE


def test_half_precision_is_near():
    half = gpu_half(torch.device(GPU, 0))
    if half is None:
        pytest.skip("this GPU is fast in none")
    expected = made_on("cpu", torch.float32, upto=64, sampler="unipc")
    assert apart(made_on(GPU, half, upto=64, sampler="unipc"), expected) < 5 * CLOSE


@torch.no_grad()
def test_a_network_that_turns_by_turn_is_on_the_gpu_makes_the_same_images():
    cascade = load_cascade("emoji", "cpu", torch.float32)
    text = cascade.text_encoder.encode_prompt("a red apple")
    network, device = cascade.base.unet, torch.device(GPU, 0)
    x, t = torch.randn(1, 3, 64, 64), torch.full((1,), 500.0)
    expected = network(x, t, network.prepare(text.text))
    layers = layers_of(network)
    for budget in (least_budget(layers), 2**60):
        with cascade.base.offloaded(budget, device):
            context = network.prepare(text.text)
            for _ in range(3):
                made = network(x.to(device), t.to(device), context).cpu()
        torch.testing.assert_close(made, expected, rtol=0.02, atol=0.02)
        assert all(each.device.type == "cpu" for each in network.parameters())


def test_a_step_of_training_lowers_the_loss_on_the_same_batch():
    cascade = load_cascade("emoji", GPU, torch.float32)
    stage, text = cascade.base, cascade.text_encoder.encode(["a red apple"]).expand(4).to(GPU)
    stage.unet.requires_grad_(True)
    optimizer, average = make_optimizer(stage.unet, "adamw", 1e-4, 0.01), EMA(stage.unet, 0.99)
    x0, noise = torch.zeros(4, 3, 64, 64, device=GPU), torch.randn(4, 3, 64, 64, device=GPU)
    t, losses = torch.linspace(0.2, 0.9, 4, device=GPU), []
    half = gpu_half(torch.device(GPU, 0)) is torch.bfloat16
    for _ in range(4):
        with torch.autocast(GPU, torch.bfloat16, enabled=half):
            loss = diffusion_loss(stage, x0, text, t, noise).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(stage.unet)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
