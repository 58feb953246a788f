"""The node classes that a workflow may use, and what they declare."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

Spec = tuple[Any, dict[str, Any]]  # type, a combo's being a list; options


class Registry(dict[str, type]):
    """Node classes by type.

    reporters   set, while a node runs, to what the node is to call after each step: (step, num_steps, x0)
    titles      what a node of a type is called where its file gives it no title of its own, as frontends do
    """

    reporters: tuple[ContextVar[Callable[..., None] | None], ...] = ()
    titles: Mapping[str, str] = MappingProxyType({})


def title_of(registry: Mapping[str, type], kind: str) -> str:
    """What a node of a type is called; its type where that is not known."""
    return getattr(registry, "titles", {}).get(kind, kind)


Declared = dict[str, tuple[Any, dict[str, Any], bool]]
_answers: ContextVar[dict[type, dict[str, Any]] | None] = ContextVar("answers", default=None)


@contextmanager
def declared_once() -> Iterator[None]:
    """In this block each class is asked for its inputs once: the answer may cost a search of folders."""
    if _answers.get() is not None:
        yield
        return
    token = _answers.set({})
    try:
        yield
    finally:
        _answers.reset(token)


def input_types(cls: Any) -> dict[str, Any]:
    """What a class declares, as it says it."""
    known = _answers.get()
    if known is None:
        return cls.INPUT_TYPES()
    if cls not in known:
        known[cls] = cls.INPUT_TYPES()
    return known[cls]


def declared_inputs(cls: Any) -> Declared:
    """Inputs of a class in order: type, options, whether required. A combo's type is a list."""
    types = input_types(cls)
    return {
        name: (*parse_spec(spec), group == "required")
        for group in ("required", "optional")
        for name, spec in types.get(group, {}).items()
    }


def parse_spec(spec: Any) -> Spec:
    """Type and options of a declared input, from either spelling of a combo.

    spec   as INPUT_TYPES gives it
    """
    if isinstance(spec, str):
        return spec, {}
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if kind == "COMBO":
        kind = list(options.get("options") or [])
    return kind, options


def hidden_inputs(cls: Any) -> dict[str, str]:
    """What a class asks the executor for: the name of the argument -> PROMPT, UNIQUE_ID and so on."""
    hidden = input_types(cls).get("hidden", {})
    return {
        name: spec[0] if isinstance(spec, (list, tuple)) else spec for name, spec in hidden.items()
    }
