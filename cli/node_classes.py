"""The node classes that `imagen` runs, the pack's own and ComfyUI's, and what both are told of a run."""

from ..headless.comfy_nodes.folders import Folders, folders
from ..headless.registry import Registry


def default_registry() -> Registry:
    """The pack's own nodes and the core nodes that its workflows use."""
    from ..headless.comfy_nodes import CORE_NODES
    from ..nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, host

    registry = Registry({**CORE_NODES, **NODE_CLASS_MAPPINGS})
    registry.reporters = (host.reporter,)
    registry.titles = {**NODE_DISPLAY_NAME_MAPPINGS, "SaveImage": "Save Image"}
    return registry


def use_folders(places: Folders) -> None:
    """From now on pictures come from and go to these folders, those of the pack's own nodes too.

    places   input, output and temp
    """
    from ..nodes import host

    folders.set(places)
    host.temporary.set(places.temp)
    host.inputs.set(places.input)
