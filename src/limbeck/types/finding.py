"""`Finding`: what one check of an audit returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["clean", "leak", "inconclusive", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one audit check, never a bare number.

    `sentence` says in plain words what was found. `evidence` holds the numbers behind it (estimates, intervals with what they cover, p-values, counts, settings).
    A verdict of ``leak`` was reached by comparing with `threshold`, which clean data crosses at the rate `false_positive_rate`, measured on clean controls or
    label redraws. A check that could not decide is ``inconclusive``; one that was not run is ``not checked``, never ``clean``.
    """

    check: str
    verdict: Verdict
    sentence: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    false_positive_rate: float | None = None
    required: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "evidence": dict(self.evidence)}


def p_words(p_value: float) -> str:
    """``p = 0.012``; what rounding leaves of smaller ones says no more than ``p < 1e-16``, and never 0."""
    return f"p = {p_value:.2g}" if p_value >= 1e-16 else "p < 1e-16"
