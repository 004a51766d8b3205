import resource
import signal
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError
from limbeck.study.ledger import Ledger


def test_a_full_disk_is_one_sentence_and_loses_no_finished_row(tmp_path: Path) -> None:
    rows = [{"key": f"{number}", "words": "x" * 900} for number in range(4)]

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
