"""Defenses as the user writes them, and noise that is drawn once."""

import pytest
import torch
from tests.small import PLAN, Oracle, gaussians

from limbeck.errors import OptionError
from limbeck.leak.defenses import Defense, NoisyLabeler, parse_defenses
from limbeck.streams import Streams


def test_a_list_of_settings() -> None:
    found = parse_defenses("temperature=4/20, top-k=3,precision=uint8,noise=0.5,expert-epochs=1,dp=2")
    assert [defense.name for defense in found] == [
        "temperature 4",
        "temperature 20",
        "top-k 3",
        "precision uint8",
        "noise 0.5",
        "expert-epochs 1",
        "dp 2",
    ]
    assert found[1].number == 20


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("temprature=4", "unknown defense 'temprature'; did you mean 'temperature'"),
        ("noise", "defenses are written kind=value/value, got 'noise'"),
        ("precision=int4", "labels are stored as float32, float16 or uint8, got 'int4'"),
        ("top-k=2.5", "top-k needs a whole number above 0, got '2.5'"),
        ("noise=0", "noise needs a number above 0, got '0'"),
    ],
)
def test_mistakes_are_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        parse_defenses(text)


def test_noise_has_its_size_is_drawn_once_and_names_itself() -> None:
    table = gaussians(1000)
    clean = Oracle(table, torch.zeros(2000, 2))
    noisy = NoisyLabeler(clean, 0.5, Streams(0))
    first = noisy.logits(table, PLAN)
    assert torch.equal(first, noisy.logits(table, PLAN))
    assert float(first.std()) == pytest.approx(0.5, rel=0.05)
    assert noisy.digest not in (clean.digest, NoisyLabeler(clean, 1.0, Streams(0)).digest, NoisyLabeler(clean, 0.5, Streams(1)).digest)
    assert Defense("noise", "0.5").number == 0.5
