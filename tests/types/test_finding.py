"""How p-values are written."""

import pytest

from limbeck.types.finding import p_words


@pytest.mark.parametrize(
    ("p_value", "words"), [(1.0, "p = 1"), (0.0123, "p = 0.012"), (1e-16, "p = 1e-16"), (1e-40, "p < 1e-16"), (0.0, "p < 1e-16")]
)
def test_a_p_value_is_never_written_as_zero(p_value: float, words: str) -> None:
    assert p_words(p_value) == words
