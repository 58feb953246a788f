"""Convolution whose weights are prepared once, not at every call.

On a CPU a convolution brings its weights into a blocked layout first, which at low resolution can cost
as much as the arithmetic. Weights are packed for each shape of the input, so that results do not depend on
what was evaluated before.

A convolution of an image that was doubled by repeating sees most of its values twice or four times. Added up
beforehand, its 3 x 3 weights are four windows of 2 x 2 on the small image: 4/9 of the arithmetic, and fewer
roundings. IMAGEN_CONVOLUTION=plain in the environment asks for the bits of nn.Conv2d. Measured in
benchmarks/NOTES.md.
"""

import os
import weakref
from functools import cache
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEPT = 2  # input shapes whose weights are kept: guidance evaluates one and two rows a picture
MOST_BYTES = 2**31  # of all prepared weights together; convolutions beyond it stay plain
GROWN = 16 / 9  # four windows of 2 x 2 for one of 3 x 3
DTYPES = (torch.float32, torch.bfloat16)
SMALL = 20480  # values; torch computes a single float32 picture up to here without oneDNN
VARIABLE = "IMAGEN_CONVOLUTION"  # of the environment; "plain" = the bits of torch's own convolution
# Which of three weights in a row fall on which of two small pixels, for even and for odd large ones.
TAPS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
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


class Folded(NamedTuple):
    """The convolution of a small image that does what another does of the doubled one.

    convolution   of 2 x 2 windows, four times as many channels: those of even rows and columns first
    source        weights it was made from
    bias          likewise
    versions      how often those had been changed
    """

    convolution: "Conv2d"
    source: Tensor
    bias: Tensor | None
    versions: tuple[int, int]


class Conv2d(nn.Conv2d):
    """nn.Conv2d; on a CPU, where no gradient is asked for, with prepared weights.

    doubles   whether the input is doubled first, each position repeated 2 x 2; 3 x 3 windows alone
    """

    bytes_kept: ClassVar[int] = 0  # of prepared weights, by all convolutions together

    def __init__(self, *args, doubles: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.doubles = doubles
        self.forget()

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # a network of shapes alone has no values
            super().reset_parameters()

    def forget(self) -> None:
        """Prepare the weights anew at the next call, apart from a layer that shares them."""
        self.packed: dict[tuple[int, ...], Packed] = {}
        self.__dict__["folded"] = None  # no module of this one

    def seen(self, input: Tensor) -> Tensor:
        """What the windows move over: the input, doubled where that is asked for."""
        return F.interpolate(input, scale_factor=2, mode="nearest") if self.doubles else input

    def forward(self, input: Tensor) -> Tensor:
        folds = self.doubles and not plain() and self.packs(input)
        folded = self.folded_now() if folds else None
        if folded is not None:
            return interleaved(folded(input))
        input = self.seen(input)
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
        weight, given = self.weight, (input, self.weight, self.bias)
        return (
            not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given))
            and input.device.type == weight.device.type == "cpu"
            and input.dtype == weight.dtype
            and weight.dtype in DTYPES
            and (weight.dtype == torch.float32 or packs_bfloat16())
            and type(weight) in (Tensor, nn.Parameter)
            and input.ndim == 4
            and (weight.dtype != torch.float32 or not plain() or self.torch_takes_oneDNN(input))
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
        version = version_of(weight)
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
        if not has_room(weight.nbytes):
            return None
        made = torch._C._nn.mkldnn_reorder_conv2d_weight(  # pyright: ignore[reportAttributeAccessIssue]
            weight.detach().contiguous().to_mkldnn(),
            self.padding, self.stride, self.dilation, self.groups, shape,
        )  # fmt: skip
        count(made, weight.nbytes)
        return Packed(made, weight, version)

    def folded_now(self) -> "Conv2d | None":
        """The convolution of the small image, made anew where the weights have changed; None: no room."""
        found, weight, bias = self.__dict__["folded"], self.weight, self.bias
        versions = version_of(weight), version_of(bias)
        if (
            found is None
            or found.source is not weight
            or found.bias is not bias
            or found.versions != versions
        ):
            size = int(GROWN * weight.nbytes)
            if not has_room(size):
                return None
            found = self.__dict__["folded"] = Folded(fold(self), weight, bias, versions)
            count(found.convolution.weight, size)
        return found.convolution

    def prepared_bytes(self) -> int:
        """What prepared weights may take beside the plain ones."""
        grown = 2 * GROWN if self.doubles else 1  # summed, and packed
        return int(grown * self.weight.nbytes)

    def _apply(self, fn, recurse=True):
        self.forget()  # weights move or change their dtype
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "packed": {}, "folded": None}


def fold(convolution: Conv2d) -> Conv2d:
    """The convolution of a small image that does what this one does of the doubled image.

    convolution   of 3 x 3 windows, one pixel of zeros around the doubled image
    """
    weight, bias, parts = convolution.weight, convolution.bias, 4
    made = Conv2d(
        weight.shape[1], parts * len(weight), 2, padding=1, bias=bias is not None, device="meta"
    )
    taps = torch.tensor(TAPS, dtype=torch.float32)
    windows = torch.einsum("iap, jbq, ocpq -> ijocab", taps, taps, weight.detach().float())
    made.weight = nn.Parameter(windows.flatten(0, 2).to(weight.dtype), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().repeat(parts), requires_grad=False)
    return made


def interleaved(parts: Tensor) -> Tensor:
    """The large image from its even and odd rows and columns: b c 2h 2w, channels last.

    parts   b 4c h+1 w+1, of `fold`: an odd row begins one place later than an even one
    """
    batch, channels, height, width = parts.shape
    channels, height, width = channels // 4, height - 1, width - 1
    made = parts.new_empty(batch, height, 2, width, 2, channels)
    phases = parts.permute(0, 2, 3, 1).unflatten(3, (2, 2, channels))
    for i in range(2):
        for j in range(2):
            made[:, :, i, :, j] = phases[:, i : i + height, j : j + width, i, j]
    return made.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


def version_of(weight: Tensor | None) -> int:
    """How often a tensor was changed; 0 where nothing counts that."""
    return 0 if weight is None or weight.is_inference() else weight._version


def plain() -> bool:
    """Whether the environment asks for the bits of torch's own convolution, which is slower."""
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "plain", "fast"):
        raise ValueError(f"{VARIABLE}: expected plain or fast, got {asked!r}")
    return asked == "plain"


@cache
def packs_bfloat16() -> bool:
    """Whether oneDNN takes bfloat16 on this CPU, from AVX-512 on; elsewhere its operations raise."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_room(size: int) -> bool:
    """Whether prepared weights of so many bytes may be kept beside the others."""
    return Conv2d.bytes_kept + size <= MOST_BYTES


def count(made: Tensor, size: int) -> None:
    """Count prepared weights until they are gone."""
    Conv2d.bytes_kept += size
    weakref.finalize(made, released, size)


def released(size: int) -> None:
    """Prepared weights are gone."""
    Conv2d.bytes_kept -= size
