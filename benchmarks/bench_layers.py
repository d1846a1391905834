"""LSTM, GRU and RNN layers and cells: inference, training and single steps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import memory
from benchmarks.cases import Case, layer_cases, neighbour_cases, scaling_cases, step_cases
from benchmarks.implementations import GEMM, Problem, results
from benchmarks.timing import InterleavedTiming, ours_timer, quantiles


@pytest.mark.benchmark(timer=ours_timer)
@pytest.mark.parametrize("case", step_cases() + layer_cases() + scaling_cases(), ids=lambda case: case.id)
def bench_case(case: Case, benchmark: Any, timing_options: dict[str, Any], announce: Any) -> None:
    problem = Problem(case)
    calls = problem.implementations()
    with problem.mode():
        problem.check(calls)
        timing = InterleavedTiming(calls, **timing_options)
        benchmark.pedantic(timing.round, rounds=timing.rounds, iterations=1)

    benchmark.group = case.work
    benchmark.extra_info |= results(case, timing)
    if case.work == "training":
        benchmark.extra_info["peak_bytes"] = memory.training_peaks(case)
    announce(benchmark.extra_info)


@pytest.mark.benchmark(timer=ours_timer)
@pytest.mark.parametrize("case", neighbour_cases(), ids=lambda case: f"neighbours-{case.id}")
def bench_neighbours(case: Case, benchmark: Any, timing_options: dict[str, Any]) -> None:
    """How much slower each gets beside one busy process a core."""
    problem = Problem(case)
    calls = problem.implementations()
    del calls[GEMM]
    with problem.mode():
        quiet = InterleavedTiming(calls, **timing_options)
        benchmark.pedantic(quiet.round, rounds=quiet.rounds, iterations=1)
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)
        with problem.mode():
            busy = InterleavedTiming(calls, **timing_options)
            for _ in range(busy.rounds):
                busy.round()
    finally:
        for other in others:
            other.kill()
            other.wait()
    benchmark.group = "neighbours"
    benchmark.extra_info |= {
        "neighbours": asdict(case) | {"title": case.title},
        "slowdown": {
            name: quantiles(busy.times[name])["median"] / quantiles(quiet.times[name])["median"]
            for name in calls
        },
    }
