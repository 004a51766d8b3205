"""Peak resident memory of a whole job: ``python -m benchmarks.memory FOLDER [FOLDER ...]`` distills each image folder in a process of its own.

Prints the peak for each folder and writes ``benchmarks/results/memory.json``. Flat means: the same for folders of different size.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = "--size 64 --ipc 10 --labels hard --selector herding --expert-epochs 1 --model convnet-d4-w32 --no-evaluate"
ARGUMENTS = OPTIONS.split()


def measure(folder: Path) -> dict[str, object]:
    """Runs the job on a folder; peak resident memory of the process in MB, as the operating system accounts it."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    files = sum(1 for file in folder.rglob("*") if file.is_file())
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "limbeck", "distill", str(folder), *ARGUMENTS, "--out", f"{scratch}/run", "--json"]
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "LIMBECK_CACHE": f"{scratch}/cache"})
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the job on {folder} failed with status {status}")
    return {
        "gigabytes": round(size / 1e9, 2),
        "files": files,
        "peak_mb": round(usage.ru_maxrss / 1024),
        "seconds": round(time.monotonic() - started),
        "options": OPTIONS,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def main() -> None:
    """Measures every folder named on the command line."""
    results = [measure(Path(name)) for name in sys.argv[1:]]
    for result in results:
        print(f"{result['gigabytes']} GB in {result['files']} files: peak {result['peak_mb']} MB, {result['seconds']} s")
    target = Path(__file__).parent / "results" / "memory.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
