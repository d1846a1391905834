"""Builds, measures and tests on a machine with an NVIDIA GPU, in a lease of minutes: `make gpu`.

    make gpu                    first light, in at most seven minutes: build; every plan against float64, each
                                in a process of its own; every cut of every plan timed; cases against cuDNN;
                                what options of the recurrence cost; tests of the plans
    make gpu LOOK=second        at most four more, with the build that is there: whether a STRICT build gives
                                the same bits, tests, memcheck, racecheck
    make gpu QUICK=1            fewer tests and cases, in less than three minutes
    make gpu OUT=DIR            results to DIR instead of benchmarks/results (or to the environment's OUT)
    make gpu ARGS="--stages build,benchmark"
    make gpu-report RESULT=F    table, plot and the constants of plan.cpp, from results made elsewhere

Each stage has a limit, and ends there at the latest; one that fails does not stop those after it, but for the
build. A plan that hangs is skipped by all stages that follow. What is measured is written as it comes:
GPU.json, GPU-sweep.csv, GPU-smoke.jsonl, GPU-options.md, GPU.md and GPU.png; all output is in GPU.log, and
the last thing printed is a summary. `--device cpu` rehearses the stages on a machine without a GPU. This file
needs nothing but Python; what it runs needs torch, ninja, pybind11, pytest, hypothesis and matplotlib, and is
faster with pytest-xdist; with TorchRL in the environment, its kernels are measured, too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cuda_sass import find_tool
from benchmarks.gpu_output import (
    PLANS,
    last_line,
    plan_detail,
    ptxas_summary,
    race_detail,
    sanitizer_detail,
    sanitizer_refusal,
    slug,
    smoke_detail,
    telling,
    test_detail,
)

ROOT = Path(__file__).resolve().parent.parent
# Seconds, by look and whether the run is quick.
TOTAL = {("first", False): 410.0, ("first", True): 165.0, ("second", False): 230.0, ("second", True): 100.0}
GRACE = 8.0  # seconds between asking a stage to end and ending it; part of its limit
WORKERS = 8  # at most, which share the GPU

SOME_FAILED = 3  # the exit status of a benchmark that is done, but failed in some cases

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"


@dataclass(frozen=True)
class Stage:
    """Something to run: the command, given its limit in seconds, and what its output says."""

    name: str
    command: Callable[[float], list[str]]
    least: float  # seconds that are kept for it
    most: float
    environment: dict[str, str] = field(default_factory=dict)
    detail: Callable[[str], str] = lambda output: ""
    skipped: Callable[[str], str] = lambda output: ""  # why its failure is none, if so
    needs_build: bool = True
    plan: str = ""  # the one that it tries: if it does not end, it hangs
    resumes_with: Path | None = None  # the file from which it goes on after a crash, told --resume


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float
    detail: str
    hung: bool = False  # stopped at its limit, or killed


# ---------------------------------------------------------------- time


def limit_of(stages: list[Stage], index: int, remaining: float) -> float:
    """Seconds for a stage: what remains without the least that those after it need, up to its most."""
    later = sum(stage.least for stage in stages[index + 1 :])
    return max(0.0, min(stages[index].most, remaining - later))


def until(limit: float, spare: float = GRACE) -> str:
    """When a program that is begun now should begin nothing new, in seconds since the epoch."""
    return f"{time.time() + limit - GRACE - spare:.1f}"


def run(command: list[str], environment: dict[str, str], limit: float, output: Path) -> int | None:
    """The exit status; None where the limit was reached. Output is added to the file as it comes.

    At the limit the program is asked to end, so that it can still say what it knows, then it and all that it
    has started are ended.
    """
    with output.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(max(1.0, limit - GRACE))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)


def table(rows: list[list[str]]) -> str:
    """Rows in columns, the last one as it is."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def summary(outcomes: list[Outcome]) -> str:
    head = ["stage", "outcome", "seconds", ""]
    body = [
        [o.name, o.status, f"{o.seconds:.0f}", o.detail.splitlines()[0] if o.detail else ""] for o in outcomes
    ]
    return table([head, *body])


# ---------------------------------------------------------------- the stages


def pytest_command(*arguments: str, patience: int = 60) -> list[str]:
    """Each test's outcome as it comes, workers and a limit for each test if there are plugins for it.

    A test that takes more than `patience` seconds ends its worker, and is named: it may wait for ever.
    """
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--maxfail=60", "--durations=5"]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout"):
        command += [f"--timeout={patience}", "--timeout-method=thread"]
    return [*command, *arguments]


def sanitizer(tool: str, program: str) -> Callable[[float], list[str]]:
    """compute-sanitizer over the small script, for this project's kernels alone."""

    def command(limit: float) -> list[str]:
        options = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
        names = next(
            (o for o in ("--kernel-name", "--kernel-regex") if re.search(rf"{o}\b(?!-)", options)), ""
        )
        return [
            *(program, "--tool", tool, "--error-exitcode", "33"),
            *((names, "kns=seqkernels") if names else ()),
            *(sys.executable, "-m", "tests.sanitize", "--until", until(limit)),
        ]

    return command


def stages(
    device: str, quick: bool, results: Path, look: str = "first", hung: Sequence[str] = ()
) -> list[Stage]:
    """In order, with what each may take. `hung` may grow while they run."""
    on_gpu = device == "cuda"
    plain = "cuda and not cpu and not emulated and not stepwise and not persistent"
    small = ("-m", "not slow")
    smoke = results.with_name(f"{results.stem}-smoke.jsonl")

    def tests(expression: str, *files: str, patience: int = 60) -> Callable[[float], list[str]]:
        # A rehearsal is about this program, not about the CPU's tests.
        def command(limit: float) -> list[str]:
            without = "".join(f" and not {plan}" for plan in hung)
            some = (
                ("-k", expression + without)
                if on_gpu
                else ("-k", "cpu and lstm and float64 and strides", "tests/test_ops.py")
            )
            return pytest_command(*small, *some, *(files if on_gpu else ()), patience=patience)

        return command

    def first_light(plan: str) -> Callable[[float], list[str]]:
        return lambda limit: [
            *(sys.executable, "-m", "tests.first_light", plan, "--device", device),
            *("--results", str(smoke), "--until", until(limit, spare=3.0)),
        ]

    def sweep(limit: float) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "benchmarks.sweep",
            str(results.with_name(f"{results.stem}-sweep.csv")),
        ]
        return [
            *command,
            "--seconds",
            f"{limit - 3 * GRACE:.0f}",
            *(w for plan in hung for w in ("--without", plan)),
        ]

    def timing(limit: float) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu_timing", str(results), "--device", device]
        command += [word for plan in hung for word in ("--without", plan)]
        return [*command, "--until", until(limit), *(["--quick"] if quick else [])]

    def options(limit: float) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.options", "--device", device]
        command += ["--output", str(results.with_name(f"{results.stem}-options.md"))]
        return [*command, "--until", until(limit), *(["--quick"] if not on_gpu else [])]

    def built(output: str) -> str:
        logs = sorted((ROOT / "build").glob("objects/*.o.log"))
        return ptxas_summary(log.read_text(encoding="utf-8", errors="replace") for log in logs)

    plan_tests = Stage(
        "plans",
        tests("cuda and not emulated and (stepwise or persistent)", "tests/test_cuda.py", "tests/test_ops.py",
              patience=12 if quick else 25),
        12 if quick else 30,
        25 if quick else 80,
        detail=plan_detail,
    )  # fmt: skip
    if look == "second":
        program = find_tool("compute-sanitizer") or "compute-sanitizer"
        every = [
            Stage(
                "tests",
                tests(plain, "tests", "--ignore=tests/test_autograd.py"),
                25 if quick else 40,
                90,
                detail=test_detail,
            ),
            plan_tests,
        ]
        if not quick:
            gradcheck = tests("cuda and not cpu", "tests/test_autograd.py")
            every.append(Stage("gradcheck", gradcheck, 20, 50, detail=test_detail))
            every.insert(
                0,
                Stage(
                    "strict",
                    lambda limit: [
                        *(sys.executable, "-m", "benchmarks.gpu_strict", str(smoke)),
                        *("--until", until(limit)),
                    ],
                    70,
                    130,
                    detail=last_line,
                ),
            )
        return every + [
            Stage(
                *(tool, sanitizer(tool, program), 12, 40),
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                sanitizer_detail,
                sanitizer_refusal,
            )
            for tool in ("memcheck", "racecheck")
        ]

    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    # Kernels of the CPU are nobody's concern here: they need not be fast, nor emulate what another CPU has.
    quickly = {
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} -O1".strip(),
        "SEQKERNELS_TEST_KERNELS": "0",
    }
    targets = {"SEQKERNELS_CUDA_TARGETS": "native", "SEQKERNELS_WITH_CUDA": "1", **quickly} if on_gpu else {}
    every = [
        Stage("build", lambda limit: build, 55, 105 if quick else 150, targets, built, needs_build=False)
    ]
    for plan in PLANS if on_gpu else PLANS[:1]:
        every.append(
            Stage(
                f"smoke {plan}",
                first_light(plan),
                12 if quick else 16,
                22 if quick else 32,
                detail=lambda _, plan=plan: smoke_detail(smoke, plan),  # type: ignore[misc]
                plan=plan,
            )
        )
    if on_gpu:
        every.append(
            Stage(
                "sweep", sweep, 10 if quick else 30, 15 if quick else 70,
                detail=last_line,
            )
        )  # fmt: skip
    every.append(
        Stage(
            "benchmark",
            timing,
            20 if quick else 110,
            600,
            detail=lambda _: race_detail(results),
            resumes_with=results,
        )
    )
    if not quick:
        every.append(Stage("options", options, 30, 60, detail=last_line))
    return [
        *every,
        plan_tests,
        Stage(
            "report",
            lambda limit: [sys.executable, "-m", "benchmarks.report", str(results)],
            10,
            30,
            detail=last_line,
            skipped=lambda output: (
                "nothing was measured" if re.search(r": no (benchmark|case)", output) else ""
            ),
            needs_build=False,
        ),
    ]


def carry_out(stage: Stage, limit: float, log: Path) -> Outcome:
    """Runs it within its limit, writes what it prints to the log, and prints of that what matters."""
    began = time.monotonic()
    part = log.with_suffix(".stage")
    part.write_bytes(b"")
    command: list[str] = []
    try:
        command = stage.command(limit)
        status = run(command, stage.environment, limit, part)
        while crashed(status) and stage.resumes_with:  # it goes on behind what it crashed in
            left = limit - (time.monotonic() - began)
            before = stamp(stage.resumes_with)
            if left < 4 * GRACE:
                break
            status = run([*stage.command(left), "--resume"], stage.environment, left, part)
            if stamp(stage.resumes_with) == before:
                break
    except OSError as error:
        seconds = time.monotonic() - began
        part.unlink(missing_ok=True)
        return Outcome(stage.name, SKIPPED, seconds, f"{error.filename}: {error.strerror}")
    seconds = time.monotonic() - began
    output = part.read_text(encoding="utf-8", errors="replace")
    part.unlink()
    with log.open("a", encoding="utf-8") as file:
        file.write(
            f"\n======== {stage.name}: {' '.join(command)}\n{output}\n======== {stage.name}: {status}\n"
        )
    detail = stage.detail(output)
    if status == 0:
        return Outcome(stage.name, PASSED, seconds, detail)
    if refusal := stage.skipped(output):
        return Outcome(stage.name, SKIPPED, seconds, refusal)
    print("\n".join(line[:160] for line in telling(output)), flush=True)
    ended = "stopped at its limit" if status is None else f"exit status {status}"
    return Outcome(
        stage.name, FAILED, seconds, "; ".join(filter(None, (ended, detail))), status is None or status < 0
    )


def crashed(status: int | None) -> bool:
    """Neither done, with failures or without, nor stopped for lack of time."""
    return status not in (0, SOME_FAILED, None)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def gpu_name() -> str:
    """Of the first GPU, as torch has it; an error that says what is missing."""
    try:
        import torch
    except ImportError:
        sys.exit(f"make gpu needs torch, and {sys.executable} lacks it")
    if not torch.cuda.is_available():
        sys.exit(
            "make gpu needs an NVIDIA GPU, and torch sees none (ARGS='--device cpu' rehearses without one)"
        )
    return str(torch.cuda.get_device_name(0))


def main(arguments: list[str] | None = None) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="in less than three minutes")
    parser.add_argument(
        "--look", choices=("first", "second"), default="first", help="second: reuses the build"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results"),
        help="for the results",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, tiny sizes"
    )
    parser.add_argument("--stages", help="only these, such as build,benchmark")
    parser.add_argument("--seconds", type=float, help="for everything")
    options = parser.parse_args(arguments)

    name = gpu_name() if options.device == "cuda" else "rehearsal"
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out.resolve() / f"{slug(name)}.json"
    log = results.with_suffix(".log")
    with log.open("w" if options.look == "first" else "a", encoding="utf-8") as file:
        file.write(f"{name}, {options.look} look, {time.strftime('%Y-%m-%d %H:%M')}\n")
    hung_file = results.with_name(f"{results.stem}-hung.json")
    if options.look == "first":  # what is appended to, or read later, is this run's
        for file in (hung_file, results.with_name(f"{results.stem}-smoke.jsonl")):
            file.unlink(missing_ok=True)
    hung: list[str] = json.loads(hung_file.read_text(encoding="utf-8")) if hung_file.is_file() else []
    every = stages(options.device, options.quick, results, options.look, hung)
    if options.stages:
        wanted = options.stages.split(",")
        if unknown := set(wanted) - {stage.name for stage in every}:
            parser.error(f"no such stages: {', '.join(sorted(unknown))}")
        every = [stage for stage in every if stage.name in wanted]

    if any(stage.name == "benchmark" for stage in every):
        results.unlink(missing_ok=True)  # so that nobody takes old results for this run's

    deadline = began + (options.seconds or TOTAL[options.look, options.quick])
    outcomes: list[Outcome] = []
    broken = False
    for index, stage in enumerate(every):
        limit = limit_of(every, index, deadline - time.monotonic())
        if broken and stage.needs_build:
            outcome = Outcome(stage.name, SKIPPED, 0, "the build failed")
        elif limit < GRACE + 1:
            outcome = Outcome(stage.name, SKIPPED, 0, "no time was left")
        else:
            print(f"{stage.name}: up to {limit:.0f} s", flush=True)
            outcome = carry_out(stage, limit, log)
            print(f"  {outcome.status} after {outcome.seconds:.0f} s; {outcome.detail}", flush=True)
            if stage.plan and outcome.hung:
                hung.append(stage.plan)
                hung_file.write_text(json.dumps(hung) + "\n", encoding="utf-8")
                print(f"  {stage.plan} does not end: all that follows goes without it", flush=True)
        broken |= stage.name == "build" and outcome.status == FAILED
        outcomes.append(outcome)

    text = f"{name}\n{summary(outcomes)}\nresults: {results}, log: {log}"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    print(f"\n{text}")
    return int(any(outcome.status == FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
