"""Few rows of weights that are large: kernels read those where they lie, in one of several ways."""

from __future__ import annotations

import pytest
import torch

from seqkernels.cells import CELLS as REGISTRY

from .conftest import assert_close, case_name
from .problems import Problem

# Bytes of weights beyond all limits of csrc/cpu/gemm/columns-inl.h.
LARGE = 1 << 21
# T and B. Rows that fill vectors of 4, 8 or 16, all or nearly, and rows that do not; steps that have fewer
# rows than their layer. bfloat16 is for pairs of numbers and tile registers, which have limits of their own.
ROWS = {
    torch.float32: [(1, 7), (1, 8), (1, 12), (1, 16), (1, 29), (1, 64), (2, 16)],
    torch.bfloat16: [(1, 3), (1, 4), (1, 15), (1, 16), (1, 33), (1, 64), (1, 65), (4, 4)],
}
CASES = [
    pytest.param(dtype, *rows, id=case_name((dtype, *rows)))
    for dtype, all_rows in ROWS.items()
    for rows in all_rows
]
# The other one differs in what it makes of its gate alone.
CELLS = tuple(name for name in REGISTRY if name != "rnn_relu")


def large(cell: str, dtype: torch.dtype, seq_len: int, batch: int, **options: object) -> Problem:
    """With an odd number of inputs, and units that end within a vector."""
    hidden_size = 134
    inputs = LARGE // (REGISTRY[cell].gates * hidden_size * dtype.itemsize) | 1
    return Problem(cell, seq_len, batch, inputs, hidden_size, 2, dtype=dtype, **options)


def check_results(problem: Problem) -> None:
    expected = problem.expected()
    for name, result in zip(["output", *problem.finals], problem.forward(False), strict=False):
        assert_close(result, expected[name], problem.dtype, name)


@pytest.mark.parametrize(("dtype", "seq_len", "batch"), CASES)
@pytest.mark.parametrize("cell", CELLS)
def test_results(cell: str, dtype: torch.dtype, seq_len: int, batch: int, target: torch.device) -> None:
    check_results(large(cell, dtype, seq_len, batch, device=target))


@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [
        (torch.bfloat16, [3] * 5 + [2] * 4 + [1] * 7),
        (torch.float32, [2] * 4 + [1] * 4),  # the first step fills a vector of 8, both together fill no two
        (torch.float32, [2] + [1] * 3),
        (torch.float64, [2] * 2 + [1] * 6),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_packed(cell: str, dtype: torch.dtype, lengths: list[int], target: torch.device) -> None:
    check_results(large(cell, dtype, lengths[0], len(lengths), lengths=lengths, device=target))


@pytest.mark.parametrize("cell", CELLS)
def test_float64_and_gradients(cell: str, target: torch.device) -> None:
    large(cell, torch.float64, 1, 8, device=target).check()


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads(threads: int, target: torch.device) -> None:
    problem = large("lstm", torch.bfloat16, 1, 24, device=target)
    expected = problem.forward(False)
    torch.set_num_threads(threads)
    for result, right in zip(problem.forward(False), expected, strict=True):
        assert_close(result, right, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_meet(dtype: torch.dtype, target: torch.device) -> None:
    """Infinite and undefined numbers of one sequence stay its own, whatever lies beside them in a vector."""
    problem = large("gru", dtype, 1, 15, device=target)
    expected = problem.forward(False)[0]
    problem.x[0, 7, 3], problem.x[0, 11] = torch.inf, torch.nan
    others = [b for b in range(15) if b not in (7, 11)]
    assert torch.equal(problem.forward(False)[0][:, others], expected[:, others])
