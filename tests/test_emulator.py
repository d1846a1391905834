"""The emulator that CUDA kernels are tested on: what works there works, and each kind of fault is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import emulator

SELFTEST = Path(emulator.__file__).parent / "selftest.cpp"
STATUS_OF_A_RACE = 66

PASSING = [
    "threads",
    "shuffles",
    "products_bfloat16",
    "products_float16",
    "products_tfloat32",
    "float16_numbers",
    "barriers",
    "clusters",
    "exchange_near",
    "exchange_far",
    "poison",
    "errors",
    "fenced",
    "no_race_with_warp_barrier",
    "no_race_with_block_barrier",
]
UNSANITIZED = [
    "seeds",
    "unfenced",
]  # about the order itself; and stores that are seen at once under ThreadSanitizer
RACES = [
    "race_without_barrier",
    "race_with_warp_barrier",
    "race_with_shuffle",
    "race_with_fence",
    "race_after_barrier",
    "race_after_cluster_exchange",
]
FAULTS = {
    "skipped_barrier": r"deadlock: (.|\n)*block 1 threads 0-39: at block_barrier in \S+:\d+\n"
    r"  block 1 thread 40: ended, last at start\n",
    "endless_spin": r"deadlock: (.|\n)*block 0 thread 0: running, last at (pause|relaxed access) in selftest",
    "endless_load": r"deadlock: (.|\n)*block 0 thread 0: running, last at relaxed access in selftest",
    "divergent_barrier": r"divergence: block \d thread \d+ is at block_barrier in selftest",
    "divergent_lanes": r"divergence: block \d thread \d+ is at \w+ in selftest",
    "shared_read_behind": r"block \d thread 3: bad address \w+, 12 bytes behind the 100 bytes of block \d",
    "shared_written_behind": r"bytes next to the shared memory of block \d were written",
    "shared_written_before": r"bytes next to the shared memory of block \d were written",
    "peer_ended": r"block 0 thread 0: bad address \w+, byte 0 of the 100 bytes of block 1, which has not",
    "stack_overflow": r"block \d thread 3: bad address \w+, stack overflow of block \d thread 3",
    "misaligned_words": r"block \d thread \d+: misaligned relaxed access in \S+:\d+",
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sanitized"])
def sanitize(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("case", PASSING)
def test_passes(case: str, sanitize: bool) -> None:
    program = emulator.build(SELFTEST, sanitize=sanitize)
    for seed in range(2 if sanitize else 10):
        result = emulator.run(program, case, seed)
        assert result.returncode == 0, f"seed {seed}: {result.stderr}"


@pytest.mark.parametrize("case", UNSANITIZED)
def test_passes_unsanitized(case: str) -> None:
    result = emulator.run(emulator.build(SELFTEST), case)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_an_error(case: str, sanitize: bool) -> None:
    program = emulator.build(SELFTEST, sanitize=sanitize)
    for seed in range(1 if sanitize else 5):
        result = emulator.run(program, case, seed)
        assert result.returncode == 1, f"seed {seed}: {result.stderr}"
        assert re.match(FAULTS[case], result.stderr), f"seed {seed}: {result.stderr}"


@pytest.mark.parametrize("case", RACES)
def test_race_is_reported(case: str) -> None:
    program = emulator.build(SELFTEST, sanitize=True)
    result = emulator.run(program, case)
    assert result.returncode == STATUS_OF_A_RACE, result.stderr
    assert "data race" in result.stderr
    assert emulator.run(emulator.build(SELFTEST), case).returncode == 0
