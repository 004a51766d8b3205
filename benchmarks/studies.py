"""What studies promise, shown: ``python -m benchmarks.studies [in-process killed ray]`` writes ``benchmarks/results/studies.json``.

A study runs in one process; again, with nothing to do; killed with SIGKILL at random moments and resumed; and on a local Ray with one and two workers, where one
worker is killed as well. Every ledger must be the same without times and machines. Seconds are wall time and include starting Python and Ray: only a study whose
tasks last (``--study``, ``--scale cpu``) shows what a second worker is worth.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from limbeck import __version__, store
from limbeck.study.ledger import Ledger
from limbeck.study.running import LEDGER

RESULT = Path("benchmarks/results/studies.json")


class Case(NamedTuple):
    """What is run: a study file at one of its scales, one thread a task."""

    study: Path
    scale: str
    kills: int


def run(case: Case, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Starts a run of the study in a process group of its own."""
    places = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    command = [sys.executable, "-m", "limbeck", "study", "run", str(case.study), "--scale", case.scale, *places, "--threads", "1"]
    return subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def timed(case: Case, folder: Path, *more: str) -> float:
    """Seconds of a run that must end well."""
    started = time.monotonic()
    if run(case, folder, *more).wait() != 0:
        raise SystemExit(f"the run in {folder} failed; run it by hand to see why")
    return round(time.monotonic() - started, 1)


def canonical(folder: Path) -> str:
    return Ledger(folder / "out" / LEDGER).canonical()


def killed(case: Case, folder: Path, moment: float) -> dict[str, Any]:
    """Kills a fresh run `moment` seconds after its start, then lets another finish it; what the first one left."""
    ledger, process = folder / "out" / LEDGER, run(case, folder)
    try:
        process.wait(moment)
        alive = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        alive = True
    left = {"after_seconds": round(moment, 2), "alive": alive, "tasks_in_ledger": _lines(ledger), "torn_last_line": _torn(ledger)}
    timed(case, folder)
    return left


def _lines(ledger: Path) -> int:
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def _torn(ledger: Path) -> bool:
    return ledger.exists() and not ledger.read_bytes().endswith(b"\n") and ledger.stat().st_size > 0


def on_ray(case: Case, folder: Path, workers: int, *, deadly: bool = False) -> tuple[float, bool]:
    """Seconds on a local Ray, and whether one of its workers was killed while it did a task."""
    started, done, hit = time.monotonic(), threading.Event(), threading.Event()
    process = run(case, folder, "--executor", "ray", "--workers", str(workers))

    def murder() -> None:
        while not done.wait(0.05) and not hit.is_set():
            rows = len(Ledger(folder / "out" / LEDGER).rows) if (folder / "out" / LEDGER).exists() else 0
            for worker in _workers(process.pid) if rows >= 5 else []:
                os.kill(worker, signal.SIGKILL)
                hit.set()
                return

    watcher = threading.Thread(target=murder, daemon=True)
    if deadly:
        watcher.start()
    code = process.wait()
    done.set()
    if code != 0:
        raise SystemExit(f"the run in {folder} failed; run it by hand to see why")
    return round(time.monotonic() - started, 1), hit.is_set()


def _workers(ancestor: int) -> list[int]:
    """Processes below one that do a task on Ray right now: they name themselves after it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::_work") and ancestor in _ancestors(int(entry.name)):
                found.append(int(entry.name))
    return found


def _ancestors(process: int) -> list[int]:
    found = []
    while process > 1:
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(process)
    return found


def again(case: Case, base: Path) -> dict[str, Any]:
    """In one process, and once more with nothing to do."""
    seconds, ledger = timed(case, base), base / "out" / LEDGER
    before = ledger.read_bytes()
    second = timed(case, base)
    unchanged = ledger.read_bytes() == before
    return {
        "tasks": _lines(ledger),
        "ledger_digest": store.digest_of(canonical(base)),
        "seconds": seconds,
        "second_run": {"seconds": second, "ledger_unchanged": unchanged},
    }


def stopped(case: Case, base: Path) -> dict[str, Any]:
    """Killed at a random moment and finished by a second run, as often as the case says, each time from the beginning."""
    whole, generator, kills = timed(case, base / "one"), random.Random(0), []
    for number in range(case.kills):
        folder = base / f"killed-{number}"
        left = killed(case, folder, generator.uniform(0, whole))
        kills.append(left | {"same_ledger": canonical(folder) == canonical(base / "one")})
    return {"whole_seconds": whole, "kills": kills, "ledger_digest": store.digest_of(canonical(base / "one"))}


def distributed(case: Case, base: Path) -> dict[str, Any]:
    """In one process; on a local Ray with one and two workers, and with two of which one is killed."""
    alone = timed(case, base / "one")
    runs = []
    for workers, deadly in ((1, False), (2, False), (2, True)):
        folder = base / f"ray-{workers}-{deadly}"
        seconds, hit = on_ray(case, folder, workers, deadly=deadly)
        runs.append({"workers": workers, "seconds": seconds, "worker_killed": hit, "same_ledger": canonical(folder) == canonical(base / "one")})
    return {"tasks": _lines(base / "one" / "out" / LEDGER), "in_process_seconds": alone, "runs": runs}


PARTS = {"in-process": again, "killed": stopped, "ray": distributed}


def main(arguments: Sequence[str]) -> None:
    """Measures the parts asked for, and puts each into the result file with the machine's load at its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="all of them, unless named")
    parser.add_argument("--study", type=Path, default=Path("studies/label-worth/figure-2.toml"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--scale", choices=["smoke", "cpu", "paper"], default="smoke")
    given = parser.parse_args(arguments)
    case = Case(given.study, given.scale, given.kills)
    for name in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            part = PARTS[name](case, Path(folder))
        part["machine"] = (
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {platform.system()} {platform.machine()}; {time.strftime('%Y-%m-%d')}"
        )
        part["versions"] = {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()}
        record, key = json.loads(RESULT.read_text()) if RESULT.exists() else {}, f"{case.study.with_suffix('').as_posix()} {case.scale}"
        record[key] = record.get(key, {}) | {name: part}
        store.write_json(RESULT, record)
        print(json.dumps(part, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
