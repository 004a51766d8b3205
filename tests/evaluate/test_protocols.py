import re

import pytest

from limbeck.data.augment import parse_augment
from limbeck.errors import OptionError
from limbeck.evaluate.protocols import PROTOCOLS, get_protocol


def decays(name: str, examples: int = 100) -> tuple[int, list[int]]:
    """Epochs in all, and the 0-based epochs from which the rate is lower."""
    recipe = get_protocol(name).recipe
    per_epoch = recipe.steps_per_epoch(examples)
    return recipe.total_steps(examples) // per_epoch, [step // per_epoch for step in recipe.decay_steps(examples)]


@pytest.mark.parametrize(
    ("name", "epochs", "lower_from"),
    [
        ("dc", 300, [150]),
        # E + 1 epochs; the rate falls once epoch E // 2 + 1 is done
        ("dc-compat", 301, [152]),
        ("dsa", 1000, [500]),
        ("dsa-compat", 1001, [502]),
        ("label-worth", 3000, [750, 1500, 2250]),
        # StepLR with step size 750 over 3001 epochs: the last epoch alone runs at the fourth decay
        ("label-worth-compat", 3001, [750, 1500, 2250, 3000]),
        ("sre2l", 400, []),
    ],
)
@pytest.mark.parametrize("examples", [10, 256, 1000])
def test_lengths_and_decays_are_those_of_the_sources(name: str, epochs: int, lower_from: list[int], examples: int) -> None:
    assert decays(name, examples) == (epochs, lower_from)


def test_the_short_protocol_is_500_steps_for_any_set() -> None:
    recipe = get_protocol("label-worth-short").recipe
    assert (recipe.total_steps(10), recipe.total_steps(10_000), recipe.decay_steps(10)) == (500, 500, [125, 250, 375])


def test_optimizers_are_those_of_the_sources() -> None:
    for name in ("dc", "dc-compat", "dsa", "dsa-compat", "label-worth", "label-worth-compat"):
        recipe = get_protocol(name).recipe
        assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch_size, recipe.loss) == (
            "sgd",
            0.01,
            0.9,
            5e-4,
            256,
            "cross-entropy",
        )
        assert recipe.decay == (0.3 if name.startswith("label") else 0.1)
    sre2l = get_protocol("sre2l").recipe
    assert (sre2l.optimizer, sre2l.lr, sre2l.weight_decay, sre2l.batch_size, sre2l.loss, sre2l.temperature) == ("adamw", 1e-3, 0.01, 128, "kl", 20)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_named_versioned_cited_and_runnable(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.label == f"{name}/{protocol.version}"
    assert protocol.version >= 1
    assert re.search(r"\d{4} \(arXiv \d{4}\.\d{5}\)$", protocol.source)
    assert protocol.note
    augment = parse_augment(protocol.recipe.augment)
    assert (augment is None) == (protocol.recipe.augment == "none")
    quirky = protocol.recipe.extra_epoch or protocol.recipe.restart_momentum_at_decay
    assert not quirky or name.endswith("-compat")


def test_an_unknown_protocol_is_answered_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"^unknown protocol 'dsa2'; did you mean 'dsa'\? known: audit, dc, dc-compat, dsa, "):
        get_protocol("dsa2")
