import json
import resource
import signal
from pathlib import Path

import pytest
from tests.study.studies import ROW

from limbeck.errors import LimbeckError
from limbeck.study.ledger import Ledger


@pytest.mark.parametrize("name", sorted(ROW))
@pytest.mark.parametrize("after", ["", '{"key'])
def test_a_line_with_a_misspelled_key_is_named(tmp_path: Path, name: str, after: str) -> None:
    whole, path = json.dumps(ROW) + "\n", tmp_path / "ledger.jsonl"
    path.write_text(whole + whole.replace(f'"{name}"', f'"{name}z"') + after)
    with pytest.raises(LimbeckError) as told:
        Ledger(path)
    assert str(told.value) == (
        f"line 2 of '{path}' is damaged ({name}: field required); remove that line, and `limbeck study resume {tmp_path}` "
        "writes it anew from the finished work in the cache"
    )


def test_a_line_with_a_foreign_value_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for content, words in (
        ({**ROW, "inputs": {"experts": 3}}, "inputs: experts: input should be a valid array, got 3"),
        (3, "input should be an object, got 3"),
    ):
        path.write_text(json.dumps(content) + "\n")
        with pytest.raises(LimbeckError, match=f"line 1 of .* is damaged \\({words}\\); remove"):
            Ledger(path)


def test_a_digit_that_flipped_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.add({**ROW, "measures": {"accuracy": [0.4567, None], "steps": {1: 2, 10: 3}}})
    assert Ledger(path).rows["a"]["measures"]["accuracy"] == [0.4567, None]
    assert set(Ledger(path).rows["a"]) == set(ROW)
    path.write_text(path.read_text().replace("0.4567", "0.9567"))
    with pytest.raises(LimbeckError, match=r"line 1 of .* is damaged \(it does not fit its digest\); remove"):
        Ledger(path)


def test_a_full_disk_is_one_sentence_and_loses_no_finished_row(tmp_path: Path) -> None:
    rows = [ROW | {"key": f"{number}", "facts": {"words": "x" * 700}} for number in range(4)]

    def write() -> None:
        with Ledger(tmp_path / "ledger") as ledger:
            for row in rows:
                ledger.add(row)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
    try:
        with pytest.raises(LimbeckError, match=r"cannot write .*: File too large; free some space, and run the study again"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(Ledger(tmp_path / "ledger").rows) == ["0", "1"]
    write()
    assert list(Ledger(tmp_path / "ledger").rows) == ["0", "1", "2", "3"]
