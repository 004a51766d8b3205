"""What studies promise, shown: ``python -m benchmarks.studies [STUDY] [--kills 10]`` writes ``benchmarks/results/studies.json``.

A study runs in one process; again, with nothing to do; killed with SIGKILL at random moments and resumed; and on a local Ray with one and two workers, where one
worker is killed as well. Every ledger must be the same without times and machines. Wall times include starting Python and Ray.
"""

import argparse
import importlib.util
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
from typing import Any

import torch

from limbeck import __version__, store
from limbeck.study.ledger import Ledger
from limbeck.study.running import LEDGER

RESULT = Path("benchmarks/results/studies.json")


def run(study: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Starts a run of the study's smoke scale in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "limbeck",
        "study",
        "run",
        str(study),
        "--out",
        str(folder / "out"),
        "--store",
        str(folder / "store"),
        "--threads",
        "1",
    ]
    return subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def timed(study: Path, folder: Path, *more: str) -> float:
    """Seconds of a run that must end well."""
    started = time.monotonic()
    if run(study, folder, *more).wait() != 0:
        raise SystemExit(f"the run in {folder} failed; run it by hand to see why")
    return round(time.monotonic() - started, 1)


def canonical(folder: Path) -> str:
    return Ledger(folder / "out" / LEDGER).canonical()


def killed(study: Path, folder: Path, longest: float, kills: int, generator: random.Random) -> dict[str, Any]:
    """Kills runs at random moments until `kills` were hit alive, then lets one finish. A run that ends before its moment is followed by one in a fresh folder."""
    moments, finished, fresh = [], [], folder / "0"
    while len(moments) < kills:
        moment = generator.uniform(0, longest)
        process = run(study, fresh)
        try:
            process.wait(moment)
            finished.append(fresh)
            fresh = folder / str(len(finished))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            rows = len(Ledger(fresh / "out" / LEDGER).rows) if (fresh / "out" / LEDGER).exists() else 0
            moments.append({"after_seconds": round(moment, 2), "tasks_in_ledger": rows})
    timed(study, fresh)
    return {"kills": moments, "folders": [*finished, fresh]}


def on_ray(study: Path, folder: Path, workers: int, *, deadly: bool = False) -> tuple[float, bool]:
    """Seconds on a local Ray, and whether one of its workers was killed while it did a task."""
    done, hit = threading.Event(), threading.Event()

    def murder() -> None:
        while not done.wait(0.05) and not hit.is_set():
            rows = len(Ledger(folder / "out" / LEDGER).rows) if (folder / "out" / LEDGER).exists() else 0
            for worker in _workers() if rows >= 5 else []:
                os.kill(worker, signal.SIGKILL)
                hit.set()
                return

    watcher = threading.Thread(target=murder, daemon=True)
    if deadly:
        watcher.start()
    seconds = timed(study, folder, "--executor", "ray", "--workers", str(workers))
    done.set()
    return seconds, hit.is_set()


def _workers() -> list[int]:
    """Processes that do a task on Ray right now: they name themselves after it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::_work"):
                found.append(int(entry.name))
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, default=Path("studies/label-worth/figure-2.toml"))
    parser.add_argument("--kills", type=int, default=10)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        seconds = timed(given.study, base / "one")
        reference, before = canonical(base / "one"), (base / "one" / "out" / LEDGER).read_bytes()
        again = timed(given.study, base / "one")
        record: dict[str, Any] = {
            "study": given.study.as_posix(),
            "tasks": len(Ledger(base / "one" / "out" / LEDGER).rows),
            "ledger_digest": store.digest_of(reference),
            "in_process_seconds": seconds,
            "second_run": {"seconds": again, "ledger_unchanged": (base / "one" / "out" / LEDGER).read_bytes() == before},
        }
        stopped = killed(given.study, base / "killed", seconds, given.kills, random.Random(0))
        record["killed"] = {"kills": stopped["kills"], "same_ledger": all(canonical(folder) == reference for folder in stopped["folders"])}
        if importlib.util.find_spec("ray"):
            record["ray"] = []
            for workers, deadly in ((1, False), (2, False), (2, True)):
                folder = base / f"ray-{workers}-{deadly}"
                seconds, hit = on_ray(given.study, folder, workers, deadly=deadly)
                record["ray"].append({"workers": workers, "seconds": seconds, "worker_killed": hit, "same_ledger": canonical(folder) == reference})
    cores, load = os.cpu_count(), os.getloadavg()[0]
    record["machine"] = f"{cores} cores, load {load:.1f} at the end; {platform.system()} {platform.machine()}; {time.strftime('%Y-%m-%d')}"
    record["versions"] = {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()}
    store.write_json(RESULT, record)
    print(RESULT.read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
