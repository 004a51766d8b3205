import numpy as np
import pytest
import torch
from tests.small import Oracle, gaussians, problem

from limbeck.errors import OptionError
from limbeck.methods import SELECTORS
from limbeck.streams import Streams

TABLE = gaussians(30)
LOGITS = torch.from_numpy(2 * np.random.default_rng(0).normal(size=(60, 2)))
BUDGET = (20, 20)


def scored(logits: torch.Tensor = LOGITS, counts: tuple[int, int] = BUDGET, seed: int = 0):  # type: ignore[no-untyped-def]
    return problem(TABLE, counts, expert=Oracle(TABLE, logits), streams=Streams(seed))


def log_probabilities(rows: torch.Tensor) -> np.ndarray:
    return rows.double().log_softmax(1).numpy()


ARGUMENTS = {"random": [None], "herding": [None], "k-center": [None], "ce-quantile": ["0", "4", "9", None]}


@pytest.mark.parametrize(("name", "argument"), [(name, argument) for name in SELECTORS for argument in ARGUMENTS[name]])
def test_every_selector_gives_distinct_members_whose_budgets_nest(name: str, argument: str | None) -> None:
    """The images chosen at k per class are the first k of those chosen at more, also where a quantile overflows."""
    task = scored()
    for number in (0, 1):
        most = SELECTORS[name](task, number, 30, argument)
        assert len(set(most.tolist())) == 30
        assert set(TABLE.labels[most].tolist()) == {number}
        for count in range(1, 30):
            assert torch.equal(SELECTORS[name](task, number, count, argument), most[:count])


@pytest.mark.parametrize("name", ["random", "ce-quantile"])
def test_random_choices_belong_to_the_seed_and_the_class(name: str) -> None:
    chosen = [SELECTORS[name](scored(seed=seed), 0, 3, None).tolist() for seed in (0, 0, 1, 2, 3, 4)]
    assert chosen[0] == chosen[1]
    assert len({tuple(rows) for rows in chosen}) > 2


def test_random_choices_are_uniform() -> None:
    counts = np.zeros(60)
    for seed in range(400):
        counts[SELECTORS["random"](scored(seed=seed), 1, 5, None)] += 1
    rate = counts[TABLE.labels == 1] / 400
    assert np.abs(rate - 5 / 30).max() < 4.5 * np.sqrt(5 / 30 * 25 / 30 / 400)


def test_herding_starts_nearest_to_the_mean_and_follows_it() -> None:
    task = scored()
    members = task.members(0)
    vectors = log_probabilities(LOGITS[members])
    chosen = [members.tolist().index(row) for row in SELECTORS["herding"](task, 0, 12, None).tolist()]
    assert chosen[0] == np.linalg.norm(vectors - vectors.mean(0), axis=1).argmin()
    for size in range(1, 12):
        rest = [row for row in range(30) if row not in chosen[:size]]
        gaps = [np.linalg.norm(vectors[[*chosen[:size], row]].mean(0) - vectors.mean(0)) for row in rest]
        assert chosen[size] == rest[int(np.argmin(gaps))]


def test_k_center_on_a_line_is_its_closed_form() -> None:
    """With log-probabilities (0, -t) up to a constant, points t on a line: the one nearest to the mean, then the farthest ends, then the middle gap."""
    table = gaussians(5)
    spots = np.empty(10)
    spots[table.labels == 0], spots[table.labels == 1] = [0, 1, 9, 20, 100], [0, 1, 2, 3, 4]
    logits = torch.zeros(10, 2, dtype=torch.float64)
    logits[:, 1] = -torch.from_numpy(spots) - 50  # far below zero, where log-softmax is (0, -t - 50) to all digits
    task = problem(table, (5, 5), expert=Oracle(table, logits))
    members = task.members(0)
    chosen = spots[SELECTORS["k-center"](task, 0, 5, None)]
    assert len(members) == 5
    assert chosen.tolist() == [20, 100, 0, 9, 1]


def test_quantiles_are_sorted_by_the_experts_loss() -> None:
    task = scored()
    members = task.members(1)
    loss = -log_probabilities(LOGITS)[:, 1]
    ranked = members[np.argsort(loss[members], kind="stable")].tolist()
    for quantile in range(10):
        chosen = SELECTORS["ce-quantile"](task, 1, 3, str(quantile)).tolist()
        assert sorted(chosen) == sorted(ranked[3 * quantile : 3 * quantile + 3])
    assert SELECTORS["ce-quantile"](task, 1, 4, "0").tolist()[-1] == ranked[3]
    assert set(SELECTORS["ce-quantile"](task, 1, 7, "5").tolist()[3:]) == set(ranked[13:15]) | set(ranked[18:20])
    assert SELECTORS["ce-quantile"](task, 1, 3, None).tolist() == SELECTORS["ce-quantile"](task, 1, 3, "0").tolist()


@pytest.mark.parametrize("argument", ["10", "-1", "easy", "1.5", ""])
def test_an_impossible_quantile_is_answered(argument: str) -> None:
    with pytest.raises(OptionError) as caught:
        SELECTORS["ce-quantile"](scored(), 0, 1, argument)
    assert str(caught.value) == (
        f"ce-quantile needs a quantile 0 (easiest) to 9 (hardest), got {argument!r}; use for example --selector ce-quantile:0"
    )


def test_a_selector_that_scores_needs_an_expert() -> None:
    for name in ("herding", "k-center", "ce-quantile"):
        with pytest.raises(
            OptionError, match="^this selector scores images with an expert, but labels are hard and none was trained; use --selector random$"
        ):
            SELECTORS[name](problem(TABLE, BUDGET), 0, 1, None)
