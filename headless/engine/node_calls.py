"""One node's calls: arguments mapped over lists, what is blocked, and how results become outputs.

Every value inside a run is a list: one element for each call of its source (ComfyUI's rule).
"""

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Outputs = list[list[Any]]  # by output, then by call of a mapped list
Shown = dict[str, list[Any]]  # what an output node tells the interface, by kind


class ExecutionBlocker:
    """A value that keeps the nodes it reaches from running.

    message   why, for the person who waits; None = silently
    """

    def __init__(self, message: str | None = None):
        self.message = message


def is_blocker(value: Any) -> bool:
    """Whether a value is a blocker: this module's, or the one that ComfyUI's own nodes return."""
    return type(value).__name__ == "ExecutionBlocker" and hasattr(value, "message")


@dataclass
class Returned:
    """What one call gave.

    result   a value for each output; a link where `expand` holds its source
    ui       what the interface is told
    expand   nodes to run in this one's place, in API format; None = none
    """

    result: Any = ()
    ui: Shown = field(default_factory=dict)
    expand: dict[str, Any] | None = None


def mapped(arguments: dict[str, list[Any]], is_list: bool) -> list[dict[str, Any]]:
    """The keyword arguments of each call.

    arguments   a list each
    is_list     INPUT_IS_LIST: one call takes the lists themselves
    """
    if is_list:
        return [dict(arguments)]
    longest = max((len(values) for values in arguments.values()), default=1)
    if longest == 0:
        return [{}]
    empty = [name for name, values in arguments.items() if not values]
    if empty:
        raise IndexError(f"input {', '.join(empty)}: is an empty list")
    return [
        {name: values[min(i, len(values) - 1)] for name, values in arguments.items()}
        for i in range(longest)
    ]


def blocked_by(call: dict[str, Any], is_list: bool) -> Any:
    """The blocker among a call's arguments, or None.

    is_list   whether each is a list, any of whose elements blocks
    """
    for value in call.values():
        for item in value if is_list else [value]:
            if is_blocker(item):
                return item
    return None


def make_calls(
    function: Callable[..., Any],
    arguments: dict[str, list[Any]],
    is_list: bool,
    on_block: Callable[[Any], None] = lambda blocker: None,
) -> list[Any]:
    """What each call of a function returned; a coroutine where the function is one.

    arguments   a list each
    is_list     INPUT_IS_LIST
    on_block    told of each blocker that stops a call
    """
    returned = []
    for call in mapped(arguments, is_list):
        blocker = blocked_by(call, is_list)
        if blocker is None:
            returned.append(function(**call))
        else:
            on_block(blocker)
            returned.append(ExecutionBlocker())
    return returned


def settle(value: Any) -> Any:
    """A value, waited for if it is a coroutine."""
    if not inspect.isawaitable(value):
        return value
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_wait(value))
    finally:
        loop.close()


async def gather(values: list[Any]) -> list[Any]:
    """All values, the coroutines among them run side by side.

    values   coroutines or finished
    """
    return list(await asyncio.gather(*(_wait(value) for value in values)))


async def _wait(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def is_pending(returned: list[Any]) -> bool:
    """Whether a call is still to be waited for."""
    return any(map(inspect.isawaitable, returned))


def read_returned(value: Any, outputs: int) -> Returned:
    """A call's return value in one form: a tuple, a dict, or a blocker of all outputs.

    value     as the node gave it
    outputs   how many the class declares
    """
    ui, expand = {}, None
    if isinstance(value, dict):
        ui, expand = value.get("ui") or {}, value.get("expand")
        value = value.get("result", ())
    if is_blocker(value):
        value = (value,) * outputs
    return Returned(value, ui, expand)


def merge(results: list[Any], is_list: tuple[bool, ...], outputs: int) -> Outputs:
    """Outputs of all calls: lists are joined, single values and blockers collected.

    results   of each call, a value an output
    is_list   OUTPUT_IS_LIST
    outputs   how many the class declares
    """
    if not results or not results[0]:
        return []
    flags = [*is_list, *(False,) * outputs][: max(outputs, len(is_list))]
    merged: Outputs = []
    for i in range(min(len(results[0]), len(flags))):
        joined: list[Any] = []
        for result in results:
            single = is_blocker(result[i]) or not flags[i]
            joined += [result[i]] if single else result[i]
        merged.append(joined)
    return merged


def merge_ui(shown: list[Shown]) -> Shown:
    """What all calls tell the interface, in one; the first call says which kinds."""
    told = [ui for ui in shown if ui]
    return {key: [item for ui in told for item in ui[key]] for key in told[0]} if told else {}
