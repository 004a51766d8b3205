import numpy as np
import pytest

from limbeck.data.labeling import label_array, number_labels
from limbeck.errors import DataError


def test_names_are_sorted_and_numbers_are_kept_as_names() -> None:
    assert number_labels({"train": label_array(["b", "a", "b"], "x")}, None, "x")[0] == ["a", "b"]
    classes, labels = number_labels({"train": np.array([7, 3, 7]), "test": np.array([3])}, None, "x")
    assert classes == ["3", "7"]
    assert {part: found.tolist() for part, found in labels.items()} == {"train": [1, 0, 1], "test": [0]}


def test_named_numbers_index_the_names() -> None:
    classes, labels = number_labels({"train": np.array([2, 0])}, ["a", "b", "c"], "x")
    assert classes == ["a", "b", "c"]
    assert labels["train"].tolist() == [2, 0]
    with pytest.raises(DataError) as caught:
        number_labels({"train": np.array([3])}, ["a", "b", "c"], "x")
    assert str(caught.value) == "train of x has label 3, wanted 0 to 2 for its 3 class names"


def test_a_hidden_test_is_left_out_and_a_strange_class_is_refused() -> None:
    assert list(number_labels({"train": np.array([0, 1]), "test": np.array([-1, -1])}, None, "x")[1]) == ["train"]
    with pytest.raises(DataError) as caught:
        number_labels({"train": np.array(["a"]), "test": np.array(["b"])}, None, "x")
    assert str(caught.value) == "test of x has class 'b', which train lacks; add it to train or remove it"


def test_forms() -> None:
    assert label_array(np.array([[1], [2]], dtype=np.uint8), "x").tolist() == [1, 2]
    assert label_array(np.array([b"a", b"b"]), "x").tolist() == ["a", "b"]
    assert label_array(np.array(["a", "b"], dtype=object), "x").tolist() == ["a", "b"]
    for wrong, reason in (
        (np.eye(3), "have shape [3, 3], wanted [N] or [N, 1]; store one class number or name per image"),
        ([0.5], "are float64, wanted whole numbers or names; store one class number or name per image"),
        ([1, None], "mix types or have gaps, wanted a class number or name for every image; fill or remove the gaps"),
    ):
        with pytest.raises(DataError) as caught:
            label_array(wrong, "x")
        assert str(caught.value) == f"labels of x {reason}"
