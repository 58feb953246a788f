"""Nodes that put out the value of their one widget."""

from typing import Any


def primitive(kind: str, options: dict[str, Any]) -> type:
    """The class of a node that puts out the value of its one widget."""

    class Primitive:
        CATEGORY = "utils/primitive"
        FUNCTION = "value_of"
        RETURN_TYPES = (kind,)

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"value": (kind, options)}}

        def value_of(self, value: Any) -> tuple[Any]:
            return (value,)

    return Primitive


_WHOLE = 2**63 - 1
PRIMITIVES = {
    "PrimitiveInt": primitive(
        "INT", {"min": -_WHOLE, "max": _WHOLE, "control_after_generate": True}
    ),
    "PrimitiveFloat": primitive("FLOAT", {"min": -float(_WHOLE), "max": float(_WHOLE)}),
    "PrimitiveString": primitive("STRING", {}),
    "PrimitiveStringMultiline": primitive("STRING", {"multiline": True}),
    "PrimitiveBoolean": primitive("BOOLEAN", {}),
}
