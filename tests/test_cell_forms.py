"""The benchmark of cells that torch.nn does not have, and of LSTMs with a projection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import seqkernels
from benchmarks.cases import Case, form_cases
from benchmarks.implementations import LAYERS, LOOPS, OURS_WIDE, TORCH, Problem
from benchmarks.timing import OURS
from benchmarks.torch_loops import with_compiled_step

pytest.importorskip("pytest_benchmark")
from benchmarks import cell_forms
from benchmarks.cell_forms import COMPILED, EAGER, FORMS, SCRIPT, TORCH_WIDE

BRIEF: dict[str, Any] = {"seconds": 0.0, "min_rounds": 2}
TINY = [
    Case("inference", "gru", 3, 2, 16, reset_after=False),
    Case("training", "gru", 3, 2, 16, reset_after=False),
    Case("inference", "lstm", 3, 2, 16, proj_size=4),
    Case("training", "lstm", 3, 2, 16, dtype="bfloat16", proj_size=8),
    Case("inference", "gru", 3, 2, 16, norm="layer"),
    Case("inference", "lstm", 3, 2, 16, norm="layer"),
    Case("training", "lstm", 3, 2, 16, norm="layer-joint"),
]
OURS_AFTER, OURS_PLAIN = f"{OURS} reset_after=True", f"{OURS} norm=None"


def tiny_run(monkeypatch: pytest.MonkeyPatch, path: Path, *arguments: str) -> str:
    """What a run writes that has the tiny cases alone."""
    monkeypatch.setattr(cell_forms, "form_cases", lambda: TINY)
    monkeypatch.setattr(cell_forms, "FULL", BRIEF)
    monkeypatch.setattr(cell_forms, "get_cpu_info", lambda: {"brand_raw": "Some Processor"})
    monkeypatch.setattr(cell_forms, "with_compiled_step", lambda loop: 1 / 0)  # as without a compiler
    try:
        cell_forms.main(["--output", str(path), "--threads", str(torch.get_num_threads()), *arguments])
    finally:
        text = path.read_text(encoding="utf-8")
    return text


def test_a_run_writes_a_row_for_each_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny_run(monkeypatch, tmp_path / "forms.md")
    assert f"`python -m benchmarks.cell_forms --output {tmp_path / 'forms.md'} --threads" in text
    assert "\n\nSome Processor, " in text
    assert f"; torch {torch.__version__}" in text
    gru, normalized_gru, normalized, joint, lstm = text.split("\n## ")[1:]
    assert f"speedup over {SCRIPT} | " in gru
    assert f"speedup over {OURS_AFTER} | " in gru
    assert "| GRU inference float32 | 1 | " in gru
    assert "\n| training, GRU T=3 B=2 H=16, reset_after=False | " in gru
    assert "\n| inference, GRU T=3 B=2 H=16, reset_after=False | " in gru
    assert f"`{OURS_AFTER}` is no peer" in gru
    for some, row in (
        (normalized_gru, "inference, GRU T=3 B=2 H=16, norm=layer"),
        (normalized, "inference, LSTM T=3 B=2 H=16, norm=layer"),
        (joint, "training, LSTM T=3 B=2 H=16, norm=layer-joint"),
    ):
        assert f"speedup over {SCRIPT} | speedup over {OURS_PLAIN} | " in some
        assert f"`{OURS_PLAIN}` is no peer" in some
        assert some.count(f"\n| {row} | ") == some.count(", LSTM T=3") + some.count(", GRU T=3") == 1
    assert "no peer" not in lstm
    assert f"speedup over {TORCH} | " in lstm
    assert "| LSTM training bfloat16 | 1 | " in lstm
    assert "\n| inference, LSTM T=3 B=2 H=16 P=4 | " in lstm
    assert "\n| training, LSTM T=3 B=2 H=16 P=8, bfloat16 | " in lstm
    assert "Refused" not in text
    assert f"{COMPILED} is left out: ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_some_cases_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny_run(monkeypatch, tmp_path / "forms.md", "--only", "norm=layer-joint", "--no-compile")
    assert len(text.split("\n## ")) == 2
    assert "\n| training, LSTM T=3 B=2 H=16, norm=layer-joint | " in text
    assert COMPILED not in capsys.readouterr().out  # which a run with it would have left out, and said so
    with pytest.raises(SystemExit):
        cell_forms.main(["--only", "no such case"])
    assert "there is no case with 'no such case' in its title" in capsys.readouterr().err


def test_who_is_timed() -> None:
    inference, training, float32, bfloat16, *normalized = (
        set(cell_forms.checked_calls(Problem(case))) for case in TINY
    )
    loops = {OURS, SCRIPT, OURS_AFTER, "gemm"}
    assert training == loops
    assert loops <= inference <= loops | {"onnxruntime"}
    assert float32 == {OURS, TORCH, "gemm"}
    assert bfloat16 == {OURS, OURS_WIDE, TORCH, TORCH_WIDE, "gemm"}
    assert normalized == [{OURS, SCRIPT, OURS_PLAIN, "gemm"}] * 3


def test_without_torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.jit, "script", lambda module: 1 / 0)
    assert EAGER in cell_forms.checked_calls(Problem(TINY[1]))


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)
def test_a_wrong_result_of_ours_is_refused(case: Case) -> None:
    problem = Problem(case)
    with torch.no_grad():
        problem.ours.bias_hh_l0.add_(1)  # type: ignore[operator]
    with pytest.raises(AssertionError, match="seqkernels, result 0: error"):
        cell_forms.checked_calls(problem)


def test_the_other_form_is_refused() -> None:
    problem = Problem(TINY[0])
    assert isinstance(problem.ours, seqkernels.FusedGRU)
    problem.ours.reset_after = True
    with pytest.raises(AssertionError, match="seqkernels, result 0: error"):
        cell_forms.checked_calls(problem)


def test_a_wrong_peer_is_refused_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(problem: Problem, compiled: bool) -> dict[str, Any]:
        right = problem.run(problem.theirs)
        training = problem.case.work == "training"
        return {SCRIPT: (lambda: [2 * result for result in right()]) if training else right}

    monkeypatch.setattr(cell_forms, "loops", wrong)
    with pytest.raises(SystemExit, match="2 of the cases were refused"):
        tiny_run(monkeypatch, tmp_path / "forms.md")
    text = (tmp_path / "forms.md").read_text(encoding="utf-8")
    assert "| training, GRU" not in text
    assert "LSTM with norm=layer-joint" not in text
    refused = text.split("## Refused for wrong results\n\n")[1].splitlines()
    assert refused[0].startswith(
        f"- training, GRU T=3 B=2 H=16, reset_after=False: {SCRIPT}, result 0: error"
    )
    assert refused[1].startswith(
        f"- training, LSTM T=3 B=2 H=16, norm=layer-joint: {SCRIPT}, result 0: error"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(("cell", "form"), LOOPS, ids=str)
def test_the_loops_do_what_the_reference_does(cell: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled one with a compiler that leaves the step as it is."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, dynamic: compiled.append(step) or step)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    case = next(case for case in form_cases() if (case.cell, case.form) == (cell, form))
    plain, other = LOOPS[cell, form](5, 6), with_compiled_step(LOOPS[cell, form](5, 6))
    assert compiled == [plain.step]
    ours = LAYERS[cell][1](5, 6, backend="reference", **case.beyond_torch)
    for module in (ours, other):
        module.load_state_dict(plain.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    x = torch.randn(4, 3, 5, requires_grad=True)
    hx: Any = tuple(torch.randn(2, 1, 3, 6)) if cell == "lstm" else torch.randn(1, 3, 6)
    results = []
    for module in (ours, plain, other, torch.jit.script(plain)):
        for state in (hx, None):
            output, final = module(x, state)
            finals = final if cell == "lstm" else [final]
            loss = output.square().sum() + sum((n + 1) * s.sum() for n, s in enumerate(finals))
            results.append([output, *finals, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for n, result in enumerate(results[2:]):
        torch.testing.assert_close(result, results[n % 2])


def test_form_cases() -> None:
    cases = form_cases()
    assert len(cases) == len({case.id for case in cases}) == 160
    assert [case.id for case in cases if case.quick] == [
        f"{work}-{layer}"
        for layers in (
            ["gru-t100-b8-h256-normlayer"],
            ["gru-t100-b8-h256-reset_afterfalse"],
            ["lstm-t100-b8-h256-p64", "lstm-t100-b8-h256-p64-bfloat16"],
            ["lstm-t100-b8-h256-normlayer"],
            ["lstm-t100-b8-h256-normlayer-joint"],
        )
        for work in ("inference", "training")
        for layer in layers
    ]
    assert {(case.cell, case.form) for case in cases} == set(FORMS)
    assert FORMS.keys() - LOOPS.keys() == {("lstm", "")}


def test_operations_of_a_projection() -> None:
    """Products of [4H, I], [4H, P] and [P, H] with a vector, for each of T * B rows."""
    case = Case("inference", "lstm", 3, 2, 16, inputs=8, proj_size=4)
    assert case.flops == 6 * 2 * (64 * 8 + 64 * 4 + 4 * 16)
    assert replace(case, proj_size=0).flops == 6 * 2 * 64 * (8 + 16)
    assert replace(case, proj_size=0, norm="layer").flops == replace(case, proj_size=0).flops
    stacked = replace(case, variant="2 layers, bidirectional")
    assert stacked.flops == 6 * 2 * 2 * (64 * 8 + 64 * 8 + 2 * (64 * 4 + 4 * 16))
