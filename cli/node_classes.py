"""The node classes that `imagen` runs: the pack's own and ComfyUI's."""

from ..headless.registry import Registry


def default_registry() -> Registry:
    """The pack's own nodes and the core nodes that its workflows use."""
    from ..headless.comfy_nodes.core_nodes import CORE_NODES
    from ..nodes import NODE_CLASS_MAPPINGS

    return {**CORE_NODES, **NODE_CLASS_MAPPINGS}
