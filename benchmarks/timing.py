"""Interleaved timing.

All implementations of a case run in every round, in random order, each for at least a few milliseconds, so a
machine that is slow for a second is slow for all of them, and speedups are taken round by round before the
median. Each burst starts with a short sleep, in which the spinning threads of the one before come to rest,
and with an untimed call where calls are short, so that nobody inherits another's cache. One implementation
on a CPU is always a matrix product in the same dtype: the rate that the machine could give in the same round.

On a GPU the clock is the GPU's own, between events before and after the calls.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]
Clock = Callable[[Call, int], float]  # the seconds that a call takes, measured over so many of them

OURS = "seqkernels"
BURST_SECONDS = 5e-3  # calls are repeated until a burst takes this long
REST_SECONDS = 2e-3
MAX_ROUNDS = 200

_ours_total = 0.0


def wall_clock(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def gpu_clock(call: Call, calls: int) -> float:
    """Time of the GPU, its waiting for the host included."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return max(begin.elapsed_time(end), 1e-3) * 1e-3 / calls


def ours_timer() -> float:
    """A clock that runs only while seqkernels does, by its seconds per call: given to pytest-benchmark as its
    timer, it makes a round's duration in the table and the JSON file the time of one call of ours."""
    return _ours_total


def quantiles(values: list[float]) -> dict[str, float]:
    """Five of them: 10, 25, 50, 75 and 90 percent."""
    ordered = sorted(values)
    at = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
    return {name: ordered[round(q * (len(ordered) - 1))] for name, q in at.items()} | {
        "median": statistics.median(values)
    }


@dataclass
class InterleavedTiming:
    """Implementations by name, how often a burst calls each, and the seconds per call of each round."""

    implementations: dict[str, Call]
    seconds: float  # to spend in all
    min_rounds: int
    clock: Clock = wall_clock
    rest: float = REST_SECONDS
    calls: dict[str, int] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.times = {name: [] for name in self.implementations}
        self._order = random.Random(0)
        bursts = 0.0
        for name, call in self.implementations.items():
            call()
            once = min(self.clock(call, 1) for _ in range(2))
            self.calls[name] = max(1, round(BURST_SECONDS / once))
            bursts += self.rest + once * (self.calls[name] + (self.calls[name] > 1))
        self.rounds = min(MAX_ROUNDS, max(self.min_rounds, round(self.seconds / bursts)))

    def round(self) -> None:
        """One burst of each implementation."""
        global _ours_total
        collecting = gc.isenabled()
        gc.disable()
        try:
            for name, call in self._order.sample(
                sorted(self.implementations.items()), len(self.implementations)
            ):
                time.sleep(self.rest)
                if self.calls[name] > 1:
                    call()
                self.times[name].append(self.clock(call, self.calls[name]))
        finally:
            if collecting:
                gc.enable()
        _ours_total += self.times[OURS][-1]

    def ratio(self, name: str, to: str = OURS) -> list[float]:
        """Round by round: seconds of `name` over seconds of `to`."""
        return [a / b for a, b in zip(self.times[name], self.times[to], strict=True)]
