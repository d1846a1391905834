"""What else the machine does while something is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Others"]

STAT = Path("/proc/stat")
IGNORED = 0.25  # of a core: what a desktop does anyway


class Others:
    """The other programs on this machine, from now on."""

    def __init__(self) -> None:
        self.start = _seconds()

    def cores(self) -> float:
        """How many cores they have kept busy since, on average; 0 where the system does not tell."""
        if self.start is None or (now := _seconds()) is None:
            return 0.0
        busy, own, wall = (end - start for end, start in zip(now, self.start, strict=True))
        return max(0.0, busy - own) / wall if wall else 0.0

    def in_the_way(self, threads: int) -> bool:
        """Whether they have left fewer cores than so many threads want."""
        cores = self.cores()
        return cores > IGNORED and (os.cpu_count() or 1) - cores < threads


def _seconds() -> tuple[float, float, float] | None:
    """Seconds in which any core was busy, this process's own, and those on the clock."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy, time.process_time(), time.perf_counter()
