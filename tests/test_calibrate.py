"""The fit of the plans' cost model, and the sweep that it is fitted to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import calibrate, sweep
from benchmarks.cuda_tables import ROOT

SWEEP = ROOT / "benchmarks" / "results" / "nvidia-h200-sweep.csv"


def test_a_fit_finds_what_made_the_times() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 50, (300, 4)).astype(float)
    counts[:, 0] = 1
    constants = np.array([900.0, 3.0, 0.0, 40.0])
    assert calibrate.fit(counts, counts @ constants) == pytest.approx(constants, rel=1e-6, abs=1e-6)


def test_no_constant_is_negative() -> None:
    counts = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    found = calibrate.fit(counts, np.array([30.0, 20.0, 10.0]))
    assert found[1] == 0
    assert found[0] > 0


def test_constants_of_plan_cpp_are_the_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """To two figures or so, of those that were measured."""
    calibrate.main([str(SWEEP)])
    source = (ROOT / "csrc" / "cuda" / "plan.cpp").read_text(encoding="utf-8")
    for line in capsys.readouterr().out.splitlines():
        if not line.startswith("k") or line.startswith("kAlone"):
            continue
        name, value = line.split(" = ")
        written = source.split(f"{name} = ")[1].split(";")[0].split(",")[0]
        assert float(written.split(" / ")[0]) == pytest.approx(float(value.split(" / ")[0]), rel=0.03), name


def test_a_sweep_that_was_cut_off_is_read(tmp_path: Path) -> None:
    entry = dict.fromkeys(sweep.COLUMNS, 1)
    lines = [str(entry).replace("'", '"'), str(entry | {"hung": 1}).replace("'", '"'), '{"cell": "ls']
    found = sweep.records(lines)
    assert len(found) == 2
    sweep.write(tmp_path / "x.csv", found)
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == ",".join(sweep.COLUMNS)


def test_command_of_a_sweep() -> None:
    assert sweep.command(Path("p"), 9, 4, ["persistent_grid"]) == [
        *("p", "--seconds", "9.0", "--from", "4", "--without", "persistent_grid"),
    ]
