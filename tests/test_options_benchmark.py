"""The benchmark of options: a row for each case, and no time for a wrong result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pytest_benchmark")
from benchmarks import options
from benchmarks.options import OPTIONS, Case, all_cases, calls_of
from benchmarks.timing import OURS

BRIEF: dict[str, Any] = {"seconds": 0.0, "min_rounds": 2}


def test_a_run_writes_a_row_for_each_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [Case(name, "LSTM", "training", 4, 2, 8) for name in OPTIONS]
    tiny.append(Case("zoneout", "GRU", "inference", 4, 2, 8))
    monkeypatch.setattr(options, "all_cases", lambda device: tiny)
    monkeypatch.setattr(options, "FULL", BRIEF)
    monkeypatch.setattr(options, "get_cpu_info", lambda: {"brand_raw": "Some Processor"})
    path = tmp_path / "options.md"
    options.main(["--output", str(path), "--threads", "1"])
    head, *sections = path.read_text(encoding="utf-8").split("\n## ")
    assert "Some Processor, 1 threads" in head
    assert [section.splitlines()[0] for section in sections] == list(OPTIONS)
    for section in sections:
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert len(rows) == (4 if section.startswith("zoneout") else 3)  # with the head and the rule
        assert "Geometric means: cost " in section
    assert capsys.readouterr().out.count(" cost ") == len(tiny)
    with pytest.raises(SystemExit):
        options.main(["--only", "nothing"])
    path.unlink()
    options.main(["--output", str(path), "--until", "0"])
    assert "cases left out" in capsys.readouterr().out
    assert not path.exists()


def test_cases() -> None:
    """Every option in training, of both cells where both have it; those that act in evaluation there, too."""
    cases = all_cases()
    assert {case.option for case in cases if case.work == "training"} == set(OPTIONS)
    idle = {"recurrent_dropout", "weight_dropout", "recompute"}
    assert {case.option for case in cases if case.work == "inference"} == set(OPTIONS) - idle
    assert len(set(cases)) == len(cases)
    assert any(case.quick for case in cases)
    on_gpus = all_cases("cuda")
    assert {case.option for case in on_gpus if case.quick} == set(OPTIONS)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if not option.is_random])
def test_wrong_results_are_not_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name, "LSTM", "inference", 5, 3, 8)
    assert OURS in calls_of(case)
    monkeypatch.setattr(torch, "allclose", lambda *args, **kwargs: False)
    if len(calls_of_peers(case)) > 0:
        with pytest.raises(AssertionError, match="has another result"):
            calls_of(case)


def calls_of_peers(case: Case) -> list[str]:
    layer = torch.nn.LSTM(case.hidden, case.hidden)
    return list(OPTIONS[case.option].peers(layer, layer))
