"""Runs a checked graph by ComfyUI's rules: only what its outputs need, each distinct node once.

A node may ask for lazy inputs, put other nodes in its place, block what follows it, or be a coroutine,
which runs while others do.
"""

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..formats.workflow import parse_value
from ..graph import Graph, Link, Node
from ..registry import Registry, declared_inputs, declared_once, hidden_inputs
from .cache_keys import CycleError, Signatures, constants
from .dynamic_prompt import DynamicPrompt
from .node_calls import (
    Outputs,
    Returned,
    Shown,
    blocked_by,
    gather,
    is_pending,
    make_calls,
    mapped,
    merge,
    merge_ui,
    read_returned,
    settle,
)
from .progress import Bar
from .validate import validate

Progress = Callable[[Node], Bar]
# What the executor itself gives to hidden inputs; it has no accounts, so those are None.
SPECIAL = ("PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID")
ACCOUNTS = ("AUTH_TOKEN_COMFY_ORG", "API_KEY_COMFY_ORG")


class NodeError(RuntimeError):
    """A node that failed while it ran; the message names it.

    node   of the workflow: where an expanded one failed, the one that it stands for
    """

    def __init__(self, node: Node, message: object):
        super().__init__(f"{node}: {str(message).removeprefix(f'{node.title}: ')}")
        self.node = node


@dataclass
class Cached:
    """What a node gave, to be given again to an equal one; whether it is an output node."""

    outputs: Outputs
    shown: Shown
    is_output: bool


@dataclass
class Report:
    """What a run did.

    shown     what its output nodes show, by node id
    ran       ids of the nodes that were called
    cached    ids of the nodes whose results were there
    blocked   messages of the blockers that were met
    seconds   that the calls took, by node id; of calls for several runs at once each run's part
    """

    shown: dict[str, Shown] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Session:
    """Runs of one process, which share results and node instances: what did not change is not run again.

    registry   node classes
    """

    def __init__(self, registry: Registry):
        self.registry = registry
        self.results: dict[str, Cached] = {}
        self.instances: dict[tuple[str, str], Any] = {}

    def run(
        self,
        graph: Graph,
        outputs: list[str],
        workflow: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Run a graph that validate() has passed; of its results, those of this graph are kept.

        outputs    ids of the output nodes to run
        workflow   UI format of the same graph, for the metadata of saved pictures
        progress   makes the bar of a node; None = none
        """
        import torch

        run = Run(self, graph, workflow, progress or (lambda node: Bar(node, None)))
        try:
            with torch.inference_mode(), declared_once():
                run.until_done(outputs)
        finally:
            kept = set(run.signatures.known.values())
            self.results = {key: value for key, value in self.results.items() if key in kept}
        return run.report

    def forget_outputs(self) -> None:
        """Let output nodes run again though nothing changed, so that they save again."""
        self.results = {key: value for key, value in self.results.items() if not value.is_output}

    def instance_of(self, node: Node) -> Any:
        """The object whose method a node calls."""
        key = node.id, node.class_type
        if key not in self.instances:
            self.instances[key] = self.registry[node.class_type]()
        return self.instances[key]


def execute(
    graph: Graph,
    registry: Registry,
    workflow: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Shown]:
    """What the output nodes show, by node id; WorkflowError before anything runs if the graph is bad.

    graph      constants are converted to their declared types in place
    workflow   UI format of the same graph, for the metadata of saved pictures
    progress   makes the bar of a node; None = none
    """
    outputs = validate(graph, registry)
    return Session(registry).run(graph, outputs, workflow, progress).shown


class Run:
    """One run of a graph, which grows where nodes expand."""

    def __init__(
        self, session: Session, graph: Graph, workflow: dict[str, Any] | None, progress: Progress
    ):
        self.session, self.registry, self.progress = session, session.registry, progress
        self.prompt = DynamicPrompt(graph)
        self.graph = self.prompt.graph
        self.signatures = Signatures(
            self.graph, self.registry, lambda node: self._constants_and_hidden(node)
        )
        self.hidden = {
            "PROMPT": self.prompt.get_original_prompt(),
            "EXTRA_PNGINFO": {} if workflow is None else {"workflow": workflow},
            "DYNPROMPT": self.prompt,
        }
        self.report = Report()
        self.done: dict[str, Outputs] = {}
        self.waiting: dict[str, set[str]] = {}
        self.takers: dict[str, list[str]] = {}  # the nodes that wait for one, by its id
        self.order: dict[str, int] = {}
        self.ready: list[tuple[int, int, str]] = []  # a heap: rank, order, id
        self.expanded: dict[str, list[Returned]] = {}
        self.tasks: dict[str, asyncio.Future[list[Any]]] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.pausing, self.paused = False, None

    def until_done(self, outputs: list[str]) -> None:
        """Run the outputs and all that they need."""
        try:
            for node_id in outputs:
                self._stage(node_id)
            while self.waiting:
                self._step()
        finally:
            self.close()

    # --- beside other runs -----------------------------------------------------------------------

    def begin(self, outputs: list[str]) -> None:
        """Make ready to run the outputs; `advance` then stops before a node that may be called for many.

        Output nodes run though an equal one did, which saved for another run.
        """
        self.pausing = True
        for node_id in outputs:
            self._stage(node_id)

    def advance(self) -> Node | None:
        """Run up to a node that may be called for several runs at once; that node, or None at the end."""
        while self.waiting and self.paused is None:
            self._step()
        if self.paused is None:
            self.close()
        return self.paused

    def again(self) -> None:
        """Look once more at the node that the run stopped before: its results may be there now."""
        node, self.paused = self.paused, None
        assert node is not None
        self._if_ready(node.id)

    def call(self) -> None:
        """Call the node that the run stopped before, for this run alone."""
        node, self.paused = self.paused, None
        assert node is not None
        self._guarded(node, self._call)

    def receive(self, returned: list[Any], seconds: float) -> None:
        """Take what the node that the run stopped before returned, called for several runs at once.

        returned   one value for each of its own calls
        """
        node, self.paused = self.paused, None
        assert node is not None
        self.report.ran.append(node.id)
        self.report.seconds[node.id] = seconds
        self._guarded(node, self._receive, returned)

    def calls(self) -> list[dict[str, Any]] | None:
        """Arguments of the calls of the node that the run stopped before; None where it must run alone."""
        node = self.paused
        assert node is not None
        cls: Any = self.registry[node.class_type]
        is_list = getattr(cls, "INPUT_IS_LIST", False)
        found = mapped(self._arguments(node), is_list)
        return None if any(blocked_by(call, is_list) for call in found) else found

    def signature(self) -> str:
        """The signature of the node that the run stopped before."""
        assert self.paused is not None
        return self._signature(self.paused)

    # --- the order -------------------------------------------------------------------------------

    def _stage(self, node_id: str) -> None:
        """Put a node, and what it needs strictly, among those that wait."""
        stack = [node_id]
        while stack:
            current = stack.pop()
            if current in self.waiting or current in self.done:
                continue
            node = self.graph[current]
            lazy = self._lazy_names(node)
            sources = {link.node for name, link in node.links().items() if name not in lazy}
            self._wait_for(current, {source for source in sources if source not in self.done})
            stack += sorted(self.waiting[current])

    def _wait_for(self, node_id: str, needs: set[str]) -> None:
        """Let a node wait for others; it is ready where there are none."""
        self.waiting[node_id] = needs
        self.order.setdefault(node_id, len(self.order))
        for source in needs:
            self.takers.setdefault(source, []).append(node_id)
        self._if_ready(node_id)

    def _if_ready(self, node_id: str) -> None:
        if not self.waiting[node_id]:
            heapq.heappush(self.ready, (self._rank(node_id), self.order[node_id], node_id))

    def _step(self) -> None:
        """Run one node that waits for nothing, or let the coroutines go on."""
        if self.ready:
            node_id = heapq.heappop(self.ready)[2]
            self._guarded(self.graph[node_id], self._attempt)
        elif self.tasks:
            self._wait_for_a_task()
        else:
            raise NodeError(self.prompt.real_node(self._on_circle()), "links run in a circle")

    def _on_circle(self) -> str:
        """A node that waits for itself, where no node is ready."""
        seen: set[str] = set()
        node_id = next(iter(self.waiting))
        while node_id not in seen:
            seen.add(node_id)
            node_id = min(self.waiting[node_id])
        return node_id

    def _rank(self, node_id: str) -> int:
        """Coroutines start first, so that they run while others do."""
        cls: Any = self.registry[self.graph[node_id].class_type]
        return 0 if asyncio.iscoroutinefunction(getattr(cls, cls.FUNCTION, None)) else 1

    def _finish(self, node: Node, cached: Cached) -> None:
        self.done[node.id] = cached.outputs
        if cached.shown:
            self.report.shown[node.id] = cached.shown
        del self.waiting[node.id]
        for taker in self.takers.pop(node.id, ()):
            needs = self.waiting.get(taker, set())
            if node.id in needs:
                needs.discard(node.id)
                self._if_ready(taker)

    def _guarded(self, node: Node, action: Callable[..., None], *arguments: Any) -> None:
        """An action for a node; what it raises names the node."""
        try:
            action(node, *arguments)
        except NodeError:
            raise
        except Exception as error:
            real = self.prompt.real_node(node.id)
            raise NodeError(real, error if str(error) else type(error).__name__) from error

    # --- one node --------------------------------------------------------------------------------

    def _attempt(self, node: Node) -> None:
        """Take a node's results from the cache, or call it, or find what it still needs."""
        if node.id in self.expanded:
            self._complete(node, self.expanded.pop(node.id))
            return
        cached = self.session.results.get(self._signature(node))
        if cached is not None and not (self.pausing and cached.is_output):
            self.report.cached.append(node.id)
            self._finish(node, cached)
            return
        needed = self._needed_lazy(node)
        if needed:
            for source in needed:
                self._stage(source)
            self._wait_for(node.id, {source for source in needed if source not in self.done})
            return
        if self.pausing and hasattr(self.registry[node.class_type], "RUN_MANY"):
            self.paused = node
            return
        self._call(node)

    def _signature(self, node: Node) -> str:
        try:
            return self.signatures.of(node.id)
        except CycleError as error:
            raise NodeError(self.prompt.real_node(node.id), error) from error

    def _lazy_names(self, node: Node) -> set[str]:
        declared = declared_inputs(self.registry[node.class_type])
        return {name for name, (_, options, _) in declared.items() if options.get("lazy")}

    def _needed_lazy(self, node: Node) -> list[str]:
        """The sources of lazy inputs that the node asks for and that have not run."""
        check = getattr(self.session.instance_of(node), "check_lazy_status", None)
        if check is None:
            return []
        arguments = self._arguments(node)
        is_list = getattr(self.registry[node.class_type], "INPUT_IS_LIST", False)
        answers = [settle(answer) for answer in make_calls(check, arguments, is_list)]
        names = [name for answer in answers if isinstance(answer, list) for name in answer]
        links = node.links()
        return [links[n].node for n in names if n in links and links[n].node not in self.done]

    def _hidden(self, node: Node) -> dict[str, list[Any]]:
        kinds = hidden_inputs(self.registry[node.class_type])
        return {
            name: [node.id if kind == "UNIQUE_ID" else self.hidden.get(kind)]
            for name, kind in kinds.items()
            if kind in (*SPECIAL, *ACCOUNTS)
        }

    def _constants_and_hidden(self, node: Node) -> dict[str, list[Any]]:
        return {**constants(node, self.registry[node.class_type]), **self._hidden(node)}

    def _arguments(self, node: Node) -> dict[str, list[Any]]:
        """Every argument as a list, as ComfyUI passes them inside."""
        cls = self.registry[node.class_type]
        declared, hidden = declared_inputs(cls), hidden_inputs(cls)
        arguments: dict[str, list[Any]] = {}
        for name, value in node.inputs.items():
            if not isinstance(value, Link):
                if name in declared or name in hidden:
                    arguments[name] = [value]
                continue
            options = declared[name][1] if name in declared else {}
            known = self.done.get(value.node)
            if options.get("rawLink"):
                arguments[name] = [[value.node, value.slot]]
            elif known is None or value.slot >= len(known):
                arguments[name] = [None]
            else:
                arguments[name] = known[value.slot]
        return {**arguments, **self._hidden(node)}

    def _call(self, node: Node) -> None:
        """Call a node; a coroutine goes on while other nodes run."""
        cls: Any = self.registry[node.class_type]
        function = getattr(self.session.instance_of(node), cls.FUNCTION)
        self.report.ran.append(node.id)
        bar = self.progress(node)
        reporters = getattr(self.registry, "reporters", ())
        tokens = [(reporter, reporter.set(bar.on_step)) for reporter in reporters]
        started = time.monotonic()
        try:
            is_list = getattr(cls, "INPUT_IS_LIST", False)
            returned = make_calls(function, self._arguments(node), is_list, self._on_block(node))
            if is_pending(returned):
                self._start(node, returned)
                return
        finally:
            for reporter, token in tokens:
                reporter.reset(token)
            bar.close()
            self.report.seconds[node.id] = time.monotonic() - started
        self._receive(node, returned)

    def _on_block(self, node: Node) -> Callable[[Any], None]:
        def told(blocker: Any) -> None:
            if blocker.message is not None:
                self.report.blocked.append(f"{node}: {blocker.message}")

        return told

    def _receive(self, node: Node, returned: list[Any]) -> None:
        """Take what the calls of a node returned; where it expands, wait for what it put in its place."""
        cls: Any = self.registry[node.class_type]
        read = [read_returned(value, len(cls.RETURN_TYPES)) for value in returned]
        needs = set()
        for call in read:
            if call.expand is None:
                continue
            added = self.prompt.add(node.id, call.expand)
            links = [parse_value(value) for value in call.result]
            needs |= {link.node for link in links if isinstance(link, Link)}
            needs |= {n.id for n in added if getattr(self.registry[n.class_type], "OUTPUT_NODE", 0)}
        if not any(call.expand is not None for call in read):
            self._complete(node, read)
            return
        for source in sorted(needs):
            self._stage(source)
        self.expanded[node.id] = read
        self._wait_for(node.id, {source for source in needs if source not in self.done})

    def _complete(self, node: Node, read: list[Returned]) -> None:
        """Make a node's outputs of its calls' results, and keep them."""
        cls: Any = self.registry[node.class_type]
        results = [
            call.result if call.expand is None else self._resolved(call.result) for call in read
        ]
        flags = tuple(getattr(cls, "OUTPUT_IS_LIST", ()))
        outputs = merge(results, flags, len(cls.RETURN_TYPES))
        shown = merge_ui([call.ui for call in read])
        cached = Cached(outputs, shown, bool(getattr(cls, "OUTPUT_NODE", False)))
        self.session.results[self._signature(node)] = cached
        self._finish(node, cached)

    def _resolved(self, result: Any) -> tuple[Any, ...]:
        """An expanded node's result, its links replaced by what they brought."""
        values: list[Any] = []
        for value in result:
            link = parse_value(value)
            values += self.done[link.node][link.slot] if isinstance(link, Link) else [value]
        return tuple(values)

    # --- coroutines ------------------------------------------------------------------------------

    def _start(self, node: Node, returned: list[Any]) -> None:
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        self.tasks[node.id] = self.loop.create_task(gather(returned))
        self.loop.run_until_complete(asyncio.sleep(0))

    def _wait_for_a_task(self) -> None:
        assert self.loop is not None
        tasks = self.tasks.values()
        self.loop.run_until_complete(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
        for node_id in [key for key, task in self.tasks.items() if task.done()]:
            task = self.tasks.pop(node_id)
            self._guarded(
                self.graph[node_id], lambda node, t: self._receive(node, t.result()), task
            )

    def close(self) -> None:
        """Stop the coroutines that still run."""
        if self.loop is None:
            return
        for task in self.tasks.values():
            task.cancel()
        if self.tasks:
            waited, _ = self.loop.run_until_complete(asyncio.wait(self.tasks.values()))
            _ = [task.exception() for task in waited if not task.cancelled()]
        self.loop.close()
