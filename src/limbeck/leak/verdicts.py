"""From the checks of an audit to its verdict and exit code."""

from collections.abc import Sequence

from limbeck.types.finding import Finding, Verdict

CLEAN, LEAK, UNDECIDED = 0, 3, 4


def overall(findings: Sequence[Finding]) -> Verdict:
    """Of the required checks: a leak if any leaks, otherwise inconclusive if any could not decide, otherwise not checked if any was not run. Clean only if
    all are clean."""
    verdicts = {finding.verdict for finding in findings if finding.required}
    order: tuple[Verdict, ...] = ("leak", "inconclusive", "not checked")
    return next((verdict for verdict in order if verdict in verdicts), "clean" if verdicts else "not checked")


def exit_code(findings: Sequence[Finding]) -> int:
    """0: every required check is clean; 3: one leaks; 4: one is inconclusive or was not run."""
    return {"clean": CLEAN, "leak": LEAK, "inconclusive": UNDECIDED, "not checked": UNDECIDED}[overall(findings)]
