"""Convolution whose weights are put into oneDNN's own layout once, not at every call.

On a CPU a convolution brings its weights into a blocked layout first, which at low resolution can cost
as much as the arithmetic. Weights are packed for each shape of the input, so that results are those of
nn.Conv2d to the bit, whatever was evaluated before. Measured in benchmarks/NOTES.md.
"""

import weakref
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

KEPT = 2  # input shapes whose weights are kept: guidance evaluates one and two rows a picture
MOST_BYTES = 2**31  # of all packed weights together; convolutions beyond it stay plain
DTYPES = (torch.float32, torch.bfloat16)
SMALL = 20480  # values; torch computes a single float32 picture up to here without oneDNN
MANY = 16  # rows; on one thread torch computes fewer in a 1 x 1 convolution without oneDNN


class Packed(NamedTuple):
    """Weights in oneDNN's layout, and what they were made from.

    weight    opaque to everything but oneDNN
    source    the plain weights
    version   how often those had been changed
    """

    weight: Tensor
    source: Tensor
    version: int


class Conv2d(nn.Conv2d):
    """nn.Conv2d; on a CPU, where no gradient is asked for, with packed weights."""

    bytes_packed: ClassVar[int] = 0  # by all convolutions together

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.packed: dict[tuple[int, ...], Packed] = {}

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # a network of shapes alone has no values
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        weight = self.packed_for(input) if self.packs(input) else None
        if weight is None:
            return super().forward(input)
        return torch.ops.mkldnn._convolution_pointwise(
            input, weight, self.bias, self.padding, self.stride, self.dilation, self.groups,
            "none", [], "",
        )  # fmt: skip

    def packs(self, input: Tensor) -> bool:
        """Whether packed weights serve for this input.

        input   b c h w
        """
        if torch.compiler.is_compiling():
            return False
        weight = self.weight
        asked = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        return (
            not asked
            and input.device.type == weight.device.type == "cpu"
            and input.dtype == weight.dtype
            and weight.dtype in DTYPES
            and (weight.dtype == torch.float32 or packs_bfloat16())
            and type(weight) in (Tensor, nn.Parameter)
            and input.ndim == 4
            and (weight.dtype != torch.float32 or self.torch_takes_oneDNN(input))
            and isinstance(self.padding, tuple)
            and self.padding_mode == "zeros"
            and input.is_contiguous(memory_format=torch.channels_last)
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
        )

    def torch_takes_oneDNN(self, input: Tensor) -> bool:
        """Whether torch itself computes this float32 convolution with oneDNN: else its bits are others.

        input   b c h w

        The rule of `ConvParams::use_mkldnn` in torch's Convolution.cpp.
        """
        points = self.kernel_size == (1, 1) and self.stride == self.dilation == (1, 1)
        if points and len(input) < MANY and torch.get_num_threads() == 1:
            return False
        return (
            self.groups > 1 or min(self.kernel_size) > 3 or len(input) > 1 or input.numel() > SMALL
        )

    def packed_for(self, input: Tensor) -> Tensor | None:
        """The weights packed for this shape of input, made anew where they have changed; None: no room.

        input   b c h w
        """
        weight, shape = self.weight, tuple(input.shape)
        version = 0 if weight.is_inference() else weight._version
        found = self.packed.pop(shape, None)
        if found is None or found.source is not weight or found.version != version:
            found = self.pack(weight, shape, version)
            if found is None:
                return None
        while len(self.packed) >= KEPT:
            del self.packed[next(iter(self.packed))]
        self.packed[shape] = found
        return found.weight

    def pack(self, weight: Tensor, shape: tuple[int, ...], version: int) -> Packed | None:
        """Weights brought into the layout that oneDNN wants for a shape of input; None: no room."""
        size = weight.numel() * weight.element_size()
        if Conv2d.bytes_packed + size > MOST_BYTES:
            return None
        made = torch._C._nn.mkldnn_reorder_conv2d_weight(  # pyright: ignore[reportAttributeAccessIssue]
            weight.detach().contiguous().to_mkldnn(),
            self.padding, self.stride, self.dilation, self.groups, shape,
        )  # fmt: skip
        Conv2d.bytes_packed += size
        weakref.finalize(made, released, size)
        return Packed(made, weight, version)

    def _apply(self, fn, recurse=True):
        self.packed.clear()  # weights move or change their dtype
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "packed": {}}


@cache
def packs_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 on this CPU, from AVX-512 on; elsewhere its operations raise."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def released(size: int) -> None:
    """Count packed weights that are gone."""
    Conv2d.bytes_packed -= size
