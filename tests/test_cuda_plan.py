"""The choice of CUDA kernels, for devices that need not be there."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from benchmarks import calibrate
from benchmarks.cuda_tables import ROOT
from seqkernels import plan
from seqkernels._extension import BUILD_CONFIG
from seqkernels.cells import CELLS
from tests.problems import NORMALIZED_CELLS, PERSISTENT_CELLS

pytestmark = pytest.mark.skipif(not BUILD_CONFIG["cuda_targets"], reason="built without CUDA")

# compute capability, multiprocessors, bytes of shared memory of a block
V100, A100, H200 = (70, 80, 96 * 1024), (80, 108, 163 * 1024), (90, 132, 227 * 1024)
SWEEP = ROOT / "benchmarks" / "results" / "nvidia-h200-sweep.csv"
CHUNK = {torch.bfloat16: 32, torch.float16: 32, torch.float32: 16}
NUMBERS = [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False)]


def plans(
    cell: str = "lstm",
    dtype: torch.dtype = torch.bfloat16,
    backward: bool = False,
    batch: int = 16,
    hidden: int = 256,
    directions: int = 1,
    tf32: bool = True,
    limits: tuple[int, int, int] = H200,
    outputs: int = 0,
) -> dict[str, dict]:
    """By name, the one that runs first; of a projection, to half the units unless `outputs` says so."""
    outputs = outputs or (hidden + 1) // 2 * (cell == "lstm_projected")
    found = plan.cuda_plans(cell, dtype, backward, batch, hidden, directions, tf32, limits, outputs)
    return {p["name"]: p for p in found}


def chosen(**request: object) -> str:
    return next(iter(plans(**request)))  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [A100, H200], ids=["A100", "H200"])
@pytest.mark.parametrize(("dtype", "tf32"), NUMBERS, ids=["bfloat16", "float16", "tf32", "float32"])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", PERSISTENT_CELLS)
def test_plans_keep_to_the_limits(
    cell: str, backward: bool, dtype: torch.dtype, tf32: bool, limits: tuple[int, int, int]
) -> None:
    one_tile = CELLS[cell].stages == 1 and (backward or CELLS[cell].gates == 1)
    most = (
        (4 if one_tile else 2, 8)
        if dtype != torch.float32 or tf32
        else (1, 2 if cell.startswith("lstm") and not backward else 4)
    )
    for hidden in (1, 16, 17, 100, 128, 130, 193, 256, 300, 512, 650, 1024, 2048, 4096):
        for batch, directions in ((1, 1), (8, 2), (9, 1), (64, 2), (200, 1), (1000, 1)):
            for name, p in plans(cell, dtype, backward, batch, hidden, directions, tf32, limits).items():
                if name == "stepwise" or p["obstacle"]:
                    continue
                units = p["members"] * p["unit_groups"] * 16
                assert units >= hidden
                assert units % CHUNK[dtype] == 0
                assert 8 % p["unit_groups"] == 0
                assert p["columns"] % 8 == 0
                assert p["column_groups"] % p["teams"] == 0
                assert p["columns"] * p["column_groups"] >= batch
                assert batch > p["columns"] * (p["column_groups"] - p["teams"])
                assert p["column_tiles"] in (1, 2, 4)
                assert p["column_tiles"] <= min(most[0], p["columns"] // 8)
                assert p["unit_groups"] * p["column_tiles"] <= most[1]
                assert p["shared_bytes"] <= limits[2]
                if name == "persistent_grid":
                    at_once = limits[1] // p["members"] * p["teams"]
                    assert p["launches"] == -(-p["column_groups"] * directions // at_once)
                else:
                    assert p["members"] in ((2, 4, 8) if name == "persistent_cluster" else (1,))
                    assert (p["launches"], p["teams"]) == (1, 1)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", PERSISTENT_CELLS)
def test_small_layers_need_one_block_and_large_ones_the_grid(cell: str, backward: bool) -> None:
    assert chosen(cell=cell, backward=backward, hidden=16) == "persistent_block"
    for hidden in (192, 193, 256, 512, 768, 1024):
        assert chosen(cell=cell, backward=backward, hidden=hidden).startswith("persistent")
    assert chosen(cell=cell, backward=backward, hidden=1024) == "persistent_grid"


def test_the_choice_is_what_was_measured_to_be_best() -> None:
    """On an H200, of the cuts that were timed on one; of several launches, each takes what one takes."""
    cut_columns = ("plan", "teams", "members", "unit_groups", "columns", "column_tiles")
    timed: dict[tuple[str, ...], dict[tuple[str, ...], float]] = {}
    alone: dict[tuple[str, ...], float] = {}  # of whatever batch
    for cut in calibrate.load(SWEEP):
        layer, key = ([cut[name] for name in names] for names in (calibrate.LAYER, cut_columns))
        timed.setdefault(tuple(layer), {})[tuple(key)] = float(cut["us"])
        alone[(*layer[:4], layer[5], *key)] = float(cut["us"])
    regrets = []
    for layer, times in timed.items():
        cell, dtype, which, hidden, batch, directions = layer
        found = plan.cuda_plans(
            cell,
            torch.float32 if dtype == "tf32" else getattr(torch, dtype),
            which == "backward",
            int(batch),
            int(hidden),
            int(directions),
            dtype == "tf32",
            H200,
        )
        best = min(
            (p for p in found if p["name"] != "stepwise" and not p["obstacle"]), key=lambda p: p["cycles"]
        )
        key = (best["name"], *(str(best[name]) for name in cut_columns[1:]))
        launch = times.get(key) or alone.get((*layer[:4], layer[5], *key))
        if launch:  # not all were timed
            regrets.append(launch * best["launches"] / min(times.values()))
    assert len(regrets) > 0.9 * len(timed)
    assert statistics.mean(regrets) < 1.02
    assert max(regrets) < 1.3


def test_short_sequences_take_fewer_launches() -> None:
    """Each launch begins with its weights."""
    many = plan.cuda_plans("lstm", torch.bfloat16, False, 128, 1024, 1, False, H200, 0, 256)
    few = plan.cuda_plans("lstm", torch.bfloat16, False, 128, 1024, 1, False, H200, 0, 2)
    launches = [{p["name"]: p["launches"] for p in plans}["persistent_grid"] for plans in (few, many)]
    assert launches[0] == 1 < launches[1]


def test_the_largest_layer_that_fits() -> None:
    assert chosen(hidden=2048) == chosen(hidden=2048, backward=True) == "persistent_grid"
    assert chosen(hidden=8192) == "stepwise"
    assert "do not fit on 132 multiprocessors" in plans(hidden=8192)["persistent_grid"]["obstacle"]
    assert "one multiprocessor" in plans(hidden=8192)["persistent_block"]["obstacle"]
    assert "a cluster of 8" in plans(hidden=8192)["persistent_cluster"]["obstacle"]


def test_obstacles_say_what_is_in_the_way() -> None:
    assert "float64" in plans(dtype=torch.float64)["persistent_grid"]["obstacle"]
    assert not any(plans(dtype=torch.float32, tf32=tf32)["persistent_grid"]["obstacle"] for tf32 in (0, 1))
    assert "9.0" in plans(limits=A100)["persistent_cluster"]["obstacle"]
    assert not plans(limits=A100)["persistent_grid"]["obstacle"]
    for name in ("persistent_block", "persistent_cluster", "persistent_grid"):
        assert "7.0 is below 8.0" in plans(limits=V100)[name]["obstacle"]
    assert chosen(limits=V100) == "stepwise"
    assert not any(p["stepwise"]["obstacle"] for p in (plans(), plans(hidden=8192), plans(limits=V100)))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", PERSISTENT_CELLS)
def test_float32_is_persistent_without_tensor_cores(cell: str, backward: bool) -> None:
    ieee: dict[str, Any] = {"cell": cell, "backward": backward, "dtype": torch.float32, "tf32": False}
    assert chosen(**ieee, hidden=16) == "persistent_block"
    for hidden in (64, 256, 512, 1000, 1024):
        assert chosen(**ieee, hidden=hidden).startswith("persistent")
        slower = next(iter(plans(**ieee, hidden=hidden).values()))["cycles"]
        assert slower > next(iter(plans(**{**ieee, "tf32": True}, hidden=hidden).values()))["cycles"]
    assert chosen(**ieee, hidden=1024) == "persistent_grid"
    assert chosen(**ieee, hidden=1024, batch=512) == "stepwise"


def test_a_large_batch_is_left_to_matrix_products() -> None:
    assert chosen(batch=4096, hidden=1024) == "stepwise"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", NORMALIZED_CELLS)
def test_normalised_rows_are_stepwise(cell: str, backward: bool) -> None:
    for dtype, tf32 in NUMBERS:
        found = plans(cell, dtype, backward, tf32=tf32)
        assert next(iter(found)) == "stepwise"
        obstacles = [p["obstacle"] for name, p in found.items() if name != "stepwise"]
        assert obstacles == ["no persistent kernels for normalised rows"] * 3


def test_a_forced_plan_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQKERNELS_CUDA_PLAN", "stepwise")
    assert chosen(hidden=64) == "stepwise"


@pytest.mark.parametrize("backward", [False, True])
def test_few_units_of_h_leave_room(backward: bool) -> None:
    """W_hh has as many columns as there are units of h."""
    request: dict[str, Any] = {"cell": "lstm_projected", "hidden": 2048, "backward": backward}
    few, more = (plans(**request, outputs=n)["persistent_grid"] for n in (256, 1024))
    assert few["cycles"] < more["cycles"]
    assert backward or few["shared_bytes"] < more["shared_bytes"]
    assert "do not fit" in plans(**request, outputs=3000)["persistent_grid"]["obstacle"]


@pytest.mark.parametrize(("argument", "value"), [("cell", "mogrifier"), ("dtype", torch.int8)])
def test_unknown_names(argument: str, value: object) -> None:
    with pytest.raises(RuntimeError, match=f"unknown {argument} '"):
        plans(**{argument: value})  # type: ignore[arg-type]
