"""The nodes: one class each, named to ComfyUI by id and display name."""

from . import host
from .bridge import (
    ImagenConditioningToText,
    ImagenPatchModel,
    ImagenSRConditioning,
    ImagenStageToModel,
    ImagenTextToConditioning,
)
from .conditioning import ImagenDynamicThreshold, ImagenMixPrompts, ImagenT5Encode
from .crop import ImagenCropForInpaint, ImagenOutpaint, ImagenStitch
from .loaders import ImagenLoadCascade, ImagenLoadStage, ImagenLoadTextEncoder
from .loras import ImagenLoadLoRA, ImagenSaveLoRA
from .plot import ImagenXYPlot
from .preview import ImagenCascadeView
from .prompt_files import ImagenLoadText, ImagenSaveText
from .regions import ImagenRegionalPrompt
from .sampling import ImagenBaseSample, ImagenSR256, ImagenSR1024
from .styles import ImagenStyle
from .training import ImagenDatasetFromFolder, ImagenEvaluateCascade, ImagenFineTuneStage
from .whole import ImagenSampleCascade, ImagenSeeds

NODE_CLASS_MAPPINGS = {
    "ImagenLoadCascade": ImagenLoadCascade,
    "ImagenLoadTextEncoder": ImagenLoadTextEncoder,
    "ImagenLoadStage": ImagenLoadStage,
    "ImagenLoadLoRA": ImagenLoadLoRA,
    "ImagenSaveLoRA": ImagenSaveLoRA,
    "ImagenT5Encode": ImagenT5Encode,
    "ImagenMixPrompts": ImagenMixPrompts,
    "ImagenSaveText": ImagenSaveText,
    "ImagenLoadText": ImagenLoadText,
    "ImagenDynamicThreshold": ImagenDynamicThreshold,
    "ImagenBaseSample": ImagenBaseSample,
    "ImagenSR256": ImagenSR256,
    "ImagenSR1024": ImagenSR1024,
    "ImagenCascadeView": ImagenCascadeView,
    "ImagenPatchModel": ImagenPatchModel,
    "ImagenTextToConditioning": ImagenTextToConditioning,
    "ImagenConditioningToText": ImagenConditioningToText,
    "ImagenStageToModel": ImagenStageToModel,
    "ImagenSRConditioning": ImagenSRConditioning,
    "ImagenDatasetFromFolder": ImagenDatasetFromFolder,
    "ImagenFineTuneStage": ImagenFineTuneStage,
    "ImagenEvaluateCascade": ImagenEvaluateCascade,
    "ImagenSampleCascade": ImagenSampleCascade,
    "ImagenSeeds": ImagenSeeds,
    "ImagenXYPlot": ImagenXYPlot,
    "ImagenCropForInpaint": ImagenCropForInpaint,
    "ImagenOutpaint": ImagenOutpaint,
    "ImagenStitch": ImagenStitch,
    "ImagenStyle": ImagenStyle,
    "ImagenRegionalPrompt": ImagenRegionalPrompt,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "ImagenLoadCascade": "Load Imagen Cascade",
    "ImagenLoadTextEncoder": "Load T5 Encoder",
    "ImagenLoadStage": "Load Imagen Stage",
    "ImagenLoadLoRA": "Load Imagen LoRA",
    "ImagenSaveLoRA": "Save Imagen LoRA",
    "ImagenT5Encode": "T5 Encode",
    "ImagenMixPrompts": "Imagen Mix Prompts",
    "ImagenSaveText": "Imagen Save Text",
    "ImagenLoadText": "Imagen Load Text",
    "ImagenDynamicThreshold": "Dynamic-Threshold Guidance",
    "ImagenBaseSample": "Imagen Base Sample",
    "ImagenSR256": "Imagen SR 256",
    "ImagenSR1024": "Imagen SR 1024",
    "ImagenCascadeView": "Cascade View",
    "ImagenPatchModel": "Dynamic Thresholding (any model)",
    "ImagenTextToConditioning": "Imagen Text to Conditioning",
    "ImagenConditioningToText": "Conditioning to Imagen Text",
    "ImagenStageToModel": "Imagen Stage to Model",
    "ImagenSRConditioning": "Imagen SR Conditioning",
    "ImagenDatasetFromFolder": "Imagen Dataset from Folder",
    "ImagenFineTuneStage": "Fine-Tune Imagen Stage",
    "ImagenEvaluateCascade": "Evaluate Cascade",
    "ImagenSampleCascade": "Imagen",  # what people type: the node search puts a whole match first
    "ImagenSeeds": "Imagen Seeds",
    "ImagenXYPlot": "Imagen XY Plot",
    "ImagenCropForInpaint": "Imagen Crop for Inpaint",
    "ImagenOutpaint": "Imagen Outpaint",
    "ImagenStitch": "Imagen Stitch",
    "ImagenStyle": "Imagen Style",
    "ImagenRegionalPrompt": "Imagen Regional Prompt",
}

host.register_folders()
