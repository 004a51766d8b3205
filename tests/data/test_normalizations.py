"""The table of published normalizations against the statistics that it stands for."""

import numpy as np
import pytest

from limbeck.data.normalizations import NORMALIZATIONS


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_every_entry_has_a_deviation_for_every_mean_and_says_who_uses_it(name: str) -> None:
    entry = NORMALIZATIONS[name]
    assert len(entry.mean) == len(entry.std) == (1 if "mnist" in name else 3)
    assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
    assert entry.used_by


def test_the_fields_numbers() -> None:
    assert NORMALIZATIONS["cifar10"].mean == (0.4914, 0.4822, 0.4465)
    assert NORMALIZATIONS["cifar10"].std == (0.2023, 0.1994, 0.2010)
    assert NORMALIZATIONS["cifar10-frepo"].std == (0.2470, 0.2435, 0.2616)
    assert (NORMALIZATIONS["cifar100-mtt"].mean, NORMALIZATIONS["cifar100-mtt"].std) == (
        NORMALIZATIONS["cifar10"].mean,
        NORMALIZATIONS["cifar10"].std,
    )
    assert NORMALIZATIONS["cifar100"].std == (0.2673, 0.2564, 0.2762)
    assert NORMALIZATIONS["tiny-imagenet"].mean == NORMALIZATIONS["imagenet"].mean == (0.485, 0.456, 0.406)


def test_fashion_mnist_is_normalized_by_the_statistics_of_its_training_images() -> None:
    from limbeck.data.opening import open_source
    from limbeck.errors import DataError

    try:
        train = open_source("fashion-mnist").train
    except DataError:
        return  # the files are not on this machine
    pixels = train.read(range(len(train))).numpy() / np.float32(255)
    assert NORMALIZATIONS["fashion-mnist"].mean[0] == pytest.approx(float(pixels.mean(dtype=np.float64)), abs=5e-4)
    assert NORMALIZATIONS["fashion-mnist"].std[0] == pytest.approx(float(pixels.std(dtype=np.float64)), abs=5e-4)
