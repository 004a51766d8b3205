"""The page of an audit: every verdict in words, nothing loaded from elsewhere, and no figure without numbers."""

from typing import Any

from limbeck.report.audit import render_audit


def record(**changes: Any) -> dict[str, Any]:
    finding = {
        "check": "exposure, end to end",
        "verdict": "clean",
        "sentence": "Nothing.",
        "threshold": 0.08,
        "false_positive_rate": 0.009,
        "required": True,
    }
    given: dict[str, Any] = {
        "title": "digits, <b>10</b> images",
        "verdict": "clean",
        "exit_code": 0,
        "alpha": 0.01,
        "tolerance": 0.1,
        "canaries": 50,
        "source": {"name": "digits", "classes": ["a", "b"]},
        "bytes": {"total": 700},
        "counts": [5, 5],
        "exposures": [],
        "attacks": {},
        "frontier": [],
        "expert": None,
        "findings": [{**finding, "evidence": {}}],
        "command": "limbeck audit digits",
        "seconds": 3.0,
        "machine": "x",
        "versions": {"limbeck": "0"},
        "seed": 0,
    }
    return {**given, **changes}


def test_a_clean_page_says_that_it_is_no_proof_and_escapes_what_it_shows() -> None:
    html, figures = render_audit(record())
    assert figures == []
    assert "is no proof" in html
    assert "&lt;b&gt;10&lt;/b&gt;" in html
    assert "<script" not in html


def test_what_was_not_checked_is_said_in_the_first_sentence() -> None:
    missing = {
        "check": "membership",
        "verdict": "not checked",
        "sentence": "No.",
        "threshold": None,
        "false_positive_rate": None,
        "required": True,
        "evidence": {},
    }
    html, _ = render_audit(record(verdict="not checked", exit_code=4, findings=[missing]))
    assert "Nothing can be concluded yet: of 1 required check, 1 check not checked." in html
    assert 'class="word not-checked"' in html


def test_exposures_and_defenses_are_drawn_with_their_numbers_spoken() -> None:
    row = {
        "arm": "expert",
        "role": "published",
        "value": 0.2,
        "low": 0.1,
        "high": 0.3,
        "critical": 0.08,
        "canary": 0.3,
        "control": 0.1,
        "p_value": 1e-5,
        "by_expert": [0.2],
        "accuracy": 0.8,
        "test_images": 100,
        "redraws": 10_000,
        "redraw_rate": 0.009,
        "bytes": {"total": 700},
    }
    tried = [{**row, "defense": "as published", "kind": "none"}, {"defense": "dp 2", "kind": "dp", "note": "needs opacus"}]
    html, figures = render_audit(record(verdict="leak", exit_code=3, exposures=[row], frontier=tried))
    assert [figure.name for figure in figures] == ["exposure", "frontier"]
    assert "+20.0 points (+10.0 to +30.0)" in figures[0].alt
    assert "needs opacus" in html
    assert "should not be published as it is" in html


def test_the_rate_that_was_tested_is_shown_with_its_p_value_which_is_never_zero() -> None:
    rate = {"tpr": 0.06, "low": 0.038, "high": 0.085, "p_value": 0.0005, "critical": 0.025}
    attack = {
        "auc": 0.531,
        "auc_low": 0.497,
        "auc_high": 0.56,
        "p_value": 0.0,
        "tested": "0.01",
        "rates": {"0.001": None, "0.01": rate},
        "non_members": 1800,
        "records": 400,
        "worlds": 9,
        "curve": [[0.01, 0.06], [1.0, 1.0]],
    }
    html, figures = render_audit(record(attacks={"arm": "expert", "attacks": {"students (LiRA)": attack}}))
    assert [figure.name for figure in figures] == ["roc"]
    assert '6.0 % <span class="quiet">(3.8 to 8.5), p 0.0005</span>' in html
    assert '<td class="n">&lt; 1e-16</td>' in html
