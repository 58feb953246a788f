"""A batch on several processes or machines: Ray's actors hold the models, this process keeps the record.

Each actor takes a group of tasks at a time, and sends the pictures back as bytes: no disk need be shared.
What an actor had in hand when it died is given to another; since only this process records what is done, each
key is made once whoever dies.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs import InputError
from .tasks import Choices, Job, Task
from .workers import Here, Outcome, Staged

if TYPE_CHECKING:
    from ..comfy_nodes.folders import Folders
    from ..registry import Registry
    from .workers import Groups

AHEAD = 2  # groups that an actor has in hand: one that it runs, and one that waits
# Of actors over one group, which then failed; or of one that starts, which is then left out.
MOST_DEATHS = 3
PATIENCE = 30.0  # seconds without an event after which people are told why nothing goes on


@dataclass(frozen=True)
class Setup:
    """All that an actor needs to run tasks.

    workflow    JSON of the workflow's file; None = each task names its own
    choices     of the command line
    inputs      folder of pictures to load, on a disk that all share
    device      given to `choose_device`
    registry    makes the node classes
    use         tells the nodes where pictures come from and go to
    choose_device   has the networks run on a device of that name
    """

    workflow: bytes | None
    choices: Choices
    inputs: Path
    device: str
    registry: Callable[[], Registry]
    use: Callable[[Folders], None]
    choose_device: Callable[[str], None]


class Worker:
    """What an actor runs."""

    def __init__(self, setup: Setup):
        import torch

        setup.choose_device(setup.device)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
        place = Path(tempfile.mkdtemp(prefix="imagen-"))
        workflow = None
        if setup.workflow is not None:
            workflow = place / "workflow.json"
            workflow.write_bytes(setup.workflow)
        job = Job(workflow, setup.registry(), setup.choices)
        (place / "made").mkdir()
        self.place, self.here = place, Here(job, place / "made", setup.inputs, setup.use)

    def run(self, group: list[Task]) -> list[Outcome]:
        """The outcomes of a group, their pictures as bytes."""
        for task in group:
            self.here.job.tasks(task.row)  # which finds what its columns set
        found = []
        for outcome in self.here.run(group):
            files = []
            for file in outcome.files:
                assert isinstance(file.content, Path)
                files.append(Staged(file.name, file.content.read_bytes()))
                file.content.unlink()
            found.append(replace(outcome, files=files))
        return found

    def close(self) -> None:
        """Remove what this actor wrote."""
        shutil.rmtree(self.place, ignore_errors=True)


class Crew:
    """Actors, and the groups that each has in hand. Only one that has started is given any.

    ray      the module
    actor    starts an actor
    number   of actors
    groups   to be made
    """

    def __init__(self, ray: Any, actor: Callable[[], Any], number: int, groups: Groups):
        self.ray, self.actor, self.groups = ray, actor, groups
        self.actors: list[Any] = [None] * number
        self.failures = [0] * number  # to start, one after the other
        self.starting: dict[Any, int] = {}
        self.ready: set[int] = set()
        # Groups that were taken back, and deaths over each.
        self.waiting: list[tuple[list[Task], int]] = []
        self.running: dict[Any, tuple[int, list[Task], int]] = {}
        self.told = False
        for place in range(number):
            self._start(place)

    def has_work(self) -> bool:
        """Whether a group is still to be made; a RuntimeError where nobody is left to make it."""
        if self.running or (self.starting and self._more()):
            return True
        if self._more():
            raise RuntimeError(
                "--ray: the workers do not start; Ray's logs on their machines say why"
            )
        return False

    def wait(self) -> list[Outcome]:
        """The outcomes of the next group that ends; none where an actor started, died, or nothing came."""
        events, _ = self.ray.wait([*self.starting, *self.running], num_returns=1, timeout=PATIENCE)
        if not events:
            if not self.running and not self.told:
                print("waiting for the cluster to start a worker", file=sys.stderr, flush=True)
                self.told = True
            return []
        (event,), outcomes = events, []
        started = self.starting.pop(event, None)
        place = self.running[event][0] if started is None else started
        try:
            if started is not None:
                self.ray.get(event)
                self.ready.add(place)
                self.failures[place] = 0
            else:
                outcomes = self.ray.get(event)
                del self.running[event]
        except self.ray.exceptions.RayActorError:
            outcomes = self._lost(place)
        self._give()
        return outcomes

    def _start(self, place: int) -> None:
        self.actors[place] = self.actor()
        self.starting[self.actors[place].__ray_ready__.remote()] = place

    def _more(self) -> bool:
        """Whether a group waits for a worker."""
        if not self.waiting:
            self.waiting += [(group, 0) for group in itertools.islice(self.groups, 1)]
        return bool(self.waiting)

    def _give(self) -> None:
        """Give groups to actors that have fewer than AHEAD, first to those that have none."""
        for most in range(1, AHEAD + 1):
            for place in sorted(self.ready):
                held = sum(owner == place for owner, *_ in self.running.values())
                if held < most and self._more():
                    group, deaths = self.waiting.pop()
                    event = self.actors[place].run.remote(group)
                    self.running[event] = (place, group, deaths)

    def _lost(self, place: int) -> list[Outcome]:
        """Take back what a dead actor had in hand, and start another in its place; what failed for good.

        It died of the group that it had first; the others waited.
        """
        if place not in self.ready:
            self.failures[place] += 1
        self.ready.discard(place)
        if self.failures[place] < MOST_DEATHS:
            self._start(place)
        mine = [event for event, (owner, *_) in self.running.items() if owner == place]
        if not mine:
            return []
        (_, group, deaths), *others = [self.running.pop(event) for event in mine]
        self.waiting.extend((other, before) for _, other, before in others)
        if deaths + 1 < MOST_DEATHS:
            self.waiting.insert(0, (group, deaths + 1))
            return []
        text = f"the process that ran it died {MOST_DEATHS} times; it may need more memory than there is"
        return [Outcome(task, error=text) for task in group]


class Cluster:
    """Actors on a cluster, or on this computer where no address is given.

    address   of Ray's head; None = a cluster is started here, with an actor a GPU or a core
    setup     of the actors
    workers   actors; 0 = one a GPU, or one for `cores` cores where there is none
    """

    def __init__(self, address: str | None, setup: Setup, workers: int = 0, cores: int = 1):
        self.address, self.setup, self.workers, self.cores = address, setup, workers, cores

    def outcomes(self, groups: Groups) -> Iterator[list[Outcome]]:
        """The outcomes of each group as they come in; failures of one whose actors die again and again."""
        ray = self._started()
        gpus = ray.cluster_resources().get("GPU", 0)
        number = self.workers or int(
            gpus or math.floor(ray.cluster_resources()["CPU"] / self.cores)
        )
        options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": self.cores}
        kind, setup = ray.remote(Worker).options(**options), ray.put(self.setup)
        crew = Crew(ray, lambda: kind.remote(setup), max(1, number), groups)
        try:
            while crew.has_work():
                outcomes = crew.wait()
                if outcomes:
                    yield outcomes
        finally:
            with contextlib.suppress(ray.exceptions.RayError):  # one is gone, or still at work
                ray.get([crew.actors[place].close.remote() for place in crew.ready], timeout=5)
            for actor in crew.actors:
                ray.kill(actor)
            ray.shutdown()

    def _started(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise InputError("--ray needs Ray: pip install 'imagen-nodes[scale]'") from error
        try:
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if self.address is None:
                options["include_dashboard"] = False
            ray.init(self.address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"--ray: no cluster answers at {self.address}: {error}") from error
        return ray
