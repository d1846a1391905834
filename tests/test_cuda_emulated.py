"""The CUDA kernels' own source on the emulator: right results without a GPU, no races, and faults are found.

Tests marked `tsan` run under ThreadSanitizer. The session says at its end which kernels were run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import emulator
from tests.conftest import TOLERANCES, error_of
from tests.emulator import layer
from tests.emulator.layer import CSRC, DTYPES, PLANS, Partition
from tests.problems import CELLS, Problem, lengths_of

STATUS_OF_A_RACE = 66
TENSOR_CORE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 32}  # units; a group's are a multiple


@dataclass(frozen=True)
class Shape:
    """Sizes, and how a persistent launch of them is cut; None: only stepwise."""

    hidden: int
    batch: int
    seq_len: int
    partition: Partition | None
    input: int = 2
    directions: int = 1
    packed: bool = False
    bias: bool = True
    launches: Sequence[int] | None = None
    cells: Sequence[str] = CELLS
    stepwise: bool = True

    def problem(self, cell: str, dtype: torch.dtype, seed: int = 0) -> Problem:
        return Problem(
            cell,
            self.seq_len,
            self.batch,
            self.input,
            self.hidden,
            self.directions,
            self.bias,
            lengths_of(self.seq_len, self.batch) if self.packed else None,
            dtype,
            seed=seed,
        )


SHAPES = {
    "least": Shape(1, 1, 1, Partition(2, 1), input=1),
    "one_block": Shape(5, 3, 4, Partition(1, 2), packed=True, bias=False, launches=(1, 3)),
    "half_a_chunk": Shape(5, 1, 3, Partition(1, 1), directions=2, stepwise=False),  # TF32 alone
    "odd_chunks": Shape(40, 2, 2, Partition(3, 1), bias=False, stepwise=False),  # likewise
    "two_members": Shape(17, 9, 5, Partition(2, 1), 3, 2, packed=True, launches=(2, 2, 1)),
    "two_splits": Shape(33, 8, 3, Partition(1, 4), bias=False),
    "idle_members": Shape(17, 3, 3, Partition(5, 2), packed=True),
    "three_passes": Shape(40, 20, 3, Partition(2, 2, columns=24, column_tiles=1), launches=(1, 2)),
    "uneven_passes": Shape(
        40, 17, 3, Partition(3, 2, columns=24, column_tiles=2), directions=2, launches=(1, 2)
    ),
    "wide_block": Shape(100, 3, 2, Partition(1, 8), bias=False, packed=True),
    "two_columns": Shape(100, 20, 2, Partition(4, 2, columns=16, column_tiles=2), bias=False),
    "all_at_once": Shape(
        40, 20, 3, Partition(2, 4, columns=16, column_tiles=2), 3, 2, packed=True, bias=False, launches=(2, 1)
    ),
    # More chunks than a warp's registers hold.
    "in_memory": Shape(200, 2, 2, Partition(2, 8), cells=("lstm", "gru"), stepwise=False),
    "in_memory_rnn": Shape(600, 1, 2, Partition(5, 8), cells=("tanh",), bias=False, stepwise=False),
}


def runs() -> list[object]:
    """Every cell, dtype and plan that a shape is for."""
    return [
        pytest.param(shape, cell, dtype, plan, id=f"{name}-{cell}-{str(dtype).removeprefix('torch.')}-{plan}")
        for name, shape in SHAPES.items()
        for cell in shape.cells
        for dtype in DTYPES
        for plan in PLANS
        if (shape.stepwise if plan == "stepwise" else is_for(shape, dtype))
    ]


def is_for(shape: Shape, dtype: torch.dtype) -> bool:
    return dtype in TENSOR_CORE_DTYPES and shape.partition.units % CHUNK[dtype] == 0


def tolerance_of(dtype: torch.dtype, plan: str) -> float:
    return TOLERANCES["tf32" if dtype == torch.float32 and plan != "stepwise" else dtype]


def output_of(outcome: layer.Outcome, problem: Problem) -> Tensor:
    return outcome.results["output"].reshape(*problem.x.shape[:-1], -1)


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest error and whose it is."""
    return max((error_of(actual[name], value.reshape(-1)), name) for name, value in expected.items())


def assert_right(
    driver: Path, problems: Sequence[Problem], plan: str, seed: int = 0, **options: object
) -> set[str]:
    """Runs them; their results, taken together, are right. Gives the kernels that were run."""
    actual, expected, kernels = [], [], set()
    for n, problem in enumerate(problems):
        outcome = layer.run(driver, problem, plan, seed=seed + n, **options)
        assert outcome.status == 0, outcome.errors
        right = problem.expected(kinks=output_of(outcome, problem))
        expected.append({name: value.reshape(-1) for name, value in right.items() if name in outcome.results})
        actual.append(outcome.results)
        kernels.update(outcome.kernels)
    together = [
        {name: torch.cat([r[name] for r in results]) for name in expected[0]}
        for results in (actual, expected)
    ]
    error, name = worst(*together)
    tolerance = tolerance_of(problems[0].dtype, plan)
    assert error <= tolerance, f"{name}: error {error:.2e} exceeds {tolerance:.2e}"
    return kernels


@pytest.mark.parametrize(("shape", "cell", "dtype", "plan"), runs())
def test_right(
    shape: Shape,
    cell: str,
    dtype: torch.dtype,
    plan: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    problem = shape.problem(cell, dtype)
    # The mean square of a few elements says little about what size they might have had.
    fewest = min(t.numel() for t in problem.inputs)
    problems = [replace(problem, seed=n) for n in range(max(1, -(-16 // fewest)))]
    interleaving = zlib.crc32(request.node.name.encode())  # another one for each test
    kernels = assert_right(
        layer.program(), problems, plan, interleaving, partition=shape.partition, launches=shape.launches
    )
    for kernel in kernels:
        record_property("cuda_kernel", kernel)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("cell", CELLS)
def test_saves_nothing(cell: str, plan: str) -> None:
    shape = SHAPES["two_members"]
    problem = shape.problem(cell, torch.bfloat16)
    assert_right(layer.program(), [problem], plan, partition=shape.partition, saves=False)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_gradient_that_nobody_has(missing: int, plan: str) -> None:
    shape = SHAPES["two_members"]
    problem = shape.problem("lstm", torch.bfloat16)
    problem.grads[missing] = None
    assert_right(layer.program(), [problem], plan, partition=shape.partition)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", TENSOR_CORE_DTYPES)
def test_nan(dtype: torch.dtype, plan: str) -> None:
    """It is no sign of absence between blocks, even if it has the same bits, and stays with its sequence."""
    shape = SHAPES["two_members"]
    problem = shape.problem("gru", dtype)
    problem.states[0].view(torch.uint8).view(*problem.states[0].shape, -1)[:, 1] = 0xFF
    outcome = layer.run(layer.program(), problem, plan, shape.partition)
    assert outcome.status == 0, outcome.errors
    h_n = outcome.results["h_n"].reshape(problem.states[0].shape)
    assert h_n[:, 1].isnan().all()
    assert not h_n[:, [0, *range(2, shape.batch)]].isnan().any()


# ---------------------------------------------------------------- ThreadSanitizer

TSAN_SHAPE = Shape(17, 3, 2, Partition(2, 1), directions=2, packed=True, launches=(1, 1))


@pytest.mark.tsan
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_no_races(cell: str, dtype: torch.dtype) -> None:
    driver = layer.program(sanitize=True)
    for plan in PLANS if is_for(TSAN_SHAPE, dtype) else PLANS[:1]:
        problem = TSAN_SHAPE.problem(cell, dtype)
        assert_right(driver, [problem], plan, partition=TSAN_SHAPE.partition, launches=TSAN_SHAPE.launches)


# ---------------------------------------------------------------- it bites

# Kernels of one cell and dtype, so that a mutant compiles fast.
MUTANT = """\
#include "../cells/gru.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& gru_kernels(DType) {
  static const CellKernels kernels = both_passes<cells::Gru, BFloat16, BFloat16>();
  return kernels;
}

}  // namespace seqkernels::cuda
"""
# Small, for many seeds are tried; some warps reset, but do not publish, and may lag behind those that do.
MUTANT_SHAPE = Shape(50, 20, 6, Partition(4, 1, columns=24, column_tiles=1))


@dataclass(frozen=True)
class Mutation:
    """One exact snippet of a file of csrc/cuda, and what stands there instead."""

    file: str
    before: str
    after: str
    plan: str = "grid"
    seeds: int = 1  # that it takes at most until it is found


MUTATIONS = {
    "none": Mutation("exchange.cuh", "", "", seeds=20),
    "reads_before_arrival": Mutation("exchange.cuh", "while (!is_complete(vectors[n])) {", "while (false) {"),
    "fragment_rows": Mutation("slice.cuh", "words(tile, group + 8, k)", "words(tile, group, k)"),
    "fragment_words": Mutation("slice.cuh", "low.word[2 * m + 1]", "low.word[2 * m]"),
    "sums_of_other_units": Mutation("persistent.cuh", "8 * (i % 4 / 2)", "8 * (i % 2)"),
    "reset_unfenced": Mutation("exchange.cuh", "    if (members_ > 1) fence(scope_);", "", seeds=50),
    "reset_of_what_is_read": Mutation(
        "exchange.cuh", "buffer(iteration + 2)", "buffer(iteration + 3)", seeds=50
    ),
    "reset_of_what_is_next": Mutation(
        "exchange.cuh", "buffer(iteration + 2)", "buffer(iteration + 1)", seeds=50
    ),
    "reset_never": Mutation("persistent.cuh", "exchange_.reset(iteration);", "{}"),
    "peers_not_awaited": Mutation(
        "exchange.cuh", "= kAbsent;\n      cluster_barrier();", "= kAbsent;", plan="cluster", seeds=50
    ),
}
RACES = {
    "unordered_sums": Mutation("persistent.cuh", "    block_barrier();\n\n", "\n"),
    "one_buffer_of_sums": Mutation("persistent.cuh", "turn ^= 1", "turn"),
}


def mutant(name: str, mutation: Mutation, *, sanitize: bool = False) -> Path:
    """The driver with the mutated kernels, in the folder of the build."""
    csrc = emulator.BUILD / name / "csrc"
    for path in [CSRC / "kinds.h", *CSRC.glob("cells/*"), *CSRC.glob("cuda/*.*h"), CSRC / "cuda" / "rows.cu"]:
        text = path.read_text()
        if path.name == mutation.file and mutation.before:
            assert text.count(mutation.before) == 1, f"{mutation.before!r} is not in {path.name} just once"
            text = text.replace(mutation.before, mutation.after)
        _write(csrc / path.relative_to(CSRC), text)
    _write(csrc / "cuda" / "gru.cu", MUTANT)
    return layer.program(["gru"], sanitize=sanitize, csrc=csrc, variant=name)


def _write(path: Path, text: str) -> None:
    """Only if it changes, for what depends on it would be compiled again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutant_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    driver = mutant(name, mutation)
    problem = MUTANT_SHAPE.problem("gru", torch.bfloat16)
    expected = problem.expected()

    def is_right(seed: int) -> bool:
        outcome = layer.run(driver, problem, mutation.plan, MUTANT_SHAPE.partition, seed=seed, saves=False)
        right = {name: expected[name] for name in outcome.results}
        return outcome.status == 0 and worst(outcome.results, right)[0] <= TOLERANCES[problem.dtype]

    assert all(is_right(seed) for seed in range(mutation.seeds)) == (name == "none")


@pytest.mark.tsan
@pytest.mark.parametrize("name", RACES)
def test_race_is_found(name: str) -> None:
    problem = MUTANT_SHAPE.problem("gru", torch.bfloat16)
    driver = mutant(name, RACES[name], sanitize=True)
    outcome = layer.run(driver, problem, "grid", MUTANT_SHAPE.partition)
    assert outcome.status == STATUS_OF_A_RACE, outcome.errors
    assert "data race" in outcome.errors
