"""Networks that do not fit: ComfyUI leaves a part of them behind, and the picture is the same.

Once at DeepFloyd IF's largest shape: of 8.02 GiB of random bfloat16 weights, 6.79 GiB were loaded under a
limit of 8 GiB, and 158 layers brought theirs; two steps of 32 x 32 gave the bytes of the unlimited run.
"""

LIMITED = """
from dataclasses import replace
management = comfy.model_management
from imagen_pack.nodes.host import memory, paging
import comfy.ops

def sampled(stage):
    torch.manual_seed(0)
    width = stage.config.unet.text_dim
    states = core.TextEmbedding(torch.randn(1, 7, width), torch.ones(1, 7, dtype=torch.bool))
    text = core.EncodedPrompt(states, core.TextEmbedding(0 * states.embeds, states.mask))
    given = dict(stage=stage, text=text, width=32, height=32, batch_size=1, seed=1, steps={steps})
    (image,) = node("ImagenBaseSample", **given, sampler="ddim", strength=1.0)
    return image

torch.manual_seed(1)
stage = core.Stage(core.StageConfig("base", 64, 1, {config}))
with torch.no_grad():
    for parameter in stage.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
with torch.inference_mode():
    whole = sampled(stage)
    handle = memory.patcher_of(stage.unet)
    size = handle.model_size()
    management.unload_all_models()

    # As on a card: the network goes to a device of its own, which has less room than it needs.
    limit = {limit}
    management.vram_state = management.VRAMState.NORMAL_VRAM
    management.is_device_cpu = lambda device: False
    management.get_free_memory = lambda *given, **named: limit
    management.minimum_inference_memory = lambda: 0
    management.MIN_WEIGHT_MEMORY_RATIO = 0.0
    paging.take_operations(stage.unet, comfy.ops.disable_weight_init)
    cast, plain = [], comfy.ops.cast_bias_weight
    def casting(layer, *given, **named):
        cast.append(layer)
        return plain(layer, *given, **named)
    comfy.ops.cast_bias_weight = casting
    parted = sampled(stage)
    loaded = handle.model.model_loaded_weight_memory
told(difference=(whole - parted).abs().max().item(), size=size, limit=limit, loaded=loaded,
     cast=len({id(layer) for layer in cast}), spread=whole.std().item())
"""
TINY = """core.ADMConfig(
    (32, 64), (2, 2), (False, True), text_dim=64, context_dim=64, time_dim=128, head_dim=16,
    pool_heads=4, text_proj=True,
)"""


def test_a_network_larger_than_the_device_samples_the_same_image(inside_comfy):
    code = LIMITED.replace("{config}", TINY).replace("{steps}", "3")
    found = inside_comfy(code.replace("{limit}", "0.3 * size"))
    assert found["loaded"] <= found["limit"] < found["size"]
    assert found["cast"] > 10, "layers bring their weights"
    assert found["difference"] < 1e-4
    assert found["spread"] > 0.01
