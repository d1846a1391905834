"""The CUDA kernels' own source on the emulator: right results without a GPU, no races, and faults are found.

Tests marked `tsan` run under ThreadSanitizer. The session says at its end which kernels were run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import emulator
from tests.conftest import TOLERANCES, error_of
from tests.emulator import layer
from tests.emulator.layer import CSRC, DTYPES, PLANS, Partition
from tests.problems import CELLS, NORMALIZED_CELLS, PERSISTENT_CELLS, REGISTRY, Problem, lengths_of

STATUS_OF_A_RACE = 66
# How kernels multiply: dtypes, and float32 as TF32. A persistent group's units are a multiple of so many.
CHUNK = {torch.float32: 16, "tf32": 16, torch.bfloat16: 32, torch.float16: 32}
MAX_CLUSTER = 8  # blocks
Numbers = torch.dtype | str


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
    outputs: int = 0  # of a projection; 0: as Problem has it

    def problem(self, cell: str, numbers: Numbers, seed: int = 0) -> Problem:
        return Problem(
            cell,
            self.seq_len,
            self.batch,
            self.input,
            self.hidden,
            self.directions,
            self.bias,
            lengths_of(self.seq_len, self.batch) if self.packed else None,
            torch.float32 if numbers == "tf32" else numbers,
            seed=seed,
            proj_size=self.outputs,
        )

    def options(self, cell: str, numbers: Numbers) -> dict[str, Any]:
        """Of layer.run. Without tensor cores, lanes have so many sums that a block does less at a time."""
        return {
            "partition": self.partition and self.partition_for(cell, numbers),
            "launches": self.launches,
            "tf32": numbers == "tf32",
        }

    def partition_for(self, cell: str, numbers: Numbers) -> Partition:
        part = self.partition
        assert part is not None
        if numbers != torch.float32:
            return part
        unit_groups = min(part.unit_groups, 2 if cell.startswith("lstm") else 4)
        return Partition(part.members * part.unit_groups // unit_groups, unit_groups, part.columns)


ONE_STAGE = tuple(name for name in PERSISTENT_CELLS if REGISTRY[name].stages == 1)
IN_MEMORY, PROJECTED = ("lstm", "lstm_projected", "gru_reset_before"), ("lstm_projected",)
# Where one unit is no whole row: the norm of a single number is zero.
OF_ONE_UNIT = tuple(name for name in CELLS if "norm_c" not in REGISTRY[name].extra_weights)
SHAPES = {
    "least": Shape(1, 1, 1, Partition(2, 1), input=1, cells=OF_ONE_UNIT),
    "least_rows": Shape(3, 1, 1, None, input=1, cells=NORMALIZED_CELLS),
    # More units than a block has threads.
    "long_rows": Shape(300, 3, 2, None, directions=2, packed=True, launches=(1, 1), cells=NORMALIZED_CELLS),
    "one_block": Shape(5, 3, 4, Partition(1, 2), packed=True, bias=False, launches=(1, 3)),
    "half_a_chunk": Shape(5, 1, 3, Partition(1, 1), directions=2, stepwise=False),  # float32 alone
    "odd_chunks": Shape(40, 2, 2, Partition(3, 1), bias=False, stepwise=False),  # float32 alone
    "two_members": Shape(17, 9, 5, Partition(2, 1), 3, 2, packed=True, launches=(2, 2, 1)),
    "two_splits": Shape(33, 8, 3, Partition(1, 4), bias=False),
    "idle_members": Shape(17, 3, 3, Partition(5, 2), packed=True),
    "three_passes": Shape(40, 20, 3, Partition(2, 2, columns=24, column_tiles=1), launches=(1, 2)),
    "uneven_passes": Shape(
        40, 17, 3, Partition(3, 2, columns=24, column_tiles=2), directions=2, launches=(1, 2)
    ),
    "wide_block": Shape(100, 3, 2, Partition(1, 8), bias=False, packed=True),
    # As many blocks as a cluster may have, to which pairs of lanes store.
    "full_cluster": Shape(100, 5, 2, Partition(8, 1), packed=True, launches=(1, 1), stepwise=False),
    "full_cluster_of_two_tiles": Shape(
        120,
        15,
        2,
        Partition(8, 1, columns=16, column_tiles=2),
        bias=False,
        cells=("lstm", "gru"),
        stepwise=False,
    ),
    "two_columns": Shape(100, 20, 2, Partition(4, 2, columns=16, column_tiles=2), bias=False),
    "two_tiles": Shape(
        40, 12, 3, Partition(4, 1, columns=16, column_tiles=2), 3, 2, packed=True, launches=(1, 2)
    ),
    "all_at_once": Shape(
        40, 20, 3, Partition(2, 4, columns=16, column_tiles=2), 3, 2, packed=True, bias=False, launches=(2, 1)
    ),
    # Four tiles of columns at a time, going back; then two and one.
    "four_tiles": Shape(
        *(40, 50, 3, Partition(4, 1, columns=56, column_tiles=4), 3, 2),
        packed=True,
        cells=ONE_STAGE,
        stepwise=False,
    ),
    "four_tiles_of_two": Shape(
        70, 31, 3, Partition(3, 2, columns=32, column_tiles=4), bias=False, cells=ONE_STAGE, stepwise=False
    ),
    # Two groups that share blocks; the last one has no sequences.
    "two_teams": Shape(
        *(40, 17, 4, Partition(4, 1, teams=2), 3, 2),
        packed=True,
        launches=(1, 3),
        cells=ONE_STAGE,
        stepwise=False,
    ),
    "two_teams_of_two_tiles": Shape(
        70, 30, 3, Partition(6, 1, columns=16, column_tiles=2, teams=2), cells=ONE_STAGE, stepwise=False
    ),
    # More chunks than a warp's registers hold.
    "in_memory_of_two_teams": Shape(
        630, 9, 2, Partition(20, 2, teams=2), cells=("lstm",), bias=False, stepwise=False
    ),
    "in_memory": Shape(200, 2, 2, Partition(2, 8), cells=IN_MEMORY, stepwise=False),
    "in_memory_of_one_quarter": Shape(
        630, 2, 2, Partition(20, 2), cells=IN_MEMORY, bias=False, stepwise=False, outputs=600
    ),
    "in_memory_rnn": Shape(600, 1, 2, Partition(5, 8), cells=("rnn_tanh",), bias=False, stepwise=False),
    # Fewer units of h than blocks, almost as many as hidden ones, and more, which torch.nn would not have.
    "one_output": Shape(17, 3, 3, Partition(8, 1), directions=2, packed=True, cells=PROJECTED, outputs=1),
    "odd_outputs": Shape(
        33, 9, 4, Partition(3, 2), 3, 2, packed=True, launches=(1, 3), cells=PROJECTED, outputs=31
    ),
    "even_outputs": Shape(
        33, 20, 3, Partition(4, 1, columns=16, column_tiles=2), launches=(2, 1), cells=PROJECTED, outputs=32
    ),
    "few_outputs": Shape(100, 20, 3, Partition(2, 4, columns=24), packed=True, cells=PROJECTED, outputs=13),
    "more_outputs": Shape(5, 3, 3, Partition(2, 1), directions=2, packed=True, cells=PROJECTED, outputs=17),
}


def runs() -> list[object]:
    """Every cell, dtype and plan that a shape is for."""
    return [
        pytest.param(shape, cell, numbers, plan, id=f"{name}-{cell}-{name_of(numbers)}-{plan}")
        for name, shape in SHAPES.items()
        for cell in shape.cells
        for numbers in (*DTYPES, "tf32")
        for plan in PLANS
        if is_for(shape, cell, numbers, plan)
        if plan != "cluster" or is_for_a_cluster(shape.partition_for(cell, numbers))
    ]


def is_for_a_cluster(partition: Partition) -> bool:
    """Whether there is a kernel: of one pass over the columns, with one quarter a warp."""
    one_pass = partition.columns == 8 * partition.column_tiles
    return (
        one_pass and partition.unit_groups * partition.column_tiles <= 2 and partition.members <= MAX_CLUSTER
    )


def is_for(shape: Shape, cell: str, numbers: Numbers, plan: str) -> bool:
    if plan == "stepwise":
        return shape.stepwise and numbers in DTYPES
    if cell not in PERSISTENT_CELLS or numbers not in CHUNK:
        return False
    if shape.partition and shape.partition.teams > 1 and (plan == "cluster" or numbers == torch.float32):
        return False
    return shape.partition.units % CHUNK[numbers] == 0


def name_of(numbers: Numbers) -> str:
    return str(numbers).removeprefix("torch.")


def output_of(outcome: layer.Outcome, problem: Problem) -> Tensor:
    return outcome.results["output"].reshape(*problem.x.shape[:-1], -1)


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest error and whose it is."""
    return max((error_of(actual[name], value.reshape(-1)), name) for name, value in expected.items())


def assert_right(
    driver: Path, problems: Sequence[Problem], plan: str, seed: int = 0, **options: Any
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
    tolerance = TOLERANCES["tf32" if options.get("tf32") else problems[0].dtype]
    assert error <= tolerance, f"{name}: error {error:.2e} exceeds {tolerance:.2e}"
    return kernels


@pytest.mark.parametrize(("shape", "cell", "numbers", "plan"), runs())
def test_right(
    shape: Shape,
    cell: str,
    numbers: Numbers,
    plan: str,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    problem = shape.problem(cell, numbers)
    # The mean square of a few elements says little about what size they might have had.
    fewest = min(t.numel() for t in problem.inputs)
    problems = [replace(problem, seed=n) for n in range(max(1, -(-16 // fewest)))]
    interleaving = zlib.crc32(request.node.name.encode())  # another one for each test
    kernels = assert_right(layer.program(), problems, plan, interleaving, **shape.options(cell, numbers))
    for kernel in kernels:
        record_property("cuda_kernel", kernel)


@pytest.mark.parametrize(
    ("cell", "plan"),
    [(cell, plan) for cell in CELLS for plan in PLANS if plan == "stepwise" or cell in PERSISTENT_CELLS],
)
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
@pytest.mark.parametrize("numbers", CHUNK, ids=name_of)
def test_nan(numbers: Numbers, plan: str) -> None:
    """NaN is not taken for "not ready" between blocks, even if its bits are, and stays with its sequence."""
    shape = SHAPES["two_members"]
    problem = shape.problem("gru", numbers)
    problem.states[0].view(torch.uint8).view(*problem.states[0].shape, -1)[:, 1] = 0xFF
    outcome = layer.run(layer.program(), problem, plan, **shape.options("gru", numbers))
    assert outcome.status == 0, outcome.errors
    h_n = outcome.results["h_n"].reshape(problem.states[0].shape)
    assert h_n[:, 1].isnan().all()
    assert not h_n[:, [0, *range(2, shape.batch)]].isnan().any()


# ---------------------------------------------------------------- ThreadSanitizer

TSAN_SHAPE = Shape(17, 3, 2, Partition(2, 1), directions=2, packed=True, launches=(1, 1))


# Memory is shared alike with elements of 8 and of 4 bytes, with both sorts of 2 bytes, and in both RNNs.
TSAN_NUMBERS = ["float32", "tf32", "bfloat16"]
TSAN_CELLS = [cell for cell in CELLS if cell != "rnn_relu"]


@pytest.mark.tsan
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16, "tf32"], ids=name_of)
@pytest.mark.parametrize("cell", TSAN_CELLS)
def test_no_races(cell: str, numbers: Numbers) -> None:
    plans = [plan for plan in PLANS if is_for(TSAN_SHAPE, cell, numbers, plan)]
    if not plans:
        pytest.skip("only persistent kernels multiply as TF32")
    driver = layer.program(TSAN_CELLS, numbers=TSAN_NUMBERS, sanitize=True)
    for plan in plans:
        assert_right(driver, [TSAN_SHAPE.problem(cell, numbers)], plan, **TSAN_SHAPE.options(cell, numbers))
    if "cluster" in plans:  # where pairs of lanes store to all blocks
        full = Shape(40, 2, 2, Partition(8, 1))
        assert_right(driver, [full.problem(cell, numbers)], "cluster", **full.options(cell, numbers))


@pytest.mark.tsan
@pytest.mark.parametrize("numbers", [torch.bfloat16, "tf32"], ids=name_of)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(
    "partition",
    [Partition(2, 1, teams=2), Partition(2, 1, columns=32, column_tiles=4)],
    ids=["two_teams", "four_tiles"],
)
def test_no_races_of_large_batches(partition: Partition, cell: str, numbers: Numbers) -> None:
    driver = layer.program(TSAN_CELLS, numbers=TSAN_NUMBERS, sanitize=True)
    shape = Shape(17, partition.columns + 1, 2, partition, packed=True, launches=(1, 1))
    assert_right(driver, [shape.problem(cell, numbers)], "grid", **shape.options(cell, numbers))


# ---------------------------------------------------------------- it bites

# Small, for many seeds are tried; some warps reset, but do not publish, and may lag behind those that do.
MUTANT_SHAPE = Shape(50, 20, 6, Partition(4, 1, columns=24, column_tiles=1))
TWO_TEAMS = Partition(4, 1, teams=2)
# Some blocks have no hidden units; the units of h are one more than so many blocks can have in pairs.
PROJECTED_SHAPE = Shape(50, 20, 6, Partition(8, 1, columns=24, column_tiles=1), packed=True, outputs=33)


@dataclass(frozen=True)
class Mutation:
    """One exact snippet of a file of csrc/cuda, and what stands there instead."""

    file: str
    before: str
    after: str
    plan: str = "grid"
    seeds: int = 1  # that it takes at most until it is found
    dtype: torch.dtype = torch.bfloat16
    partition: Partition | None = MUTANT_SHAPE.partition
    cell: str = "gru"
    shape: Shape = MUTANT_SHAPE
    backward: bool = False  # whether that pass is run, too


def ffma(before: str, after: str, **options: Any) -> Mutation:
    return Mutation("product.cuh", before, after, dtype=torch.float32, **options)


def projection(file: str, before: str, after: str, **options: Any) -> Mutation:
    cut = Partition(8, 1) if options.get("plan") == "cluster" else PROJECTED_SHAPE.partition
    return Mutation(
        file, before, after, partition=cut, cell="lstm_projected", shape=PROJECTED_SHAPE, **options
    )


def of_rows(part: str, before: str, after: str, cell: str) -> Mutation:
    file = f"normalized{part}.cuh"
    return Mutation(file, before, after, "stepwise", dtype=torch.float32, cell=cell, backward=True)


# Where the slot of the ring begins that is reset: the one after the next.
RESET_SLOT = "written_ >= 2 * layout_.slot ? written_ - 2 * layout_.slot : written_ + 2 * layout_.slot"
# Where the slot that is read begins.
READ_SLOT = "(written_ == 0 ? 3 * layout_.slot : written_ - layout_.slot)"

MUTATIONS = {
    "none": Mutation("exchange.cuh", "", "", seeds=20),
    "none_ffma": ffma("", "", seeds=20),
    "reads_before_arrival": Mutation(
        "slice.cuh", "while (!are_ready(chunk, 0, kInFlight)) {", "while (false) {"
    ),
    "fragment_rows": Mutation("slice.cuh", "group() + row * Product::kGroups, k", "group(), k"),
    "fragment_words": Mutation("product.cuh", "return word * kRows + row;", "return row * kWords + word;"),
    "sums_of_other_units": Mutation(
        "persistent.cuh", "result / Product::kColumns *", "result % Product::kColumns *"
    ),
    "staged_columns": ffma("(column ^ (first + i) * Share::kColumns)", "column"),
    "staged_late": ffma("      }\n      warp_barrier();", "      }", seeds=20),
    "reduced_columns": ffma("shuffle_xor(sums[kHalf + i % kHalf]", "shuffle_xor(sums[i % kHalf]"),
    "reduced_members": ffma("kHalf / Share::kColumns * Share::kGroups", "Share::kGroups"),
    "kept_columns": ffma("[i % Share::kColumns];", "[kTileColumns - 1 - i % Share::kColumns];"),
    "reset_unfenced": Mutation("exchange.cuh", "    if (part_.members > 1) fence<kScope>();", "", seeds=50),
    "reset_of_what_is_read": Mutation("exchange.cuh", RESET_SLOT, READ_SLOT, seeds=50),
    "reset_of_what_is_next": Mutation(
        "exchange.cuh",
        RESET_SLOT,
        "written_ >= 3 * layout_.slot ? written_ - 3 * layout_.slot : written_ + layout_.slot",
        seeds=50,
    ),
    "reset_never": Mutation("persistent.cuh", "exchange_.reset();", ""),
    "peers_not_awaited": Mutation(
        "exchange.cuh",
        "= kNotReady;\n      cluster_barrier();",
        "= kNotReady;",
        plan="cluster",
        seeds=50,
        partition=Partition(4, 1),
    ),
    "peers_of_half_the_lanes": Mutation(
        "exchange.cuh", "(thread_ & 1) * kShare + n", "n", plan="cluster", partition=Partition(8, 1)
    ),
    "resets_of_the_first_threads": Mutation(
        "exchange.cuh", "(layout.reset + thread) / kThreads", "layout.reset / kThreads"
    ),
    "reader_a_step_behind": Mutation(
        "persistent.cuh", "cursor.reader = cursor.ahead, ", "", partition=Partition(4, 1)
    ),
    "rows_of_the_first_stage": Mutation(
        "persistent.cuh", "Iteration<stage>::kFirstTile + tile", "tile", cell="gru_reset_before"
    ),
    "sums_of_the_first_stage": Mutation(
        "persistent.cuh",
        "launder(partial_of<stage>(lane, 0))",
        "launder(partial_of<0>(lane, 0))",
        plan="cluster",
        partition=Partition(4, 1),
        cell="gru_reset_before",
    ),
    "steps_of_one_stage": Mutation(
        "persistent.cuh", "has_step && kNext == 0", "has_step", cell="gru_reset_before"
    ),
    "nothing_carried": Mutation(
        "forward.cuh", "state.carried[k] = saved[k].v", "state.carried[k] = 0", cell="gru_reset_before"
    ),
    "none_of_two_teams": Mutation("exchange.cuh", "", "", seeds=20, partition=TWO_TEAMS, backward=True),
    "one_group_for_both_teams": Mutation(
        "persistent.cuh", "* kTeams + team_),", "* kTeams),", partition=TWO_TEAMS
    ),
    "four_tiles_of_two": Mutation(
        "lane.cuh", "n % 2 * kApart", "n * kTileColumns", partition=Partition(4, 1, 32, 4), backward=True
    ),
    "none_projected": projection("exchange.cuh", "", "", seeds=20, backward=True),
    "outputs_of_other_blocks": projection(
        "persistent.cuh", "member_ * layout_.outputs + n : kNowhere", "first_unit_ + n : kNowhere"
    ),
    "outputs_of_half_the_blocks": projection(
        "layout.cuh", "(outputs + part.members - 1) / part.members", "outputs / part.members"
    ),
    "lanes_of_hidden_units": projection(
        "persistent.cuh", "cursor.column[kMade] : coord", "cursor.column[0] : coord", plan="cluster"
    ),
    "projection_by_w_hh": projection(
        "persistent.cuh", "return p_.projection.weights[direction_];", "return p_.weights[direction_];"
    ),
    "c_of_the_projection": projection(
        "forward.cuh", "if constexpr (Stage::kMakesC) state.c = now.c.v", "if (true) state.c = now.c.v"
    ),
    "gradient_of_c_of_the_projection": projection(
        "backward.cuh",
        "if constexpr (Stage::kHasC) state.c = left.c.v",
        "state.c = Stage::kHasC ? left.c.v : 0",
        backward=True,
    ),
    "gradient_of_h_in_one_row": projection(
        "backward.cuh",
        "move_rows(output_dgates_, rows,",
        "move_rows(output_dgates_, 0,",
        plan="cluster",
        backward=True,
    ),
    "products_of_any_stride": projection(
        "stepwise.cuh",
        "sequence * kTiles * Units::most(p)",
        "sequence * kTiles * Units::template made<kFollows>(p)",
        plan="stepwise",
    ),
    "none_rows": of_rows("", "", "", "lstm_layer_norm"),
    "sums_of_a_warp": of_rows("", "warp < kWarps; ++warp", "warp < 1; ++warp", "gru_layer_norm"),
    "size_of_all_groups": of_rows("", "group(norm, g) == group", "group(norm, g) >= group", "gru_layer_norm"),
    "input_bias_left_out": of_rows(
        "", "input_gates[g] = bias(kNormOfInput, g, unit)", "input_gates[g] = 0", "lstm_layer_norm_joint"
    ),
    "values_of_the_first_gate": of_rows(
        "",
        "(norm * Cell::kGates + gate) * int64_t{shape.padded}",
        "norm * Cell::kGates * int64_t{shape.padded}",
        "lstm_layer_norm",
    ),
    "scale_of_another_group": of_rows(
        "_forward", "scalings[group(norm, g)](number)", "scalings[norm * kGroups](number)", "gru_layer_norm"
    ),
    "nothing_carried_of_rows": of_rows(
        "_forward", "saved[0] = carried_[u]", "saved[0] = 0", "lstm_layer_norm"
    ),
    "means_of_the_first_side": of_rows("_backward", "means + side * kGroups", "means", "gru_layer_norm"),
    "published_of_the_first_side": of_rows(
        "_backward", "if (side == kSides - 1)", "if (side == 0)", "gru_layer_norm"
    ),
    "mean_product_left_out": of_rows(
        "_backward", " - value * mean.product", " - value", "lstm_layer_norm_joint"
    ),
}
RACES = {
    "unordered_sums": Mutation("persistent.cuh", "    barrier();\n    exchange_", "    exchange_"),
    "one_buffer_of_sums": Mutation(
        "persistent.cuh", "    if (kTeams == 1) partials_ = kWarps * partial() - partials_;\n", ""
    ),
    "sums_of_two_teams": Mutation(
        "persistent.cuh",
        "    if constexpr (kTeams > 1) barrier();  // all",
        "    // all",
        partition=TWO_TEAMS,
    ),
    "one_staged_chunk": ffma("kStagedChunks = 2", "kStagedChunks = 1"),
    "one_buffer_of_row_sums": of_rows("", "    is_odd_ = !is_odd_;", "    ", "gru_layer_norm"),
    "sums_where_vectors_are_read": ffma("      warp_barrier();  // all have read what was staged", ""),
}


def mutant(name: str, mutation: Mutation, *, sanitize: bool = False) -> Path:
    """The driver with the mutated kernels, in the folder of the build."""
    csrc = emulator.BUILD / name / "csrc"
    for path in [CSRC / "kinds.h", *CSRC.glob("cells/*"), *CSRC.glob("cuda/*.*h")]:
        text = path.read_text()
        if path.name == mutation.file and mutation.before:
            assert text.count(mutation.before) == 1, f"{mutation.before!r} is not in {path.name} just once"
            text = text.replace(mutation.before, mutation.after)
        emulator.write(csrc / path.relative_to(CSRC), text)
    options = {"numbers": [name_of(mutation.dtype)], "sanitize": sanitize, "csrc": csrc, "variant": name}
    return layer.program([mutation.cell], **options)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutant_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    driver = mutant(name, mutation)
    problem = mutation.shape.problem(mutation.cell, mutation.dtype)
    expected = problem.expected()

    def is_right(seed: int) -> bool:
        outcome = layer.run(
            driver, problem, mutation.plan, mutation.partition, seed=seed, saves=mutation.backward
        )
        right = {name: expected[name] for name in outcome.results}
        return outcome.status == 0 and worst(outcome.results, right)[0] <= TOLERANCES[problem.dtype]

    assert all(is_right(seed) for seed in range(mutation.seeds)) == (mutation.before == "")


@pytest.mark.tsan
@pytest.mark.parametrize("name", RACES)
def test_race_is_found(name: str) -> None:
    race = RACES[name]
    problem = MUTANT_SHAPE.problem(race.cell, race.dtype)
    driver = mutant(name, race, sanitize=True)
    outcome = layer.run(driver, problem, race.plan, race.partition)
    assert outcome.status == STATUS_OF_A_RACE, outcome.errors
    assert "data race" in outcome.errors
