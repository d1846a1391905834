"""What the CPU benchmarks measure besides time, and how their report shows it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory, readme, report
from benchmarks.cases import Case
from benchmarks.implementations import HOLDS
from benchmarks.timing import OURS, Call
from seqkernels import _C

pytest.importorskip("pytest_benchmark")
from benchmarks.conftest import check_held

ROOT = Path(__file__).resolve().parent.parent
needs_proc = pytest.mark.skipif(not memory.available(), reason="needs Linux's /proc and glibc")

MB = 1_000_000
kept: list[object] = []


def blocks(size: int, block: int) -> list[bytes]:
    """So much memory, written to, in blocks of about this size."""
    return [b"x" * block for _ in range(size // block)]


def allocator(keeps: int, then: int, at_last: int, block: int) -> Call:
    """A call that keeps some megabytes, and needs others for a while, one after the other.

    What was used before is free, in part between blocks that are not; and far more is asked for than written.
    """
    earlier = blocks(100 * MB, block)
    kept.append(earlier[::1000])
    del earlier

    def call() -> None:
        untouched = mmap.mmap(-1, 500 * MB)
        kept.append(blocks(keeps * MB, block))
        for size in (then, at_last):
            blocks(size * MB, block)
        untouched.close()

    return call


@needs_proc
@pytest.mark.parametrize(
    ("sizes", "block", "expected"),
    [
        ((20, 50, 10), 10 * MB, 70),
        ((0, 10, 30), 10 * MB, 30),
        ((0, 0, 0), 10 * MB, 0),
        ((40, 0, 0), 4000, 40),
        ((10, 60, 0), 4000, 70),
    ],
)
def test_peak_of_a_known_amount(sizes: tuple[int, int, int], block: int, expected: int) -> None:
    assert memory.fresh_peak(partial(allocator, *sizes, block)) / MB == pytest.approx(expected, abs=2)


def hole_maker() -> Call:
    def call() -> None:
        some = blocks(20 * MB, 100_000)
        del some[::2]  # leaves holes too small for what comes next
        some += blocks(10 * MB, 110_000)

    return call


@needs_proc
def test_peak_without_holes() -> None:
    """A heap would have 30 MB."""
    assert memory.fresh_peak(hole_maker) / MB == pytest.approx(20, abs=2)


@needs_proc
def test_peaks_of_training() -> None:
    """At least the results must be there; measuring again, after something larger, changes nothing."""
    case = Case("training", "lstm", 100, 16, 128)
    results = 4 * (2 * 4 * 128 * 128 + 2 * 100 * 16 * 128)  # dW, output and dx
    first = memory.training_peaks(case)
    memory.training_peaks(Case("training", "lstm", 100, 64, 256))
    second = memory.training_peaks(case)
    assert list(first) == [OURS, "torch.nn"]
    for name, peak in first.items():
        assert results < peak < 10 * results
        assert second[name] == pytest.approx(peak, rel=0.05, abs=0.4 * MB)


def info(title: str, **more: Any) -> dict[str, Any]:
    speedup = {"q25": 2.0, "median": 2.0, "q75": 2.0}
    return {
        "case": {
            "title": title,
            "work": "training",
            "cell": "lstm",
            "dtype": "float32",
            "variant": "",
            "batch": 8,
        },
        "seconds": {OURS: {"median": 1e-3}},
        "speedup": {"torch.nn": speedup},
        "gemm_gflops": 100.0,
        "gflops": 50.0,
        "share_of_gemm": 0.5,
        **more,
    }


def peaks(ours: float, theirs: float) -> dict[str, int]:
    return {OURS: int(ours * MB), "torch.nn": int(theirs * MB)}


MACHINE = {"torch": "2", "torch_threads": 2, "cpu_isa": "avx2", "load_average": 0.1, "quick": False}


def test_report_shows_memory_and_marks_losses() -> None:
    cases = [info("a", peak_bytes=peaks(30, 20)), info("b", peak_bytes=peaks(5.3, 5.1))]
    text = report.report(cases, MACHINE, {}, "x")
    assert "| case | ms | speedup over torch.nn | peak MB (torch.nn) | GFLOP/s |" in text
    assert "| **30.0** (20.0) | 50.0 |" in text
    assert "| 5.3 (5.1) | 50.0 |" in text
    assert "1.25 of torch.nn's in the geometric mean" in text
    assert "by over 0.5 MB, in 1 of 2." in text
    assert "taking no time: LSTM 2.00 of 4.00." in text  # at half the rate of GEMM


def test_report_says_where_memory_is_unknown() -> None:
    without_proc = report.report([info("a", peak_bytes={})], MACHINE, {}, "x")
    assert "| no /proc | 50.0 |" in without_proc
    assert "geometric mean." not in without_proc
    older = report.report([info("a")], MACHINE, {}, "x")
    assert "MB" not in older
    assert older.startswith("# Performance on CPUs\n")


def test_summary_of_the_best_peer() -> None:
    """Of each cell, with what is special apart: whoever is the faster of the peers in a case counts there."""
    ratio = {value: {"q25": value, "median": value, "q75": value} for value in (0.5, 2.0, 8.0)}
    cases = [
        info("a", speedup={"torch.nn": ratio[2.0], "onnxruntime": ratio[8.0]}),
        info("b", speedup={"torch.nn": ratio[2.0], "onnxruntime": ratio[0.5]}),
        info("c", speedup={"torch.nn": ratio[2.0], "seqkernels float32": ratio[0.5]}),  # no peer
    ]
    cases[2]["case"]["dtype"] = "bfloat16"
    lines = report.summary(cases).splitlines()
    assert lines[2:] == [
        "| LSTM training | 2 | 2.00 (0 of 2) | 2.00 (1 of 2) | – | 1.00 (1 of 2) |",
        "| bfloat16 training | 1 | 2.00 (0 of 1) | – | 0.50 (1 of 1) | 2.00 (0 of 1) |",
    ]


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.split(readme.BEGIN)[1].split(readme.END)[0].strip() == readme.speed_table()


def test_report_says_what_all_are_held_to() -> None:
    held_by = {"SEQKERNELS_CPU_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    text = report.report([info("a")], MACHINE | {"held_by": held_by}, {}, "x")
    assert text.startswith("# Performance on CPUs held to AVX2\n")
    assert "all held to avx2 by SEQKERNELS_CPU_ISA=avx2, ONEDNN_MAX_CPU_ISA=AVX2" in text
    assert "`make bench ISA=avx2 ARGS='-k training'`" in text


@pytest.mark.skipif("avx2" not in _C.cpu_isas(), reason="no AVX2")
def test_held_to_an_instruction_set() -> None:
    """In another process, for torch reads the variables once."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]
    held_by = dict.fromkeys(HOLDS, "avx2")
    done = subprocess.run(command, cwd=ROOT, env=os.environ | held_by, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training-lstm-t100-b32-h256]" in done.stdout
    assert not [word for word in ("bfloat16", "more", "neighbours") if word in done.stdout]


def test_not_everybody_held() -> None:
    isa = _C.cpu_isa()
    for held_by in ({HOLDS[0]: isa}, dict.fromkeys(HOLDS, "another"), dict.fromkeys(HOLDS[:3], isa)):
        with pytest.raises(pytest.UsageError, match="make bench ISA=avx2"):
            check_held(held_by)
