"""Builds, tests and measures on a machine with an NVIDIA GPU, in a given time: `make gpu`.

    make gpu                    all of it, in less than nine minutes
    make gpu QUICK=1            fewer tests and cases, in less than three
    make gpu OUT=DIR            results to DIR instead of benchmarks/results
    make gpu ARGS="--stages build,benchmark"

Each stage has a limit, and ends there at the latest; one that fails does not stop those after it, but for the
build. The results are GPU.json, GPU.md and GPU.png, all output is in GPU.log, and the last thing printed is a
summary. `--device cpu` rehearses the stages on a machine without a GPU. This file needs nothing but Python;
what it runs needs torch, ninja, pybind11, pytest, hypothesis and matplotlib, and is faster with pytest-xdist.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLANS = ("stepwise", "persistent_block", "persistent_cluster", "persistent_grid")
TOTAL = {False: 520.0, True: 165.0}  # seconds, by whether the run is quick
GRACE = 8.0  # seconds between asking a stage to end and ending it; part of its limit
SHOWN = 12  # lines of a failed stage's output that are printed
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
    resumes_with: Path | None = None  # the file from which it goes on after a crash, told --resume


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    seconds: float
    detail: str


# ---------------------------------------------------------------- time


def limit_of(stages: list[Stage], index: int, remaining: float) -> float:
    """Seconds for a stage: what remains without the least that those after it need, up to its most."""
    later = sum(stage.least for stage in stages[index + 1 :])
    return max(0.0, min(stages[index].most, remaining - later))


def until(limit: float) -> str:
    """When a program that is begun now, with this limit, should end by itself, in seconds since the epoch."""
    return f"{time.time() + limit - 2 * GRACE:.1f}"


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


# ---------------------------------------------------------------- what the stages print


def slug(name: str) -> str:
    """A file's name for a GPU's: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def test_results(output: str) -> list[tuple[str, str]]:
    """(test, outcome) of what `pytest -v` printed, with or without workers."""
    outcome = r"(PASSED|FAILED|ERROR|SKIPPED)"
    by_worker = re.findall(rf"^\[gw\d+\] \[ *\d+%\] {outcome} (\S.*?) *$", output, re.MULTILINE)
    alone = re.findall(rf"^(tests/\S*::.*?) {outcome}\b.*$", output, re.MULTILINE)
    return [(test, said.lower()) for said, test in by_worker] + [(test, said.lower()) for test, said in alone]


def counts(outcomes: Iterable[str]) -> str:
    found = Counter(outcomes)
    return ", ".join(
        f"{found[name]} {name}" for name in ("passed", "failed", "error", "skipped") if found[name]
    )


def test_detail(output: str) -> str:
    results = test_results(output)
    crashed = re.findall(r"worker 'gw\d+' crashed while running '(.*?)'", output)
    said = [counts(outcome for _, outcome in results) or "no test ran"]
    return "; ".join([*said, *([f"{len(crashed)} crashes: {crashed[0]}"] if crashed else [])])


def plan_detail(output: str) -> str:
    """The tests' outcomes plan by plan."""
    results = test_results(output)
    by_plan = {plan: counts(o for test, o in results if re.search(rf"\b{plan}\b", test)) for plan in PLANS}
    return "; ".join(f"{plan}: {said or 'nothing'}" for plan, said in by_plan.items())


def ptxas_summary(logs: Iterable[str]) -> str:
    """Registers and spills of all kernels, from what ptxas -v says of them."""
    kernels, most, spilling = 0, 0, []
    for log in logs:
        for entry in re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]:
            kernels += 1
            name = re.search(r"entry function '(\w+)'", entry)
            used = re.search(r"Used (\d+) registers", entry)
            most = max(most, int(used[1]) if used else 0)
            memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", entry)
            if memory and memory.groups() != ("0", "0"):
                spilling.append(name[1] if name else "?")
    if not kernels:
        return ""
    said = f"{kernels} kernels of up to {most} registers, {len(spilling)} with a stack or spills"
    return said + "".join(f"\n  stack or spills: {name[:100]}" for name in spilling[:3])


def sanitizer_detail(output: str) -> str:
    """Its last summary, and how many kernels' launches ran."""
    summaries = re.findall(r"((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    ran = len(re.findall(r"^ran ", output, re.MULTILINE))
    return f"{ran} combinations; {summaries[-1] if summaries else 'no summary'}"


def sanitizer_refusal(output: str) -> str:
    """Why the tool cannot look at this machine's GPU, if it says so."""
    found = re.search(r"Device not supported.*|is not supported on .*|Unable to find .*injection.*", output)
    return found[0][:100] if found else ""


def race_detail(results: Path) -> str:
    """Of the benchmark's file: how much was measured, and how it went against torch.nn."""
    try:
        content = json.loads(results.read_text(encoding="utf-8"))
        infos = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
        speedups = [
            (info["speedup"]["torch.nn"]["median"], f"{info['case']['work']} {info['case']['title']}")
            for info in infos
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return "no results"
    said = f"{len(speedups)} cases, {len(content['failed'])} failed, {len(content['left_out'])} left out"
    if speedups:
        losses = sum(speedup < 1 for speedup, _ in speedups)
        said += "; slower than torch.nn in {}; least {:.2f}x, {}".format(losses, *min(speedups))
    return said


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


def find_sanitizer() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [os.path.join(home, "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def stages(device: str, quick: bool, results: Path) -> list[Stage]:
    """In order, with what each may take."""
    on_gpu = device == "cuda"
    plain = "cuda and not cpu and not emulated and not stepwise and not persistent"
    small = ("-m", "not slow") if quick else ()

    def tests(expression: str, *files: str, patience: int = 60) -> Callable[[float], list[str]]:
        # A rehearsal is about this program, not about the CPU's tests.
        some = (
            ("-k", expression)
            if on_gpu
            else ("-k", "cpu and lstm and float64 and strides", "tests/test_ops.py")
        )
        return lambda limit: pytest_command(*small, *some, *(files if on_gpu else ()), patience=patience)

    def race(limit: float) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu_race", str(results), "--device", device]
        return [*command, "--until", until(limit), *(["--quick"] if quick else [])]

    def built(output: str) -> str:
        logs = sorted((ROOT / "build").glob("temp*/*.o.log"))
        return ptxas_summary(log.read_text(encoding="utf-8", errors="replace") for log in logs)

    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    targets = {"SEQKERNELS_CUDA_TARGETS": "native", "SEQKERNELS_WITH_CUDA": "1"} if on_gpu else {}
    every = [
        Stage("build", lambda limit: build, 60, 105 if quick else 240, targets, built, needs_build=False),
        Stage(
            "tests",
            tests(plain, "tests", "--ignore=tests/test_autograd.py"),
            12 if quick else 50,
            30 if quick else 100,
            detail=test_detail,
        ),
        Stage(
            "plans",
            tests(
                "cuda and not emulated and (stepwise or persistent)", "tests", patience=12 if quick else 25
            ),
            12 if quick else 45,
            25 if quick else 90,
            detail=plan_detail,
        ),
    ]
    if not quick:
        every.append(
            Stage(
                "gradcheck", tests("cuda and not cpu", "tests/test_autograd.py"), 25, 50, detail=test_detail
            )
        )
        program = find_sanitizer() or "compute-sanitizer"
        for tool in ("memcheck", "racecheck"):
            every.append(
                Stage(
                    tool,
                    sanitizer(tool, program),
                    15,
                    40,
                    {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                    sanitizer_detail,
                    sanitizer_refusal,
                )
            )
    return [
        *every,
        Stage(
            "benchmark",
            race,
            30 if quick else 150,
            600,
            detail=lambda _: race_detail(results),
            resumes_with=results,
        ),
        Stage(
            "report",
            lambda limit: [sys.executable, "-m", "benchmarks.report", str(results)],
            10,
            30,
            detail=lambda output: (output.strip().splitlines() or [""])[-1],
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
    return Outcome(stage.name, FAILED, seconds, "; ".join(filter(None, (ended, detail))))


def crashed(status: int | None) -> bool:
    """Neither done, with failures or without, nor stopped for lack of time."""
    return status not in (0, SOME_FAILED, None)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def telling(output: str) -> list[str]:
    """The lines of a failed stage that say most: errors, failed tests, else its last ones."""
    lines = [line for line in output.splitlines() if line.strip()]
    wanted = r"^(FAILED|ERROR) |\berror\b|^E  |FAILED:|========= (Error|Invalid|Race)"
    found = [line for line in lines if re.search(wanted, line)]
    named = [line for line in found if line.startswith(("FAILED ", "ERROR "))]
    return (named or found or lines[-SHOWN:])[:SHOWN]


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
    parser.add_argument("--quick", action="store_true", help="in three minutes instead of nine")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the results")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, tiny sizes"
    )
    parser.add_argument("--stages", help="only these, such as build,benchmark")
    parser.add_argument("--seconds", type=float, help="for everything, instead of 520 or 165")
    options = parser.parse_args(arguments)

    name = gpu_name() if options.device == "cuda" else "rehearsal"
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out.resolve() / f"{slug(name)}.json"
    log = results.with_suffix(".log")
    log.write_text(f"{name}, {time.strftime('%Y-%m-%d %H:%M')}\n", encoding="utf-8")
    every = stages(options.device, options.quick, results)
    if options.stages:
        wanted = options.stages.split(",")
        if unknown := set(wanted) - {stage.name for stage in every}:
            parser.error(f"no such stages: {', '.join(sorted(unknown))}")
        every = [stage for stage in every if stage.name in wanted]

    if any(stage.name == "benchmark" for stage in every):
        results.unlink(missing_ok=True)  # so that nobody takes old results for this run's

    deadline = began + (options.seconds or TOTAL[options.quick])
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
        broken |= stage.name == "build" and outcome.status == FAILED
        outcomes.append(outcome)

    text = f"{name}\n{summary(outcomes)}\nresults: {results}, log: {log}"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    print(f"\n{text}")
    return int(any(outcome.status == FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
