"""Batches on a cluster: whoever dies, each group comes once; the same pictures as in one process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imagen_nodes.headless.inputs import InputError
from imagen_nodes.headless.jobs import cluster
from imagen_nodes.headless.jobs.rows import Row
from imagen_nodes.headless.jobs.tasks import Task
from imagen_nodes.headless.jobs.workers import Outcome

EXAMPLE = Path(__file__).parents[2] / "example_workflows" / "text_to_64.json"


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class GetTimeoutError(RayError):
    pass


@dataclass(eq=False)
class Reference:
    """The result of a call, to be waited for."""

    actor: Any
    function: Any
    given: tuple


@dataclass
class FakeRay:
    """Ray as far as it is used: actors whose calls are made when they are waited for, and which may die."""

    dies: set = field(default_factory=set)  # (number of the actor, from 0; number of its call)
    actors: list = field(default_factory=list)
    groups: list = field(default_factory=list)
    stopped: bool = False
    places: int = 99  # actors that find a place on the cluster
    exceptions = types.SimpleNamespace(
        RayError=RayError, RayActorError=RayActorError, GetTimeoutError=GetTimeoutError
    )

    def init(self, address, **options):
        if address == "nowhere":
            raise ConnectionError("refused")

    def cluster_resources(self):
        return {"CPU": 2.0}

    def put(self, thing):
        return thing

    def remote(self, kind):
        ray = self

        class Method:
            def __init__(self, actor, function):
                self.actor, self.function = actor, function

            def remote(self, *given):
                return Reference(self.actor, self.function, given)

        class Actor:
            def __init__(self, setup):
                self.number, self.calls = len(ray.actors), 0
                self.alive = (self.number, 0) not in ray.dies
                ray.actors.append(self)
                self.run = Method(self, self._run)
                self.close = Method(self, lambda: None)
                self.__ray_ready__ = Method(self, lambda: None)

            def _run(self, group):
                self.calls += 1
                if (self.number, self.calls) in ray.dies:
                    self.alive = False
                    raise RayActorError("killed")
                ray.groups.append([task.key for task in group])
                return [Outcome(task) for task in group]

        options = types.SimpleNamespace(remote=Actor)
        return types.SimpleNamespace(options=lambda **given: options)

    def get(self, reference, timeout=None):
        if isinstance(reference, list):
            return [self.get(each) for each in reference]
        if not reference.actor.alive:
            raise RayActorError("is dead")
        return reference.function(*reference.given)

    def wait(self, references, num_returns, timeout):
        able = [each for each in references if each.actor.number < self.places]
        return able[:1], []

    def kill(self, actor):
        actor.alive = False

    def shutdown(self):
        self.stopped = True


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def groups(count):
    for n in range(count):
        yield [Task(Row(n), 1, f"k{n}-{i}", bytes(16)) for i in range(2)]


def made(ray, count=9):
    outcomes = [o for part in cluster.Cluster(None, None).outcomes(groups(count)) for o in part]
    assert sorted(o.task.key for o in outcomes) == sorted(
        f"k{n}-{i}" for n in range(count) for i in (0, 1)
    )
    assert ray.stopped
    return outcomes


def test_each_group_is_made_once(ray):
    assert not any(outcome.error for outcome in made(ray))
    assert len(ray.groups) == 9
    assert len(ray.actors) == 2
    assert min(actor.calls for actor in ray.actors) > 1


@pytest.mark.parametrize("dies", [{(0, 1)}, {(1, 3)}, {(0, 2), (1, 1), (2, 2)}])
def test_what_a_worker_had_in_hand_when_it_died_is_made_by_another(ray, dies):
    ray.dies = dies
    assert not any(outcome.error for outcome in made(ray))
    assert sorted(ray.groups) == sorted([f"k{n}-0", f"k{n}-1"] for n in range(9))
    assert len(ray.actors) == 2 + len(dies)


@pytest.mark.parametrize(("places", "dies"), [(1, set()), (2, {(1, 2)})])
def test_a_worker_that_finds_no_place_holds_no_group(ray, places, dies):
    """A cluster smaller than --workers, or one that lost a machine, goes on with what it has."""
    ray.places, ray.dies = places, dies
    assert not any(outcome.error for outcome in made(ray))
    assert len(ray.groups) == 9


def test_workers_that_do_not_start_are_one_clear_error(ray):
    ray.dies = {(n, 0) for n in range(99)}
    with pytest.raises(RuntimeError, match="--ray: the workers do not start"):
        made(ray)
    assert len(ray.actors) == 2 * cluster.MOST_DEATHS


def test_a_group_that_ends_every_worker_fails_and_the_batch_goes_on(ray):
    run = FakeRay.get

    def get(self, reference, timeout=None):
        if (
            isinstance(reference, Reference)
            and reference.given
            and reference.given[0][0].key == "k4-0"
        ):
            reference.actor.alive = False
        return run(self, reference, timeout)

    ray.get = types.MethodType(get, ray)
    failed = [outcome for outcome in made(ray) if outcome.error]
    assert sorted(outcome.task.key for outcome in failed) == ["k4-0", "k4-1"]
    assert all("died 3 times" in outcome.error for outcome in failed)


def test_without_ray_or_a_cluster_one_clear_error(ray, monkeypatch):
    with pytest.raises(InputError, match="--ray: no cluster answers at nowhere"):
        next(cluster.Cluster("nowhere", None).outcomes(groups(1)))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="--ray needs Ray: pip install"):
        next(cluster.Cluster(None, None).outcomes(groups(1)))


def rows_file(folder: Path) -> Path:
    """Twelve rows of four prompts."""
    names = ["rocket", "house", "fish", "bus"] * 3
    lines = [{"id": f"k{n}", "prompt": f"a {name}"} for n, name in enumerate(names)]
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(rows: Path, out: Path) -> list[str]:
    """A batch of the rows, three at once."""
    return [
        "batch",
        str(rows),
        "--workflow",
        str(EXAMPLE),
        "-o",
        str(out),
        "--at-once",
        "3",
        "--set",
        "batch_size=1",
    ]


def bytes_of(out: Path) -> dict[str, bytes]:
    """The pictures of a batch."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.png")}


def imagen(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The command, in a process of its own: as in the workers, "auto" is what the processor computes in."""
    return subprocess.Popen([sys.executable, "-m", "imagen_nodes", *arguments])


@pytest.fixture
def of_one_process(tmp_path, monkeypatch):
    """The pictures that one process makes, on one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert imagen(command(rows_file(tmp_path), tmp_path / "one")).wait(timeout=600) == 0
    found = bytes_of(tmp_path / "one")
    assert len(found) == 12
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_real_workers_make_the_bytes_of_one_process(tmp_path, of_one_process):
    """A minute, most of it to start Ray."""
    pytest.importorskip("ray")
    more = ["--ray", "--workers", "2"]
    assert imagen([*command(tmp_path / "p.jsonl", tmp_path / "many"), *more]).wait(timeout=600) == 0
    assert bytes_of(tmp_path / "many") == of_one_process


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_two_nodes_a_killed_worker_loses_nothing(tmp_path, of_one_process):
    utils = pytest.importorskip("ray.cluster_utils")
    nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        batch = [*command(tmp_path / "p.jsonl", tmp_path / "many"), "--ray", nodes.address]
        running = imagen(batch)
        while len(bytes_of(tmp_path / "many")) < 3:
            assert running.poll() is None, "it ends before a worker is killed"
            time.sleep(0.02)
        workers = ray_workers()
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        assert len(bytes_of(tmp_path / "many")) < 12, "it was over before"
        assert running.wait(timeout=600) == 0
    finally:
        nodes.shutdown()
    assert bytes_of(tmp_path / "many") == of_one_process
    records = (tmp_path / "many/manifest.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in records) == sorted(f"k{n}" for n in range(12))


def ray_workers() -> list[int]:
    """Process ids of the actors on this computer."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(folder.name))
    return found
