"""Few rows of weights that are large: kernels read those where they lie, in one of several ways."""

from __future__ import annotations

import pytest
import torch

from seqkernels.cells import CELLS as REGISTRY

from .conftest import assert_close
from .problems import CELLS, Problem

# Of weights; beyond all limits of csrc/cpu/gemm/columns-inl.h.
LARGE = 1 << 21
# T, B, directions, lengths. Rows that fill vectors of 4, 8 or 16, all or nearly, and rows that do not; steps
# that have fewer rows than their layer.
ROWS = [
    (1, 3, 2, None),
    (1, 4, 1, None),
    (1, 7, 1, None),
    (1, 8, 2, None),
    (1, 12, 1, None),
    (1, 15, 2, None),
    (1, 16, 1, None),
    (1, 29, 1, None),
    (1, 33, 1, None),
    (1, 64, 1, None),
    (1, 65, 1, None),
    (4, 4, 2, None),
    (2, 16, 2, None),
    (3, 16, 2, [3] * 5 + [2] * 4 + [1] * 7),
]


def large(cell: str, rows: tuple, dtype: torch.dtype, device: torch.device | str = "cpu") -> Problem:
    """With an odd number of inputs, and units that end within a vector."""
    seq_len, batch, directions, lengths = rows
    hidden_size = 134
    inputs = LARGE // (REGISTRY[cell].gates * hidden_size * dtype.itemsize) | 1
    return Problem(
        cell, seq_len, batch, inputs, hidden_size, directions, lengths=lengths, dtype=dtype, device=device
    )


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{rows[0]}-{rows[1]}" + "-packed" * bool(rows[3]))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_results(cell: str, rows: tuple, dtype: torch.dtype, target: torch.device) -> None:
    problem = large(cell, rows, dtype, target)
    results = [*problem.forward(False)][: 1 + len(problem.states)]
    expected = problem.expected()
    for name, result in zip(["output", *problem.finals], results, strict=True):
        assert_close(result, expected[name], dtype, name)


@pytest.mark.parametrize("cell", CELLS)
def test_results_in_float64(cell: str, target: torch.device) -> None:
    large(cell, (1, 8, 2, None), torch.float64, target).check()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_any_number_of_threads(cell: str, threads: int, target: torch.device) -> None:
    problem = large(cell, (1, 24, 2, None), torch.bfloat16, target)
    expected = problem.forward(False)
    torch.set_num_threads(threads)
    for result, right in zip(problem.forward(False), expected, strict=True):
        assert_close(result, right, torch.bfloat16)


def test_rows_do_not_meet(target: torch.device) -> None:
    """Infinite and undefined numbers of one sequence stay its own, whatever lies beside them in a vector."""
    for dtype in (torch.float32, torch.bfloat16):
        problem = large("gru", (1, 15, 1, None), dtype, target)
        expected = problem.forward(False)[0]
        problem.x[0, 7, 3], problem.x[0, 11] = torch.inf, torch.nan
        others = [b for b in range(15) if b not in (7, 11)]
        assert torch.equal(problem.forward(False)[0][:, others], expected[:, others])
