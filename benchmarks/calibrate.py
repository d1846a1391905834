"""Fits the cost model of csrc/cuda/plan.cpp to a sweep: what its constants should be, and what it then
chooses.

    python -m benchmarks.calibrate benchmarks/results/nvidia-h200-sweep.csv

The model is a sum of constants times counts (`features`), fitted to the relative errors of all cuts that were
timed, no constant negative. Its regret is the time of the cut that it would choose over that of the best one.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GIGAHERTZ = 1.755  # in which plan.cpp counts cycles
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
MULTIPROCESSORS, OUTSIDE_OF_CLUSTERS = 132, 12
LAYER = ("cell", "dtype", "pass", "hidden", "batch", "directions")
# Feature -> the constant of plan.cpp's Costs that it belongs to.
CONSTANTS = {
    **{"alone": "kAlone", "near": "kNear", "far": "kFar", "backward": "kBackward"},
    **{"several": "kSeveral", "quarters": "kQuarter", "passes": "kPass"},
    **{"mmas": "kMma", "weights": "kWeights", "rounds": "kRound", "team_rounds": "kTeamRound"},
}


def up(n: int, by: int) -> int:
    return -(-n // by)


def tiles_of_passes(tiles: int, most: int) -> Iterator[int]:
    """Column tiles of each pass over them: as many as `most` allows and are left, 4, 2 or 1."""
    while tiles > 0:
        while most > tiles:
            most //= 2
        yield most
        tiles -= most


def features(cut: dict[str, str]) -> dict[str, float]:
    """Counts of a cut's step on tensor cores, by name: step_cycles and product_cycles of plan.cpp."""
    members, unit_groups, columns, column_tiles, batch = (
        int(cut[name]) for name in ("members", "unit_groups", "columns", "column_tiles", "batch")
    )
    forward, in_grid = cut["pass"] == "forward", cut["plan"] == "persistent_grid"
    gates = GATES[cut["cell"]]
    tiles, published = (gates, 1) if forward else (1, gates)
    teams = int(cut.get("teams") or 1)
    chunk = 16 if cut["dtype"] == "tf32" else 32
    chunks = published * members * unit_groups * 16 // chunk
    per_warp = up(chunks, 8 // unit_groups)
    column_count = columns // 8
    passes = list(tiles_of_passes(column_count, column_tiles))
    one = len(passes) == 1 and unit_groups * column_tiles * 4 <= 8
    # Of warps with one quarter, with several, and of two teams.
    form = 2 if teams > 1 else 0 if one else 1
    resident, ahead = (((4, 4), (4, 4), (0, 4)) if tiles > 1 else ((12, 4), (8, 8), (2, 4)))[form]
    ahead = 4 if column_tiles == 1 else ahead
    quarters = sum(up(unit_groups * pass_tiles * 4, 8) for pass_tiles in passes)
    groups = int(cut["directions"]) * up(up(batch, columns), teams) * teams
    outside = OUTSIDE_OF_CLUSTERS * (not in_grid and members > 1)
    at_once = (MULTIPROCESSORS - outside) // members * teams
    rounds = max(0.0, up(per_warp * column_tiles, ahead) - 1) * len(passes)
    found = {
        "alone": not in_grid and members == 1,
        "near": not in_grid and members > 1,
        "far": in_grid,
        "backward": not forward,
        "several": not one,
        "quarters": 0 if one else quarters,
        "passes": len(passes) - 1,
        "mmas": 2 * per_warp * tiles * column_count * 2 * teams,
        "weights": max(0, per_warp - resident) * tiles * 1024 * 8 * len(passes) * teams,
        "rounds": rounds * (teams == 1),
        "team_rounds": rounds * (teams > 1),
    }
    return {name: up(groups, at_once) * float(value) for name, value in found.items()}


def fit(counts: np.ndarray, cycles: np.ndarray, rounds: int = 3000) -> np.ndarray:
    """Constants, none negative, with the least sum of squared relative errors: coordinate by coordinate."""
    scaled = counts / cycles[:, None]
    gram, right = scaled.T @ scaled, scaled.sum(axis=0)
    found = np.zeros(counts.shape[1])
    for _ in range(rounds):
        for i in range(len(found)):
            if gram[i, i] > 0:
                found[i] = max(0.0, found[i] + (right[i] - gram[i] @ found) / gram[i, i])
    return found


def regrets(cuts: Sequence[dict[str, str]], predicted: np.ndarray) -> dict[tuple[str, ...], float]:
    """By layer and pass: the time of the cut that is predicted to be fastest, over that of the fastest."""
    layers: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for cut, cycles in zip(cuts, predicted, strict=True):
        layer = tuple(cut[name] for name in LAYER)
        layers.setdefault(layer, []).append((cycles, float(cut["us"])))
    return {layer: min(times)[1] / min(us for _, us in times) for layer, times in layers.items()}


def load(path: Path) -> list[dict[str, str]]:
    """The cuts on tensor cores; those of kernels that there are no more are left out."""
    with path.open(encoding="utf-8") as file:
        cuts = [cut for cut in csv.DictReader(file) if cut["dtype"] != "float32"]
    return [cut for cut in cuts if cut["plan"] == "persistent_grid" or features(cut)["several"] == 0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path)
    cuts = load(parser.parse_args(arguments).sweep)
    table: list[dict[str, Any]] = [features(cut) for cut in cuts]
    counts = np.array([[row[name] for name in CONSTANTS] for row in table])
    cycles = np.array([float(cut["us"]) * 1e3 * GIGAHERTZ for cut in cuts])
    found = fit(counts, cycles)
    for value, constant in zip(found, CONSTANTS.values(), strict=True):
        print(f"{constant} = {f'{value * 128:.1f} / 128' if constant == 'kWeights' else f'{value:.1f}'}")
    errors = np.abs(np.log(counts @ found / cycles))
    regret = regrets(cuts, counts @ found)
    worst = max(regret, key=lambda layer: regret[layer])
    often = f"of nine in ten below {np.quantile(errors, 0.9):.1%}"
    print(f"{len(cuts)} cuts; median error {np.median(errors):.1%}, {often}")
    mean = np.mean(list(regret.values()))
    print(f"regret {mean:.3f} on average, {regret[worst]:.2f} at most ({' '.join(worst)})")


if __name__ == "__main__":
    main()
