"""Cells that torch.nn does not have, and LSTMs with a projection, beside what people run for them today.

    python -m benchmarks.cell_forms                            # about half an hour, to cell_forms.md
    python -m benchmarks.cell_forms --quick --output FILE.md   # some 15 seconds
    python -m benchmarks.cell_forms --only norm= --no-compile  # some cases, without the slowest peer

torch.nn has neither `reset_after=False` nor `norm`. Their peers are the loops of benchmarks/torch_loops.py,
scripted and with a compiled step, and for a GRU that resets before the product ONNX Runtime's with
linear_before_reset=0; our own layer in the form that torch.nn has tells what the other one costs. An LSTM
with `proj_size` is compared with torch.nn.LSTM. Results are checked before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.plugin import get_cpu_info
from pytest_benchmark.utils import get_commit_info
from torch import nn

from benchmarks import report
from benchmarks.cases import Case, form_cases
from benchmarks.conftest import check_held, settings
from benchmarks.implementations import HELD_BY, LOOPS, TORCH, Problem, results
from benchmarks.timing import OURS, Call, InterleavedTiming
from benchmarks.torch_loops import with_compiled_step

TORCH_WIDE = f"{TORCH} float32"
SCRIPT, EAGER, COMPILED = "TorchScript loop", "eager loop", "compiled step"
WARM_UP = 3  # calls, in which TorchScript makes and optimizes its code
FULL: dict[str, Any] = {"seconds": 2.0, "min_rounds": 5}  # per case
QUICK: dict[str, Any] = {"seconds": 0.5, "min_rounds": 3}
LOOP_LEGEND = (
    f"`{SCRIPT}` is that of `benchmarks/torch_loops.py` through torch.jit.script; `{COMPILED}` is the"
    " same loop in Python over a step that torch.compile has made."
)


@dataclass(frozen=True)
class Form:
    """How the report shows a form of a cell."""

    title: str
    legend: str = LOOP_LEGEND
    plain: str = "norm=None"  # what makes it the cell that torch.nn has; "": it is that

    @property
    def ours(self) -> str:
        """Our name in that form."""
        return f"{OURS} {self.plain}"

    @property
    def legends(self) -> str:
        cost = f" `{self.ours}` is no peer: its column tells what the form costs."
        return self.legend + (cost if self.plain else "")


# By cell and `Case.form`, in the order of the report.
FORMS = {
    ("gru", "reset_after=False"): Form("GRU with reset_after=False", plain="reset_after=True"),
    ("gru", "norm=layer"): Form("GRU with norm=layer"),
    ("lstm", "norm=layer"): Form("LSTM with norm=layer"),
    ("lstm", "norm=layer-joint"): Form("LSTM with norm=layer-joint"),
    ("lstm", ""): Form(
        "LSTM with proj_size",
        "P is `proj_size`. Cases in bfloat16 are compared with the same layer in float32 too: ours, and"
        " torch.nn's.",
        plain="",
    ),
}


def attempt(name: str, problem: Problem, make: Callable[[], nn.Module]) -> dict[str, Call]:
    """The module's call under that name. Where this torch or machine cannot: nothing, and a line says so."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.script is deprecated, and still what people run
            call = problem.run(make())
            with problem.mode():
                for _ in range(WARM_UP):
                    call()
        return {name: call}
    except Exception as error:
        print(f"{name} is left out: {type(error).__name__}: {str(error).strip()[:200]}", flush=True)
        return {}


def loops(problem: Problem, compiled: bool) -> dict[str, Call]:
    """The cell in torch's own operations, in the ways to make it fast."""
    calls = attempt(SCRIPT, problem, lambda: torch.jit.script(problem.theirs))
    calls = calls or {EAGER: problem.run(problem.theirs)}
    if compiled:
        calls |= attempt(COMPILED, problem, lambda: with_compiled_step(copy.deepcopy(problem.theirs)))
    return calls


def checked_calls(problem: Problem, compiled: bool = False) -> dict[str, Call]:
    """Whom to time, by name; raises where a result is wrong."""
    calls, more = problem.implementations(), {}
    is_loop = (problem.case.cell, problem.case.form) in LOOPS
    if is_loop:
        del calls[TORCH]  # the loop as it stands
        more = loops(problem, compiled)
    elif problem.dtype == torch.bfloat16:
        wide = problem.cast(torch.float32)
        more = {TORCH_WIDE: wide.run(wide.theirs)}
    # With one step and one sequence, dW is an outer product: bfloat16 rounds its largest entries by more than
    # the tolerance. There torch.nn's own error is what ours may be.
    rounding = [TORCH] if problem.dtype == torch.bfloat16 else []
    with problem.mode():
        problem.check(calls | more, also=[*more, *rounding])
    return calls | more | (checked_plain(problem.case) if is_loop else {})


def checked_plain(case: Case) -> dict[str, Call]:
    """Ours in the form that torch.nn has, checked against that."""
    problem = Problem(replace(case, reset_after=True, norm=None))
    call = problem.run(problem.ours)
    with problem.mode():
        problem.check({OURS: call})
    return {FORMS[case.cell, case.form].ours: call}


def measure(case: Case, options: dict[str, Any], compiled: bool = False) -> report.Info:
    """What the report shows of a case."""
    problem = Problem(case)
    calls = checked_calls(problem, compiled)
    with problem.mode():
        timing = InterleavedTiming(calls, **options)
        for _ in range(timing.rounds):
            timing.round()
    return results(case, timing)


def markdown(
    infos: list[report.Info],
    refused: list[str],
    machine: dict[str, Any],
    commit: dict[str, Any],
    command: str,
) -> str:
    """A table and a summary for each form."""
    parts = [
        "# Performance of cell forms on CPUs",
        f"`{command}`",
        report.machine_line(infos, machine, commit) + ".",
        "Speedup is the peer's time over that of seqkernels, interleaved: median of all rounds [quartiles];"
        " below 1, in bold, the peer is faster." + report.CPU_LEGEND,
    ]
    for (cell, form), shown in FORMS.items():
        some = report.of(infos, cell=cell, form=form)
        if some:
            rows = [
                info | {"case": info["case"] | {"title": f"{info['case']['work']}, {info['case']['title']}"}}
                for info in some
            ]
            summary = report.summary(some, by_dtype=True)
            parts += [f"## {shown.title}", shown.legends, summary, report.work_table(rows)]
    if refused:
        parts += ["## Refused for wrong results", "\n".join(f"- {line}" for line in refused)]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cell_forms", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, and nothing is compiled")
    parser.add_argument(
        "--output", type=Path, default=Path("cell_forms.md"), help="the Markdown file to write"
    )
    parser.add_argument("--only", default="", help="cases whose title has this, such as norm=")
    parser.add_argument("--no-compile", action="store_true", help="without the compiled step: minutes a case")
    parser.add_argument("--threads", type=int, help="of everybody (default: torch's own number)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
    if HELD_BY:
        check_held(HELD_BY)
    if options.threads:
        torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"WARNING: the load average is {load:.1f}; measure on an idle machine")

    compiled = not (options.quick or options.no_compile)
    started = time.monotonic()
    infos, refused = [], []
    cases = [c for c in form_cases() if options.only in c.title and (c.quick or not options.quick)]
    if not cases:
        parser.error(f"--only: there is no case with {options.only!r} in its title")
    for case in cases:
        try:
            infos.append(measure(case, QUICK if options.quick else FULL, compiled))
            print(report.progress_line(infos[-1]), flush=True)
        except AssertionError as error:
            refused.append(f"{case.work}, {case.title}: {error}")
            print(f"REFUSED {refused[-1]}", flush=True)
    if not infos:
        sys.exit("every case was refused")
    machine = {"cpu": get_cpu_info(), **settings(load, options.quick)}
    command = shlex.join(["python", "-m", "benchmarks.cell_forms", *arguments])
    options.output.write_text(markdown(infos, refused, machine, get_commit_info(), command), encoding="utf-8")
    print(f"wrote {options.output} after {time.monotonic() - started:.0f} s")
    if refused:
        sys.exit(f"{len(refused)} of the cases were refused")


if __name__ == "__main__":
    main()
