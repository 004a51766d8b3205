"""The most memory that this process has held."""

import re
import resource
import sys
from pathlib import Path


def peak_megabytes() -> int:
    """Peak resident memory of this process in MiB. Linux keeps it per address space (VmHWM); `getrusage` there also counts what the parent held before it
    started this program."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
