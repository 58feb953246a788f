"""A batch on several processes or machines: Ray's actors hold the models, this process keeps the record.

Each actor takes a group of tasks at a time, and sends the pictures back as bytes: no disk need be shared.
What an actor had in hand when it died is given to another; since only this process records what is done, each
key is made once whoever dies.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
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
MOST_DEATHS = 3  # of actors over one group; then the group has failed


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
        kind = ray.remote(Worker).options(**options)
        setup = ray.put(self.setup)
        actors = [kind.remote(setup) for _ in range(max(1, number))]
        waiting: list[tuple[list[Task], int]] = []
        running: dict[Any, tuple[int, list[Task], int]] = {}

        def give(place: int) -> bool:
            group, deaths = waiting.pop() if waiting else (next(groups, None), 0)
            if group is None:
                return False
            running[actors[place].run.remote(group)] = (place, group, deaths)
            return True

        def lost(place: int) -> list[Outcome]:
            """Take back what a dead actor had in hand, and put another in its place; what failed for good.

            It died of the group that it had first; the others waited.
            """
            actors[place] = kind.remote(setup)
            mine = [ready for ready, (owner, *_) in running.items() if owner == place]
            (_, group, deaths), *others = [running.pop(ready) for ready in mine]
            waiting.extend((other, before) for _, other, before in others)
            if deaths + 1 < MOST_DEATHS:
                waiting.insert(0, (group, deaths + 1))
                return []
            text = f"the process that made it ended {MOST_DEATHS} times; its memory may not suffice"
            return [Outcome(task, error=text) for task in group]

        try:
            for _ in range(AHEAD):
                for place in range(len(actors)):
                    give(place)
            while running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                place, missing = running[ready][0], 1
                try:
                    outcomes = ray.get(ready)
                    del running[ready]
                except ray.exceptions.RayActorError:
                    outcomes, missing = lost(place), AHEAD
                for _ in range(missing):
                    give(place)
                if outcomes:
                    yield outcomes
        finally:
            with contextlib.suppress(ray.exceptions.RayError):  # one is gone, or still at work
                ray.get([actor.close.remote() for actor in actors], timeout=5)
            for actor in actors:
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
