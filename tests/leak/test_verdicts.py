"""Exit codes."""

import pytest

from limbeck.leak.verdicts import exit_code, overall
from limbeck.types.finding import Finding, Verdict


@pytest.mark.parametrize(
    ("required", "verdict", "code"),
    [
        (["clean", "clean"], "clean", 0),
        (["clean", "leak", "inconclusive", "not checked"], "leak", 3),
        (["clean", "inconclusive", "not checked"], "inconclusive", 4),
        (["clean", "not checked"], "not checked", 4),
        ([], "not checked", 4),
    ],
)
def test_only_a_set_of_clean_required_checks_is_clean(required: list[Verdict], verdict: str, code: int) -> None:
    findings = [Finding("a", kind, "") for kind in required] + [Finding("b", "leak", "", required=False)]
    assert overall(findings) == verdict
    assert exit_code(findings) == code
