"""Runs in the tree with the extra cell: the cell on the CPU and on the emulator, against its reference."""

from __future__ import annotations

import torch
from torch import Tensor

import seqkernels
from seqkernels.cells import CELLS
from tests.conftest import TOLERANCES, error_of
from tests.emulator import layer
from tests.emulator.layer import Partition
from tests.problems import OPTIONS, Problem

NAME = "mgu"
PLANS = {"stepwise": None, "cluster": Partition(2, 1), "grid": Partition(4, 1)}


def cpu() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        Problem(NAME, 5, 3, 7, 19, directions=2, dtype=dtype).check()
        Problem(NAME, 7, 4, 7, 33, bias=False, lengths=[7, 5, 2, 1], dtype=dtype).check()
        Problem(NAME, 5, 3, 7, 19, directions=2, dtype=dtype, asked=OPTIONS).check()
    problem = Problem(NAME, 3, 2, 3, 4, directions=2, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in problem.inputs]
    op = getattr(torch.ops.seqkernels, NAME)

    def run(x: Tensor, h0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return op(x, h0, list(weights))[:2]

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def layers() -> None:
    """A stack of them, natively and by the reference."""
    spec = seqkernels.spec.LayerSpec(NAME, num_layers=2, bidirectional=True, backend="native")
    first, second = (Problem(NAME, 4, 3, i, 6, directions=2) for i in (5, 12))
    weights, state = [*first.weights, *second.weights], (torch.cat([*first.states, *second.states]),)
    native = seqkernels.stack.run(spec, first.x, state, weights)
    plain = spec._replace(backend="reference")
    for got, want in zip(native, seqkernels.stack.run(plain, first.x, state, weights), strict=True):
        assert error_of(got, want) <= TOLERANCES[torch.float32]


def emulated() -> None:
    driver = layer.program([NAME])
    for plan, partition in PLANS.items():
        for numbers in (torch.float32, torch.bfloat16, torch.float16, "tf32"):
            dtype = torch.float32 if isinstance(numbers, str) else numbers
            problem = Problem(NAME, 4, 9, 5, 30, directions=2, dtype=dtype)
            outcome = layer.run(driver, problem, plan, partition, tf32=numbers == "tf32")
            assert outcome.status == 0, outcome.errors
            expected = problem.expected()
            for name, values in outcome.results.items():
                error = error_of(values.view(expected[name].shape), expected[name])
                assert error <= TOLERANCES[numbers], (plan, numbers, name, error)


if __name__ == "__main__":
    assert CELLS[NAME] == seqkernels.cells.Cell(NAME, gates=2, saved=3, has_cell_state=False)
    cpu()
    layers()
    emulated()
    print("right")
