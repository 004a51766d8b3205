from types import SimpleNamespace

import pytest
import torch
from tests.small import network

from limbeck.errors import OptionError
from limbeck.train.plan import plan_for, threads

LARGE = network("convnet", classes=10, shape=(3, 32, 32))


def test_short_jobs_stay_eager_and_long_ones_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.train.plan.compiler", lambda: "g++")
    monkeypatch.setattr("limbeck.train.plan._native_bfloat16", lambda: False)
    short, long = plan_for(LARGE, 100, device="cpu", threads=1), plan_for(LARGE, 10**7, device="cpu", threads=1)
    assert (short.strategy, short.precision, short.threads) == ("eager", "float32", 1)
    assert short.reason.endswith("operations: too short to compile")
    assert (long.strategy, long.precision) == ("compiled", "float32")
    assert long.chunk == short.chunk


def test_without_a_compiler_or_narrow_arithmetic_a_plan_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.train.plan.compiler", lambda: None)
    assert (plan_for(LARGE, 10**7, device="cpu").strategy, plan_for(LARGE, 10**7, device="cpu").reason) == (
        "eager",
        "no C++ compiler found: eager, with the same results but slower",
    )


@pytest.mark.parametrize(("model", "least", "most"), [("convnet", 16, 64), ("convnet-d1-w8", 1024, 1024), ("convnet:norm=batch", 0, 0)])
def test_chunks_follow_the_size_of_the_network_and_batch_statistics_forbid_them(model: str, least: int, most: int) -> None:
    assert least <= plan_for(network(model, classes=10, shape=(3, 32, 32)), 10, device="cpu").chunk <= most


def test_devices_that_are_not_there_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="^unknown device 'gpu'; use auto, cpu, cuda or cuda:N$"):
        plan_for(LARGE, 1, device="gpu")
    with pytest.raises(OptionError, match="^unknown device 'mps'; use auto, cpu, cuda or cuda:N$"):
        plan_for(LARGE, 1, device="mps")
    with pytest.raises(OptionError, match="^device 'cuda' was asked for, but this machine has no usable GPU; use --device cpu$"):
        plan_for(LARGE, 1, device="cuda:1")
    assert plan_for(LARGE, 1).device == "cpu"


@pytest.mark.parametrize(
    ("gigabytes", "models", "chunk"),
    [(80, 32, 0), (3.0, 3, 0), (1.0, 1, 0), (0.4, 1, 116)],
)
def test_a_gpu_takes_as_many_models_as_its_memory_holds_and_cuts_batches_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, models: int, chunk: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=int(2 * gigabytes * 1e9)))
    monkeypatch.setattr("limbeck.train.plan.can_compile", lambda device: True)
    plan = plan_for(LARGE, 10**9)
    assert (plan.device, plan.strategy, plan.precision) == ("cuda", "compiled", "bfloat16")
    assert (plan.models, plan.chunk) == (models, chunk)
    short = plan_for(LARGE, 1000)
    assert (short.strategy, short.precision) == ("eager", "float32")
    assert "too short to compile" in short.reason


def test_small_networks_train_in_stacks() -> None:
    assert plan_for(network("softmax"), 10, device="cpu").models == 16
    assert plan_for(LARGE, 10, device="cpu").models == 1


def test_compiled_batches_are_shared_by_lanes_of_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.train.plan.compiler", lambda: "g++")
    plan = plan_for(LARGE, 10**7, batch=10, device="cpu", threads=2)
    assert (plan.lanes, plan.threads, plan.chunk) == (2, 1, 5)
    whole = plan_for(network("convnet:norm=batch", classes=10, shape=(3, 32, 32)), 10**7, device="cpu", threads=2)
    assert (whole.lanes, whole.threads, whole.chunk) == (1, 2, 0)


def test_threads_are_given_back_even_after_a_failure() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with threads(before + 2):
            raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match=f"^{before + 2}$"):
        fail()
    assert torch.get_num_threads() == before
