"""One layer's problem through the CUDA kernels on the emulator: files for kernels.cpp, and back."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import emulator
from tests.problems import CELLS, REGISTRY, Problem

CSRC = emulator.CSRC
DRIVER = Path(__file__).parent / "kernels.cpp"
PLANS = ("stepwise", "cluster", "grid")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # in the order of DType
WARPS = 8  # of a block of a persistent kernel


@dataclass(frozen=True)
class Partition:
    """How a persistent launch is cut: csrc/cuda/problem.h."""

    members: int
    unit_groups: int
    columns: int = 8
    column_tiles: int = 1
    teams: int = 1  # of a block

    @property
    def units(self) -> int:
        return self.members * self.unit_groups * 16


@dataclass
class Outcome:
    status: int
    errors: str
    results: dict[str, Tensor]  # float64, flat
    kernels: list[str]  # cell, dtype, pass and plan of each that was run


def program(cells: Iterable[str] = CELLS, **options: Any) -> Path:
    """The driver with the kernels of some cells; options are those of `emulator.build`."""
    return emulator.build(DRIVER, list(cells), **options)


def run(
    driver: Path,
    problem: Problem,
    plan: str,
    partition: Partition | None = None,
    launches: Sequence[int] | None = None,
    *,
    seed: int = 0,
    tf32: bool = False,
    saves: bool = True,
) -> Outcome:
    """Both passes of `problem`, forward in `launches` of so many steps; without `saves` forward alone.

    With `tf32`, persistent kernels multiply float32 as TF32.
    """
    integers = {
        "cell": CELLS.index(problem.cell),
        "dtype": DTYPES.index(problem.dtype),
        "plan": PLANS.index(plan),
        "seed": seed,
        "directions": problem.directions,
        "batch": problem.batch,
        "hidden": problem.hidden_size,
        "outputs": problem.output_size,
        "input": problem.input_size,
        "seq_len": problem.seq_len,
        "launches": launches or [problem.seq_len],
        "tf32": tf32,
        "saves": saves,
    }
    if partition:
        column_groups = -(-problem.batch // (partition.columns * partition.teams)) * partition.teams
        members, unit_groups, columns, column_tiles, teams = astuple(partition)
        integers["partition"] = [members, unit_groups, columns, column_groups, column_tiles, teams]
    arrays = {name: torch.tensor(value, dtype=torch.int64) for name, value in integers.items()}
    if problem.batch_sizes is not None:
        arrays["batch_sizes"] = problem.batch_sizes
    if REGISTRY[problem.cell].is_normalized:
        arrays["norm_eps"] = torch.tensor(problem.norm_eps, dtype=torch.float64)
    arrays |= dict(zip(problem.names, problem.inputs, strict=True))
    names = ["grad_output", *(f"grad_{name}" for name in problem.finals)]
    arrays |= {name: grad for name, grad in zip(names, problem.grads, strict=True) if grad is not None}
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "problem", Path(folder) / "result"
        paths[0].write_bytes(b"".join(_record(name, array) for name, array in arrays.items()))
        done = emulator.run(driver, *paths)
        results = _read(paths[1].read_bytes()) if done.returncode == 0 else {}
    dtype = "tf32" if tf32 else str(problem.dtype).removeprefix("torch.")
    kernels = [f"{problem.cell} {dtype} {line}" for line in done.stdout.splitlines()]
    return Outcome(done.returncode, done.stderr, results, kernels)


def _record(name: str, values: Tensor) -> bytes:
    data = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return struct.pack("=qq", len(name), len(data)) + name.encode() + data


def _read(data: bytes) -> dict[str, Tensor]:
    arrays, at = {}, 0
    while at < len(data):
        name_bytes, value_bytes = struct.unpack_from("=qq", data, at)
        at += 16
        name = data[at : at + name_bytes].decode()
        at += name_bytes
        arrays[name] = torch.frombuffer(bytearray(data[at : at + value_bytes]), dtype=torch.float64)
        at += value_bytes
    return arrays
