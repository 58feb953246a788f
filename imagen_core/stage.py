"""A stage of a cascade: a U-Net with the schedule and prediction type that it was trained for."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from .diffusion.denoiser import Prediction
from .diffusion.guidance import Guidance, ThresholdName
from .diffusion.respacing import Spacing
from .diffusion.schedules import AnySchedule, DiscreteSchedule, Schedule
from .offload import offloaded
from .unet.adm import ADMConfig, ADMUNet
from .unet.efficient import EfficientConfig, EfficientUNet
from .unet.layers import runs_on

StageKind = Literal["base", "sr"]
KINDS: dict[str, str] = {"base": "a base stage", "sr": "a super-resolution stage"}
SCHEDULES = {"cosine": Schedule, "linear": Schedule, "squaredcos_cap_v2": DiscreteSchedule}
# Values live at the peak for each channel at full resolution, measured on the bundled stages: 18 and 6.5.
ADM_VALUES, EFFICIENT_VALUES = 18, 7
MOST_RESOLUTION, MOST_SCALE = 2**16, 64
UNets = {"adm": (ADMConfig, ADMUNet), "efficient": (EfficientConfig, EfficientUNet)}


@dataclass(frozen=True)
class SamplingDefaults:
    """Settings that give a good picture with a stage's weights.

    steps            sampler steps; for a discrete schedule also a preset or timesteps
    sampler          name in SAMPLERS
    guidance_scale   1 = off
    aug_level        noise on the low-resolution conditioning, 0..1; SR stages only
    threshold        "dynamic", "static" or "none"; of a base
    percentile       of dynamic thresholding
    max_value        bound on the dynamic threshold; None = no bound
    """

    steps: Spacing = 32
    sampler: str = "dpmpp_2m"
    guidance_scale: float = 3.0
    aug_level: float = 0.0
    threshold: ThresholdName = "dynamic"
    percentile: float = 0.995
    max_value: float | None = None

    def __post_init__(self):
        steps = self.steps if isinstance(self.steps, (int, str)) else list(self.steps)
        whole = isinstance(steps, str) or all(
            isinstance(step, int) for step in (steps if isinstance(steps, list) else [steps])
        )
        if not whole:
            raise ValueError(f"steps: expected a number, a preset or timesteps, got {steps!r}")
        if not isinstance(self.sampler, str):
            raise ValueError(f"sampler: expected a name, got {self.sampler!r}")
        if not isinstance(self.aug_level, (int, float)) or not 0 <= self.aug_level <= 1:
            raise ValueError(f"aug_level must be in [0, 1], got {self.aug_level!r}")


@dataclass(frozen=True)
class StageConfig:
    """Everything that a file of weights must say about itself.

    kind         "base" makes a picture from noise, "sr" enlarges one
    resolution   nominal side of the output in pixels
    scale        output side over input side, 1 for a base
    unet         shape of the network
    schedule     noise schedule of training, whose t the network sees
    prediction   "eps", "v" or "x0"
    defaults     settings for sampling
    align_corners   how an SR stage up-samples what it is given
    """

    kind: StageKind
    resolution: int
    scale: int
    unet: ADMConfig | EfficientConfig
    schedule: AnySchedule = Schedule()
    prediction: Prediction = "v"
    defaults: SamplingDefaults = SamplingDefaults()
    align_corners: bool = False

    def __post_init__(self):
        if self.kind not in ("base", "sr"):
            raise ValueError(f"kind: expected 'base' or 'sr', got {self.kind!r}")
        for name, most in (("resolution", MOST_RESOLUTION), ("scale", MOST_SCALE)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name}: expected a whole number from 1 to {most}, got {value!r}")
        if self.prediction not in ("eps", "v", "x0"):
            raise ValueError(f"prediction: expected 'eps', 'v' or 'x0', got {self.prediction!r}")
        if not isinstance(self.align_corners, bool):
            raise ValueError(f"align_corners: expected true or false, got {self.align_corners!r}")
        if getattr(self.unet, "residual", False) and self.prediction != "x0":
            raise ValueError(
                f"prediction: expected 'x0', as the network adds its output to a picture, "
                f"got {self.prediction!r}"
            )

    def guidance(self, **chosen: Any) -> Guidance:
        """The stage's own guidance and threshold (an SR stage's is static), but for what is chosen.

        chosen   fields of Guidance; None = the stage's own
        """
        own = self.defaults
        settings = {
            "guidance_scale": own.guidance_scale,
            "threshold": own.threshold if self.kind == "base" else "static",
            "percentile": own.percentile,
            "max_value": own.max_value,
        }
        return Guidance(**settings | {k: v for k, v in chosen.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able data; `from_dict` reads it back."""
        kind = next(name for name, (config, _) in UNets.items() if isinstance(self.unet, config))
        return {**asdict(self), "unet": {"kind": kind, **asdict(self.unet)}}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "StageConfig":
        """The configuration that `to_dict` wrote.

        data   JSON data; a missing or unknown field raises TypeError or KeyError that names it, a value
               that makes no stage ValueError
        """
        parts = ("unet", "schedule", "defaults")
        if not isinstance(data, dict) or not all(isinstance(data[key], dict) for key in parts):
            raise ValueError(
                f"expected an object with the objects {', '.join(parts)}, got {data!r:.80}"
            )
        unet: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in data["unet"].items()
        }
        config, _ = UNets[unet.pop("kind")]
        read = StageConfig(
            **{
                **data,
                "unet": config(**unet),
                "schedule": SCHEDULES[data["schedule"]["name"]](**data["schedule"]),
                "defaults": SamplingDefaults(**data["defaults"]),
            }
        )
        read.guidance()  # checks what of it the defaults say
        return read


class Stage:
    """A U-Net and its configuration: what loaders return and samplers take."""

    def __init__(self, config: StageConfig, unet: ADMUNet | EfficientUNet | None = None):
        self.config = config
        self.unet = build_unet(config.unet) if unet is None else unet
        self.plain: Stage | None = None  # the stage without its LoRAs, where it has some
        self.loras: tuple[tuple[Any, float], ...] = ()  # each LoRA and its strength

    @property
    def schedule(self) -> AnySchedule:
        """The noise schedule of training."""
        return self.config.schedule

    @property
    def prediction(self) -> Prediction:
        """What the network puts out."""
        return self.config.prediction

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return runs_on(self.unet)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return next(self.unet.parameters()).dtype

    def guidance(self, **chosen: Any) -> Guidance:
        """The stage's own guidance and threshold (an SR stage's is static), but for what is chosen.

        chosen   fields of Guidance; None = the stage's own
        """
        return self.config.guidance(**chosen)

    def check_kind(self, kind: StageKind, name: str = "stage") -> None:
        """Raise ValueError unless the stage is of the kind.

        name   of the input
        """
        if self.config.kind != kind:
            raise ValueError(
                f"{name}: expected {KINDS[kind]}, got {KINDS[self.config.kind]} "
                f"({self.config.resolution})"
            )

    def check_text(self, embeds: torch.Tensor) -> None:
        """Raise ValueError unless the network can read these states of a text encoder.

        embeds   b n d
        """
        expected, got = self.config.unet.text_dim, embeds.shape[-1]
        if got != expected:
            raise ValueError(
                f"text: expected text states of width {expected}, got {got}; encode the prompt with "
                f"the T5 that this stage was trained with"
            )

    def check_size(self, height: int, width: int, name: str = "width and height") -> None:
        """Raise ValueError with the nearest good sizes unless the network can take this one.

        height, width   pixels: of the picture to make, or of the one to enlarge
        """
        check_sides(height, width, self.config.unet.picture_multiple, self.config.scale, name)

    def check_original(self, original: Sequence[int], image: Sequence[int]) -> None:
        """Raise ValueError unless enlarging an image can start from this original.

        original, image   their shapes, b h w …: the original as large as the result, with 1 or b rows
        """
        batch, height, width = image[0], *(side * self.config.scale for side in image[1:3])
        if tuple(original[1:3]) == (height, width) and original[0] in (1, batch):
            return
        raise ValueError(
            f"original: expected 1 or {batch} images of {width} x {height}, {self.config.scale} times "
            f"as large as image, got {original[0]} of {original[2]} x {original[1]}; scale it to that size"
        )

    def running_bytes(self, rows: int, height: int, width: int) -> float:
        """About what one evaluation of the network takes beside its weights.

        rows            pictures in it; two for each where guidance acts
        height, width   pixels, of the output or of a tile of it
        """
        unet = self.config.unet
        if isinstance(unet, EfficientConfig):
            values = (unet.stem_channels + unet.channels[0] / 4) * EFFICIENT_VALUES
        else:
            values = max(unet.channels[0] / unet.patch**2, unet.pixel_channels) * ADM_VALUES
        return rows * height * width * values * self.dtype.itemsize

    def offloaded(
        self, budget_bytes: int, device: torch.device | str
    ) -> AbstractContextManager[None]:
        """Inside the block the network computes on a device that holds a part of its weights at a time.

        budget_bytes   of the device, for weights: at least three of its largest layers, else ValueError
        """
        return offloaded(self.unet, budget_bytes, torch.device(device))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Stage":
        """This stage, its weights moved and converted in place."""
        self.unet.to(device=device, dtype=dtype)
        if self.plain is not None:
            self.plain.unet.to(device=device, dtype=dtype)  # the weights are the same ones
        return self


def check_sides(height: int, width: int, multiple: int, scale: int, name: str) -> None:
    """Raise ValueError with the nearest good sizes unless both sides, enlarged, are multiples.

    height, width   pixels
    multiple        of good sides once enlarged
    scale           of the enlargement; 1 = none
    """
    multiple //= math.gcd(multiple, scale)
    if height % multiple or width % multiple or min(height, width) < 1:
        below, above = (
            " x ".join(str(max(1, rounded(side / multiple)) * multiple) for side in (width, height))
            for rounded in (math.floor, math.ceil)
        )
        nearest = f"sizes are {below} and {above}" if below != above else f"size is {below}"
        raise ValueError(
            f"{name}: expected sides that are multiples of {multiple}, got {width} x {height}; the "
            f"nearest good {nearest}"
        )


def build_unet(config: ADMConfig | EfficientConfig) -> ADMUNet | EfficientUNet:
    """A new network of the given shape, on the current default device."""
    return new_unet(config).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


def new_unet(config: ADMConfig | EfficientConfig) -> ADMUNet | EfficientUNet:
    """The same as torch makes it; for networks that get their weights, and so their layout, later."""
    return ADMUNet(config) if isinstance(config, ADMConfig) else EfficientUNet(config)
