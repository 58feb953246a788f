"""The node classes that a workflow may use, and what they declare."""

from typing import Any

Registry = dict[str, type]

WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")


def default_registry() -> Registry:
    """The pack's own nodes and the core nodes that its workflows use."""
    from ..nodes import NODE_CLASS_MAPPINGS
    from .core_nodes import CORE_NODES

    return {**CORE_NODES, **NODE_CLASS_MAPPINGS}


def declared_inputs(cls: type) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Inputs of a class in order: type, options, whether required. A combo's type is a list.

    cls   a node class
    """
    types = cls.INPUT_TYPES()
    declared = {}
    for group in ("required", "optional"):
        for name, spec in types.get(group, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            if kind == "COMBO":
                kind = list(options.get("options", []))
            declared[name] = (kind, options, group == "required")
    return declared


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether an input shows as a widget, and so has a place among a node's widget values.

    kind, options   as declared
    """
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def extra_values(name: str, kind: Any, options: dict[str, Any]) -> int:
    """How many saved values follow a widget's own: its control after generate, its upload button.

    name, kind, options   as declared
    """
    control = options.get("control_after_generate", name in ("seed", "noise_seed"))
    if isinstance(kind, list):
        return (2 if options.get("control_after_generate") else 0) + bool(
            options.get("image_upload")
        )
    if kind == "INT":
        return int(bool(control))
    return int(kind == "FLOAT" and bool(options.get("control_after_generate")))


def default_value(kind: Any, options: dict[str, Any]) -> Any:
    """A widget's value where a file gives none.

    kind, options   as declared
    """
    if "default" in options:
        return options["default"]
    if isinstance(kind, list):
        return kind[0] if kind else ""
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[kind]
