import numpy as np
import pytest
import torch

from limbeck.streams import Streams


def test_recorded_seeds_and_draws_never_change() -> None:
    """Every published number hangs on these; a change of the path format would change all of them silently."""
    assert Streams(0).seed("order", 3) == 8244215730568551301
    assert Streams(7)["expert", 1].seed("init") == 7188199676061573188
    assert torch.randint(1000, (3,), generator=Streams(0).torch("order", 3)).tolist() == [403, 95, 113]
    assert Streams(0).numpy("order", 3).integers(1000, size=3).tolist() == [55, 210, 877]


def test_a_stream_depends_on_its_path_alone() -> None:
    streams = Streams(5)
    first = torch.rand(4, generator=streams.torch("a"))
    streams.torch("b"), streams["c"].numpy("d")
    assert torch.equal(torch.rand(4, generator=streams.torch("a")), first)
    assert torch.equal(torch.rand(4, generator=Streams(5).torch("a")), first)


@pytest.mark.parametrize(
    "same", [lambda s: s["a", 1].seed("b"), lambda s: s["a"][1].seed("b"), lambda s: s["a"].seed(1, "b"), lambda s: s["a", 1, "b"].seed()]
)
def test_a_node_and_a_path_name_the_same_stream(same: object) -> None:
    assert same(Streams(2)) == Streams(2).seed("a", 1, "b")  # type: ignore[operator]


def test_different_paths_have_different_seeds() -> None:
    paths = [(), ("a", "b"), ("ab",), ("a", "", "b"), ("b", "a"), ("a', 'b",), ("a,b",), ("a", 1), ("a", "1"), ("a1",), (1, "a"), (11,), (1, 1)]
    seeds = {Streams(root).seed(*path) for root in (0, 1, -1) for path in paths}
    assert len(seeds) == 3 * len(paths)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_root_is_not_part_of_the_path() -> None:
    assert Streams(1)[2].seed(3) != Streams(1).seed(23)
    assert Streams(0, (1,)).seed() == Streams(0).seed(1) != Streams(1).seed(0)


def test_neighboring_streams_are_uncorrelated() -> None:
    draws = np.stack([Streams(0).numpy("student", number).standard_normal(400) for number in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(400)  # five standard errors, over 190 pairs
