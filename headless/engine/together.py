"""Several graphs run side by side, so that a node which can take the calls of many takes them at once.

A class says so by RUN_MANY, the name of a method that gets a list of keyword arguments, one dict for each
call of FUNCTION, and returns what each of those calls would have returned.
"""

from __future__ import annotations

import time
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from ..graph import Graph, Node
from ..registry import declared_once
from .execute import Report, Run, Session
from .progress import Bar


@dataclass
class Part:
    """One of the graphs.

    graph     that validate() has passed
    outputs   ids of the output nodes to run
    context   in which its own nodes are called
    """

    graph: Graph
    outputs: list[str]
    context: Context


def run_together(session: Session, parts: list[Part]) -> list[Report | Exception]:
    """Run graphs side by side; of each what it did, or why it failed. One's failure does not stop another.

    session   keeps, of all results, those that all graphs share
    """
    import torch

    runs = [Run(session, part.graph, None, lambda node: Bar(node, None)) for part in parts]
    live = dict(enumerate(runs))
    failed: dict[int, Exception] = {}

    def guarded(i: int, action: Any, *given: Any) -> Any:
        try:
            return parts[i].context.run(action, *given)
        except Exception as error:
            failed[i] = error
            live.pop(i, None)
            runs[i].close()

    try:
        with torch.inference_mode(), declared_once():
            for i, part in enumerate(parts):
                guarded(i, runs[i].begin, part.outputs)
            while live:
                for i, run in list(live.items()):
                    if guarded(i, run.advance) is None:
                        live.pop(i, None)
                call_together(session, least_advanced(live), guarded)
    finally:
        for run in live.values():
            run.close()
        kept = shared_results([run for i, run in enumerate(runs) if i not in failed])
        session.results = {key: value for key, value in session.results.items() if key in kept}
    return [failed.get(i, run.report) for i, run in enumerate(runs)]


def least_advanced(live: dict[int, Run]) -> dict[int, Run]:
    """Of the runs that stopped, those before the node that most is left to do after.

    The others wait for them, so that what is called together does not depend on what some found done already.
    """
    paused = {i: run for i, run in live.items() if run.paused is not None}
    if not paused:
        return {}
    last = max(paused.values(), key=lambda run: len(run.waiting))
    return {i: run for i, run in paused.items() if class_of(run) == class_of(last)}


def class_of(run: Run) -> str:
    """The class of the node that a run stopped before."""
    assert run.paused is not None
    return run.paused.class_type


def shared_results(runs: list[Run]) -> set[str]:
    """Signatures of what all runs have, such as models; of one run, all that it has.

    What nodes make for many at once is left out: the next graphs are called together whatever these made.
    """
    if len(runs) < 2:
        return {key for run in runs for key in run.signatures.known.values()}
    found = set(runs[0].signatures.known.values())
    for run in runs[1:]:
        found &= set(run.signatures.known.values())
    for node_id, key in runs[0].signatures.known.items():
        if hasattr(runs[0].registry.get(runs[0].graph[node_id].class_type), "RUN_MANY"):
            found.discard(key)
    return found


def call_together(session: Session, members: dict[int, Run], guarded: Any) -> None:
    """Call the nodes that several runs of one class stopped before; equal ones once, the others look again.

    guarded   (number of a run, action, arguments): what fails in there fails that run alone
    """
    first: dict[str, int] = {}
    alone: list[int] = []
    calls: dict[int, list[dict[str, Any]]] = {}
    for i, run in members.items():
        signature = guarded(i, run.signature)
        if signature is None:
            continue
        if first.setdefault(signature, i) != i:
            run.again()
            continue
        own = guarded(i, run.calls)
        if run.paused is not None and own is None:
            alone.append(i)
        elif own is not None:
            calls[i] = own
    if len(calls) > 1:
        returned = many(session, [run for i, run in members.items() if i in calls], calls)
        if returned is not None:
            for i, (values, seconds) in returned.items():
                guarded(i, members[i].receive, values, seconds)
            calls = {}
    for i in [*calls, *alone]:
        guarded(i, members[i].call)


def many(
    session: Session, runs: list[Run], calls: dict[int, list[dict[str, Any]]]
) -> dict[int, tuple[list[Any], float]] | None:
    """What the calls of several runs return, made at once, and each run's part of the time.

    None where that failed: then each is to be called by itself, so that the fault finds its run.
    """
    node: Node | None = runs[0].paused
    assert node is not None
    function = getattr(session.instance_of(node), session.registry[node.class_type].RUN_MANY)
    bar = Bar(node, None)
    reporters = getattr(session.registry, "reporters", ())
    tokens = [(reporter, reporter.set(bar.on_step)) for reporter in reporters]
    started = time.monotonic()
    try:
        returned = function([call for own in calls.values() for call in own])
    except Exception:
        return None
    finally:
        for reporter, token in tokens:
            reporter.reset(token)
        bar.close()
    seconds = (time.monotonic() - started) / len(calls)
    found, position = {}, 0
    for i, own in calls.items():
        found[i] = (returned[position : position + len(own)], seconds)
        position += len(own)
    return found
