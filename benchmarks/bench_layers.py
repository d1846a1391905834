"""LSTM, GRU and RNN layers and cells: inference, training and single steps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.cases import Case, layer_cases, step_cases
from benchmarks.contestants import GEMM, GEMM_FLOPS, Problem
from benchmarks.race import OURS, Race, ours_timer, quantiles


@pytest.mark.benchmark(timer=ours_timer)
@pytest.mark.parametrize("case", step_cases() + layer_cases(), ids=lambda case: case.id)
def bench_case(case: Case, benchmark: Any, race_options: dict[str, Any], announce: Any) -> None:
    problem = Problem(case)
    calls = problem.contestants()
    problem.check(calls)
    race = Race(calls, **race_options)
    benchmark.pedantic(race.round, rounds=race.rounds, iterations=1)

    peers = [name for name in calls if name not in (OURS, GEMM)]
    rate = GEMM_FLOPS / quantiles(race.times[GEMM])["median"]
    benchmark.group = case.work
    benchmark.extra_info |= {
        "case": asdict(case) | {"title": case.title},
        "flops": case.flops,
        "calls_per_round": race.calls,
        "seconds": {name: quantiles(times) for name, times in race.times.items()},
        "speedup": {name: quantiles(race.ratio(name)) for name in peers},
        "gemm_gflops": rate / 1e9,
        "gflops": case.flops / quantiles(race.times[OURS])["median"] / 1e9,
        "share_of_gemm": quantiles([r * case.flops / GEMM_FLOPS for r in race.ratio(GEMM)])["median"],
    }
    announce(benchmark.extra_info)
