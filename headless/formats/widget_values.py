"""Saved widget values <-> names: the frontend stores them by position, the API format by name.

A position is not always an input's: a seed is followed by its control after generate, a combo with that
control also by a filter, and the widgets of a dynamic combo depend on its value.
"""

from typing import Any

from ..registry import Spec, declared_inputs, parse_spec

SIMPLE = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}  # widget types; their values
OTHERS = ("COMBO", "COLOR", "MARKDOWN", "CURVE", "BOUNDING_BOX", "LOAD_3D", "WEBCAM")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")


class UnknownOrder(ValueError):
    """Widget values whose names cannot be told."""


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether an input shows as a widget, and so has a place among a node's widget values.

    kind, options   as declared
    """
    if options.get("forceInput"):
        return False
    kind = shown_as(kind, options)
    return isinstance(kind, list) or kind in SIMPLE or kind in OTHERS or kind == DYNAMIC


def shown_as(kind: Any, options: dict[str, Any]) -> Any:
    """The type of the widget that an input shows: its own; of several ("FLOAT,INT") the one declared.

    kind, options   as declared
    """
    return options.get("widgetType") or kind


def companions(name: str, kind: Any, options: dict[str, Any]) -> int:
    """How many saved values follow a widget's own: its control after generate, a combo's filter.

    name, kind, options   as declared
    """
    control = options.get("control_after_generate")
    kind = shown_as(kind, options)
    if isinstance(kind, list) or kind == "COMBO":
        return 2 if control else 0
    if kind == "INT":
        return int(bool(name in ("seed", "noise_seed") if control is None else control))
    return int(kind == "FLOAT" and bool(control))


def widget_types(cls: Any) -> dict[str, Any]:
    """Types of the inputs that a class shows as widgets, by name.

    cls   a node class
    """
    declared = declared_inputs(cls).items()
    return {
        name: shown_as(kind, opts) for name, (kind, opts, _) in declared if is_widget(kind, opts)
    }


def default_value(kind: Any, options: dict[str, Any]) -> Any:
    """A widget's value where a file gives none.

    kind, options   as declared
    """
    if "default" in options:
        return options["default"]
    kind = shown_as(kind, options)
    if kind == DYNAMIC:
        choices = options.get("options") or [{}]
        return choices[0].get("key")
    if kind == "COMBO":
        return (options.get("options") or [""])[0]
    if isinstance(kind, list):
        return kind[0] if kind else ""
    return SIMPLE.get(kind)


def saved_positions(cls: Any, values: dict[str, Any]) -> list[Any]:
    """A node's widget values in the order in which the frontend saves them.

    cls      its class
    values   by name; a missing one is the default
    """
    saved: list[Any] = []
    uploads = 0
    for name, (kind, options, _) in declared_inputs(cls).items():
        if is_widget(kind, options):
            saved.append(values.get(name, default_value(kind, options)))
            saved += ["fixed", ""][: companions(name, kind, options)]
        uploads += any(options.get(flag) for flag in UPLOADS)
    return saved + ["image"] * min(uploads, 1)  # the button stands behind all widgets


def widget_values(node: dict[str, Any], cls: Any) -> dict[str, Any]:
    """A node's widget values by name; UnknownOrder where the file does not tell them.

    node   in the UI format
    cls    its class; None where it is unknown
    """
    values, named = node.get("widgets_values"), node.get("widgets_values_named")
    if isinstance(values, dict):
        named, values = {**values, **(named or {})}, None
    if cls is None:
        return _undeclared(node, values or [], named)
    declared = {name: (kind, opts) for name, (kind, opts, _) in declared_inputs(cls).items()}
    values = _without_sockets(declared, values or [])
    return dict(_read(declared, values, 0, named or {})[0])


def _without_sockets(declared: dict[str, Spec], values: list[Any]) -> list[Any]:
    """The values less those that older frontends kept for inputs which are sockets now."""
    socket: list[bool] = []
    for name, (kind, options) in declared.items():
        forced = bool(options.get("forceInput"))
        if forced or is_widget(kind, options):
            socket += [forced] + [False] * companions(name, kind, options)
    if not any(socket) or len(socket) != len(values):
        return values
    return [value for value, forced in zip(values, socket, strict=True) if not forced]


def _read(
    declared: dict[str, Spec], values: list[Any], position: int, named: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """Values by name from a position on, and the position after them."""
    result: dict[str, Any] = {}
    for name, (kind, options) in declared.items():
        if not is_widget(kind, options):
            continue
        value = named.get(name, default_value(kind, options))
        if position < len(values):
            value = values[position]  # wins, as in the frontend: the names may be stale
            position += 1 + _companions_at(values, position + 1, companions(name, kind, options))
        if value is None:  # no value: JSON writes undefined so
            value = default_value(kind, options)
        result[name] = value
        if shown_as(kind, options) == DYNAMIC:
            inner, position = _read(_chosen(name, options, result[name]), values, position, named)
            result.update(inner)
    return result, position


def _companions_at(values: list[Any], position: int, most: int) -> int:
    """How many values from a position on are a control and its filter; older files lack them."""
    if most == 0 or position >= len(values):
        return 0
    value = values[position]
    if not (isinstance(value, bool) or value in CONTROLS):
        return 0
    return most


def _chosen(name: str, options: dict[str, Any], value: Any) -> dict[str, Spec]:
    """The inputs that a dynamic combo shows at a value, named "combo.input"."""
    for choice in options.get("options") or []:
        if choice.get("key") == value:
            groups = (choice.get("inputs") or {}).values()
            return {
                f"{name}.{inner}": parse_spec(spec)
                for group in groups
                for inner, spec in group.items()
            }
    return {}


def _undeclared(node: dict[str, Any], values: list[Any], named: Any) -> dict[str, Any]:
    """Values of a node whose class is unknown: by the file's own names, or by its widget slots."""
    if named is not None:
        return {name: value for name, value in named.items() if value is not None}
    if not values:
        return {}
    result: dict[str, Any] = {}
    position = 0
    for slot in node.get("inputs") or []:
        if slot.get("widget") and position < len(values):
            result[slot["widget"]["name"]] = values[position]
            kinds = str(slot.get("type")).split(",")
            most = max({"INT": 1, "FLOAT": 1, "COMBO": 2}.get(kind, 0) for kind in kinds)
            controlled = values[position + 1 : position + 2]
            controlled = bool(controlled) and controlled[0] in CONTROLS
            position += 1 + (most if controlled else 0)
    if not result or any(value not in ("image", "", None) for value in values[position:]):
        raise UnknownOrder(f"{len(values)} widget values without names")
    return {name: value for name, value in result.items() if value is not None}
