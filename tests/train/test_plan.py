import pytest
import torch
from tests.small import network

from limbeck.errors import OptionError
from limbeck.train.plan import plan_for, threads

LARGE = network("convnet", classes=10, shape=(3, 32, 32))


def test_short_jobs_stay_eager_and_long_ones_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.train.plan._compiler", lambda: "g++")
    monkeypatch.setattr("limbeck.train.plan._native_bfloat16", lambda: False)
    short, long = plan_for(LARGE, 100, device="cpu", threads=1), plan_for(LARGE, 10**7, device="cpu", threads=1)
    assert (short.strategy, short.precision, short.threads) == ("eager", "float32", 1)
    assert short.reason.endswith("operations: too short to compile")
    assert (long.strategy, long.precision) == ("compiled", "float32")
    assert long.chunk == short.chunk


def test_without_a_compiler_or_narrow_arithmetic_a_plan_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.train.plan._compiler", lambda: None)
    assert (plan_for(LARGE, 10**7, device="cpu").strategy, plan_for(LARGE, 10**7, device="cpu").reason) == ("eager", "no C++ compiler found: eager")


@pytest.mark.parametrize(("model", "least", "most"), [("convnet", 16, 64), ("convnet-d1-w8", 1024, 1024), ("convnet:norm=batch", 0, 0)])
def test_chunks_follow_the_size_of_the_network_and_batch_statistics_forbid_them(model: str, least: int, most: int) -> None:
    assert least <= plan_for(network(model, classes=10, shape=(3, 32, 32)), 10, device="cpu").chunk <= most


def test_devices_that_are_not_there_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="^unknown device 'gpu'; use auto, cpu, cuda or cuda:N$"):
        plan_for(LARGE, 1, device="gpu")
    with pytest.raises(OptionError, match="^device 'cuda' was asked for, but this machine has no usable GPU; use --device cpu$"):
        plan_for(LARGE, 1, device="cuda:1")
    assert plan_for(LARGE, 1).device == "cpu"


def test_a_gpu_takes_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = plan_for(LARGE, 10**9)
    assert (plan.device, plan.chunk, plan.strategy) == ("cuda", 0, "eager")


def test_threads_are_given_back_even_after_a_failure() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with threads(before + 2):
            raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match=f"^{before + 2}$"):
        fail()
    assert torch.get_num_threads() == before
