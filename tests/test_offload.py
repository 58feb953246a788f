"""A network whose weights take turns on the device: results, what is there at once, what comes when."""

import copy

import pytest
import torch

from imagen_nodes.imagen_core import PRESETS, Stage, StageConfig, TextEmbedding, offload
from imagen_nodes.imagen_core.offload import PLACES, Copies, layers_of, offloaded
from imagen_nodes.imagen_core.stage import build_unet

CPU = torch.device("cpu")


class Watched(Copies):
    """Counts copies, and notes the order of copies and of layers that compute."""

    def __init__(self):
        super().__init__(CPU)
        self.events, self.bytes, self.finished = [], 0, []

    def start(self, pairs, after):
        self.events.append(("copy", pairs[0][0].data_ptr()))
        self.bytes += sum(source.nbytes for source, _ in pairs)
        super().start(pairs, after)
        return pairs[0][0].data_ptr()

    def finish(self, started):
        self.events.append(("compute", started))

    def passed(self):
        self.finished.append(len(self.events))


def network(preset):
    torch.manual_seed(0)
    unet = build_unet(PRESETS[preset])
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return unet


def evaluated(unet, preset):
    torch.manual_seed(1)
    context = unet.prepare(TextEmbedding(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)))
    x, t = torch.randn(2, 3, 16, 16), torch.full((2,), 500.0)
    lowres = (torch.randn(2, 3, 16, 16), torch.full((2,), 100.0)) if "sr" in preset else ()
    return unet(x, t, context, *lowres)


@pytest.mark.parametrize("preset", ["tiny-base", "tiny-sr"])
@torch.no_grad()
def test_results_are_those_of_a_device_that_holds_everything(preset):
    unet = network(preset)
    plain, expected = copy.deepcopy(unet), evaluated(unet, preset)
    homes = [each.data_ptr() for each in plain.parameters()]
    layers = layers_of(plain)
    largest, total = max(x.size for x in layers), sum(x.size for x in layers)
    budget, watched = PLACES * largest + (total - PLACES * largest) // 3, Watched()
    assert budget < total
    with offloaded(plain, budget, CPU, watched):
        for _ in range(2):
            torch.testing.assert_close(evaluated(plain, preset), expected, rtol=0, atol=1e-6)
        there = {
            each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
            for each in plain.parameters()
        }
    assert sum(there.values()) <= budget
    assert watched.bytes > total - budget  # the rest came, more than once
    assert [each.data_ptr() for each in plain.parameters()] == homes
    # Of the second evaluation: before a layer computes, the copy of the one after it has begun.
    computes = [i for i, (what, _) in enumerate(watched.events) if what == "compute"]
    half = len(computes) // 2
    begun = {}
    for i, (what, which) in enumerate(watched.events):
        if what == "copy":
            begun[which] = i
        elif i > computes[half] and which in begun:
            assert begun[which] < i - 1, "its copy began only when it was needed"


@torch.no_grad()
def test_a_budget_that_holds_everything_copies_nothing_again():
    unet, watched = network("tiny-base"), Watched()
    expected = evaluated(unet, "tiny-base")
    with offloaded(unet, 2**40, CPU, watched):
        assert torch.equal(evaluated(unet, "tiny-base"), expected)
    assert not watched.events


class Numbered(Watched):
    """Whose events are numbers, from 1 on."""

    def passed(self):
        super().passed()
        return len(self.finished)

    def start(self, pairs, after):
        assert after is not None, "what computed in that memory before may not have ended"
        return super().start(pairs, after)


@torch.no_grad()
def test_a_place_is_written_to_only_after_what_was_computed_in_its_memory_before():
    unet, numbered = network("tiny-base"), Numbered()
    budget = offload.least_budget(layers_of(unet))
    with offloaded(unet, budget, CPU, numbered):
        evaluated(unet, "tiny-base")
    assert numbered.bytes


class Failing(Watched):
    """A device that has failed by the end."""

    def close(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


@torch.no_grad()
def test_what_fails_inside_leaves_the_network_as_it_was():
    unet = network("tiny-base")
    expected = evaluated(unet, "tiny-base")
    homes = [each.data_ptr() for each in unet.parameters()]
    budget = offload.least_budget(layers_of(unet))
    wrong = torch.zeros(2, 7, 16, 16)  # ends in an error within the first layer
    with pytest.raises(RuntimeError, match="channels"), offloaded(unet, budget, CPU):
        unet.conv_in(wrong)
    with (
        pytest.raises(RuntimeError, match="illegal memory"),
        offloaded(unet, budget, CPU, Failing()),
    ):
        evaluated(unet, "tiny-base")
    assert [each.data_ptr() for each in unet.parameters()] == homes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert torch.equal(evaluated(unet, "tiny-base"), expected)


def test_a_budget_too_small_says_what_is_needed():
    stage = Stage(StageConfig("base", 64, 1, PRESETS["tiny-base"]))
    with (
        pytest.raises(ValueError, match="budget_bytes: expected at least"),
        stage.offloaded(1, "cpu"),
    ):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")
@torch.no_grad()
def test_on_a_gpu_too():
    unet = network("tiny-base").cuda()
    expected = evaluated_on(unet, "cuda")
    unet.cpu()
    layers = layers_of(unet)
    budget = offload.PLACES * max(x.size for x in layers) + 2 * layers[0].size
    with offloaded(unet, budget, torch.device("cuda")):
        torch.testing.assert_close(evaluated_on(unet, "cuda"), expected, rtol=0, atol=1e-5)


def evaluated_on(unet, device):
    with torch.device(device):
        return evaluated(unet, "tiny-base")
