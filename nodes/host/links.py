"""Whether an output may be linked to an input."""

from typing import Any

from .adapter import comfy


def fits(given: Any, wanted: Any) -> bool:
    """Whether a link of one type may feed an input of another, as the host sees it.

    given    type of the output
    wanted   type of the input; a combo's is a list
    """
    validation = comfy("comfy_execution.validation")
    if validation is not None:
        return bool(validation.validate_node_input(given, wanted))
    return given == wanted or "*" in (given, wanted) or isinstance(wanted, list)
