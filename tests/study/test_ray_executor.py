"""What the executor asks of Ray, with a stand-in for it; `test_running` runs a study on the real one."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.errors import OptionError
from limbeck.progress import Reporter
from limbeck.study.executors import ExecutorOptions
from limbeck.study.graph import Task, Unit
from limbeck.study.ray_executor import RayExecutor
from limbeck.study.tasks import Premises

PREMISES = Premises(source="digits", open={}, pixels="raw", seed=0, cache="none")


class StandIn(SimpleNamespace):
    """As much of Ray as an executor asks before its first unit; `found` is what a cluster has, a local Ray has what it is started with."""

    def __init__(self, **found: float) -> None:
        super().__init__(up=False, asked={}, taken={}, found=found, exceptions=SimpleNamespace())

    def is_initialized(self) -> bool:
        return self.up

    def init(self, **given: Any) -> None:
        self.up, self.asked = True, given

    def shutdown(self) -> None:
        self.up = False

    def cluster_resources(self) -> dict[str, float]:
        return self.found | ({"CPU": self.asked["num_cpus"]} if "num_cpus" in self.asked else {})

    def remote(self, **taken: Any) -> Any:
        self.taken = taken
        return lambda work: work


class Listener(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def units(workers: int, device: str = "cpu") -> list[Unit]:
    settings = {"plan": {"device": device}, **({"workers": workers} if workers > 1 else {})}
    return [(Task("expert", "a", settings, {}, "main 0"),), (Task("set", "b", {}, {}, "soft"),)]


def start(monkeypatch: pytest.MonkeyPatch, ray: StandIn, todo: list[Unit], **options: Any) -> Listener:
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    listener = Listener()
    RayExecutor(ExecutorOptions("ray", **options), PREMISES, listener, 1, todo)
    return listener


@pytest.mark.parametrize(("workers", "together", "cores", "each"), [(1, 1, 1, 1), (1, 2, 3, 3), (2, 2, 4, 2), (4, 2, 4, 1), (3, 4, 6, 2)])
def test_a_local_ray_has_room_for_experts_of_several_workers(
    monkeypatch: pytest.MonkeyPatch, workers: int, together: int, cores: int, each: int
) -> None:
    ray = StandIn()
    start(monkeypatch, ray, units(together), workers=workers)
    assert ray.asked["num_cpus"] == cores >= (together + 1 if together > 1 else 1)
    assert ray.taken["num_cpus"] == each
    assert cores // each == workers  # units at once


def test_a_cluster_without_room_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = start(monkeypatch, StandIn(CPU=2.0), units(4), address="auto")
    assert listener.notes == [
        "an expert that several workers train together needs 5 CPU, of which there are 2 in the cluster now; it waits until the cluster grows"
    ]
    assert not start(monkeypatch, StandIn(CPU=8.0), units(4), address="auto").notes


def test_a_local_ray_without_gpus_for_all_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = StandIn(GPU=1)
    with pytest.raises(OptionError, match="needs 2 GPU, of which there are 1 here; use fewer workers in the study, or --address"):
        start(monkeypatch, ray, units(2, "cuda"), gpus=1.0)
    assert not ray.up
