"""Measures on a GPU: every case against cuDNN, the plans against one another, and the GPU's own limits.

    python -m benchmarks.gpu_timing benchmarks/results/nvidia-h200.json --seconds 200

One thing after another, the most important first, until the time is over; after each, the file is written
anew. What does not come to an end takes the process with it, and the next one (`--resume`) goes on behind it,
without the plan that hung: it costs its patience once.
 `--device cpu` rehearses all of it with tiny sizes on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import seqkernels
from benchmarks.cases import Case, gpu_cases
from benchmarks.gpu_output import PLANS
from benchmarks.implementations import LAYERS, TORCH, Problem, set_tf32
from benchmarks.timing import OURS, Call, InterleavedTiming, gpu_clock, quantiles, wall_clock

# cell, dtype, H, B
SWEEP = [
    *[("lstm", "float16", hidden, 16) for hidden in (128, 256, 512, 768, 1024, 2048)],
    *[("lstm", "float16", 512, batch) for batch in (1, 64)],
    ("lstm", "float16", 1024, 64),
    *[("gru", "float16", hidden, 16) for hidden in (128, 512, 1024)],
    *[("lstm", "tf32", hidden, 16) for hidden in (128, 256, 512)],
    *[("lstm", "float32", hidden, 16) for hidden in (128, 256, 512, 1024)],
    ("rnn", "float16", 512, 16),
]
SWEEP_STEPS = (64, 320)  # two lengths, so that what does not depend on the length drops out
STALLED = 25.0  # seconds after which one measurement is given up
SOME_FAILED = 3  # the exit status where the work is done, but some of it failed
BROKEN = 75  # that where the GPU cannot be used any more
GRAPHS = ", CUDA graphs"
SHORT = 2e-3  # seconds; only shorter calls are measured as CUDA graphs too

Content = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """Something to measure, and where its result goes."""

    id: str
    title: str
    goes_to: str  # a list of the file's content
    measure: Callable[[Attempts], dict[str, Any]]


class Hung(RuntimeError):
    """What was to be run has hung before."""


class Attempts:
    """Plans that are about to run are written down before, so that a process that resumes knows what hung."""

    def __init__(self, content: Content, path: Path) -> None:
        self.content, self.path = content, path

    def hung(self, plans: Sequence[str]) -> list[str]:
        """Those of `plans`, such as "persistent_grid forward", that hung when they were last tried."""
        return next((hung for hung in self.content.get("hung", []) if set(hung) <= set(plans)), [])

    def begin(self, plans: Sequence[str]) -> None:
        if hung := self.hung(plans):
            raise Hung(f"{' and '.join(hung)} hung before")
        self.content["trying"] = list(plans)
        write(self.content, self.path)


# ---------------------------------------------------------------- cases


def rehearsed(case: Case) -> Case:
    """So small that a CPU is done at once."""
    return replace(case, seq_len=min(case.seq_len, 4), batch=min(case.batch, 4), hidden=min(case.hidden, 16))


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of what the call does on the GPU, without the host's part, and where it puts its results."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def with_graphs(calls: dict[str, Call], notes: list[str]) -> dict[str, Call]:
    """The implementations, ours and torch.nn also as graphs if both can be."""
    if max(gpu_clock(calls[name], 1) for name in (OURS, TORCH)) > SHORT:
        return calls
    graphs = {}
    for name in (OURS, TORCH):
        try:
            graphs[name + GRAPHS] = captured(calls[name])[0].replay
        except RuntimeError as error:
            notes.append(f"no CUDA graph of {name}: {first_line(error)}")
            torch.cuda.synchronize()
            return calls
    return calls | graphs


def chosen_plans(kernel: str) -> dict[str, str]:
    """By pass, from what `explain` says; empty where it names none."""
    found = re.search(r": (\w+) forward, (\w+) backward", kernel)
    return dict(zip(("forward", "backward"), found.groups(), strict=True)) if found else {}


def measure_case(case: Case, device: str, seconds: float, attempts: Attempts) -> dict[str, Any]:
    """Checks the results, then times the implementations."""
    set_tf32(case.dtype == "tf32")
    problem = Problem(case, device)
    kernel = seqkernels.explain(problem.ours, problem.input_of(problem.x)).kernel
    attempts.begin([f"{plan} {name}" for name, plan in chosen_plans(kernel).items()])
    calls = problem.gpu_implementations()
    notes: list[str] = []
    clock = wall_clock
    with problem.mode():
        errors = problem.check(calls)
        if device != "cpu":
            for call in calls.values():  # cuDNN and cuBLAS choose their kernels
                call()
            calls, clock = with_graphs(calls, notes), gpu_clock
        timing = InterleavedTiming(calls, seconds, min_rounds=3, clock=clock, rest=0.0)
        for _ in range(timing.rounds):
            timing.round()
    speedups = {name: timing.ratio(name) for name in calls if not name.startswith(OURS)}
    if TORCH + GRAPHS in calls:
        speedups[TORCH + GRAPHS] = timing.ratio(TORCH + GRAPHS, to=OURS + GRAPHS)
    ours = quantiles(timing.times[OURS])["median"]
    return {
        "case": asdict(case) | {"title": case.title},
        "plan": kernel,
        "errors": errors,
        "notes": notes,
        "flops": case.flops,
        "tflops": case.flops / ours / 1e12,
        "us_per_step": ours / case.seq_len * 1e6,
        "calls_per_round": timing.calls,
        "seconds": {name: quantiles(times) for name, times in timing.times.items()},
        "speedup": {name: quantiles(ratios) for name, ratios in speedups.items()},
    }


# ---------------------------------------------------------------- plans


@contextlib.contextmanager
def forced(plan: str | None) -> Iterator[None]:
    before = os.environ.pop("SEQKERNELS_CUDA_PLAN", None)
    if plan:
        os.environ["SEQKERNELS_CUDA_PLAN"] = plan
    try:
        yield
    finally:
        os.environ.pop("SEQKERNELS_CUDA_PLAN", None)
        if before is not None:
            os.environ["SEQKERNELS_CUDA_PLAN"] = before


def per_step(times: dict[int, float]) -> dict[str, float]:
    """Microseconds of a step, and of what comes once, from the seconds of two numbers of steps."""
    (few, short), (many, long) = sorted(times.items())
    step = (long - short) / (many - few)
    return {"us_per_step": step * 1e6, "us_once": (short - step * few) * 1e6}


def measure_plans(
    cell: str, dtype: str, hidden: int, batch: int, device: str, attempts: Attempts
) -> dict[str, Any]:
    """Each plan's time per step in both passes, without most other work: few features, frozen weights."""
    set_tf32(dtype == "tf32")
    like: dict[str, Any] = {
        "device": device,
        "dtype": torch.float32 if dtype == "tf32" else getattr(torch, dtype),
    }
    torch.manual_seed(0)
    module = LAYERS[cell][1](16, hidden, **like).requires_grad_(False)
    clock = wall_clock if device == "cpu" else gpu_clock
    x = torch.randn(SWEEP_STEPS[1], batch, 16, **like)
    h0 = torch.randn(1, batch, hidden, **like)
    leaf = h0.clone().requires_grad_()
    grad = torch.randn(SWEEP_STEPS[1], batch, hidden, **like)

    def state(h: torch.Tensor) -> Any:
        return (h, h0) if cell == "lstm" else h

    def forward(steps: int) -> Call:
        def call() -> None:
            with torch.no_grad():
                module(x[:steps], state(h0))

        return call

    def backward(steps: int) -> Call:
        with forced("stepwise" if attempts.hung([f"{found['chosen'].get('forward')} forward"]) else None):
            output = module(x[:steps], state(leaf))[0]
        return lambda: torch.autograd.grad(output, leaf, grad[:steps], retain_graph=True)

    found: dict[str, Any] = {"cell": cell, "dtype": dtype, "hidden": hidden, "batch": batch}
    found["chosen"] = chosen_plans(seqkernels.explain(module, x).kernel)
    for name, pass_of in (("forward", forward), ("backward", backward)):
        found[name] = {}
        for plan in PLANS:
            try:
                attempts.begin([f"{plan} {name}"])
                calls = {steps: pass_of(steps) for steps in SWEEP_STEPS}
                with forced(plan):
                    for call in calls.values():
                        call()
                    rounds = [{steps: clock(call, 2) for steps, call in calls.items()} for _ in range(7)]
            except Hung as error:
                found[name][plan] = {"obstacle": str(error)}
                continue
            except RuntimeError as error:
                refusal = re.search(r"which cannot run this: (.*)", str(error))
                if not refusal:
                    raise
                found[name][plan] = {"obstacle": refusal[1]}
                continue
            found[name][plan] = per_step({s: statistics.median(r[s] for r in rounds) for s in SWEEP_STEPS})
    return found


# ---------------------------------------------------------------- the machine


def ceilings(device: str) -> dict[str, float]:
    """What nothing can surpass: bytes that a copy reads and writes, and operations of a large product."""
    megabytes, size = (2048, 8192) if device != "cpu" else (1, 128)
    clock = wall_clock if device == "cpu" else gpu_clock
    source = torch.randint(0, 256, (megabytes << 20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, size, size, device=device).bfloat16()
    out = torch.empty_like(a)
    for call in (lambda: target.copy_(source), lambda: torch.mm(a, b, out=out)):
        clock(call, 3)
    copied = statistics.median(clock(lambda: target.copy_(source), 2) for _ in range(9))
    multiplied = statistics.median(clock(lambda: torch.mm(a, b, out=out), 2) for _ in range(9))
    return {
        "copy_gb_per_s": 2 * source.numel() / copied / 1e9,
        "matmul_tflops": 2 * size**3 / multiplied / 1e12,
    }


def machine(device: str, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "seqkernels": seqkernels.__version__,
        "quick": quick,
        "gpu": "rehearsal on a CPU",
    }
    if device != "cpu":
        properties: Any = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "shared_bytes": properties.shared_memory_per_block_optin,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
            "driver": output_of(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
            ),
        }
    return found


def output_of(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def commit() -> dict[str, Any]:
    return {
        "id": output_of("git", "rev-parse", "HEAD"),
        "dirty": bool(output_of("git", "status", "--porcelain")),
    }


# ---------------------------------------------------------------- one after another


def case_item(case: Case, device: str, seconds: float) -> Item:
    def measure(attempts: Attempts) -> dict[str, Any]:
        info = measure_case(rehearsed(case) if device == "cpu" else case, device, seconds, attempts)
        return {"name": case.id, "extra_info": info}

    return Item(case.id, f"{case.work} {case.title}", "benchmarks", measure)


def plans_item(cell: str, dtype: str, hidden: int, batch: int, device: str) -> Item:
    return Item(
        f"plans-{cell}-{dtype}-h{hidden}-b{batch}",
        f"plans of {cell.upper()} {dtype} H={hidden} B={batch}",
        "plans",
        lambda attempts: measure_plans(cell, dtype, hidden, batch, device, attempts),
    )


def items(device: str, quick: bool) -> list[Item]:
    """Everything, in order: the most important cases, the plans, the other cases."""
    seconds = 0.02 if device == "cpu" else 0.2 if quick else 0.35
    cases = gpu_cases()
    first = [case_item(case, device, seconds) for case in cases if case.quick]
    rest = [case_item(case, device, seconds) for case in cases if not case.quick]
    plans = [plans_item(*layer, device) for layer in SWEEP]
    if device == "cpu":
        return first[:3] + plans[:1] + rest[-2:]
    return first + plans + rest


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def write(content: Content, path: Path) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def line_of(item: Item, result: dict[str, Any]) -> str:
    """What is printed of it."""
    if item.goes_to == "plans":
        times = [
            f"{name} {plan} {time['us_per_step']:.2f}"
            for name in ("forward", "backward")
            for plan, time in result[name].items()
            if "us_per_step" in time
        ]
        return f"{item.title:58} µs/step: {', '.join(times)}"
    info = result["extra_info"]
    ratios = "  ".join(f"{s['median']:.2f}x {name}" for name, s in info["speedup"].items())
    return f"{item.title:58} {info['us_per_step']:8.2f} µs/step  {ratios}  [{info['plan']}]"


def measure_all(work: list[Item], content: Content, path: Path, seconds: float) -> None:
    """Until the work is done or the time over. `content` gains results, failures and what was left out."""
    deadline = time.monotonic() + seconds
    attempts = Attempts(content, path)
    stopped, hung = content.pop("running", None), content.pop("trying", [])
    if hung:
        content.setdefault("hung", []).append(hung)
    # A set of plans goes on without the one that hung.
    if stopped and not (hung and any(item.id == stopped and item.goes_to == "plans" for item in work)):
        content["failed"].append({"id": stopped, "why": f"crashed, or took more than {STALLED:.0f} s"})
    done = {entry["id"] for name in ("measured", "failed") for entry in content[name]}
    content["left_out"] = []
    slowest = 1.0
    for item in work:
        if item.id in done:
            continue
        if deadline - time.monotonic() < slowest:
            content["left_out"].append(item.title)
            continue
        content["running"] = item.id
        write(content, path)
        faulthandler.dump_traceback_later(STALLED, exit=True)
        began = time.monotonic()
        try:
            result = item.measure(attempts)
            content[item.goes_to].append(result)
            content["measured"].append({"id": item.id, "seconds": round(time.monotonic() - began, 2)})
            print(line_of(item, result), flush=True)
        except Exception as error:
            content["failed"].append({"id": item.id, "why": first_line(error)})
            print(f"{item.title:58} FAILED: {first_line(error)}", flush=True)
            if torch.cuda.is_available():
                give_up_if_broken(content, path)
        finally:
            faulthandler.cancel_dump_traceback_later()
        del content["running"]
        content.pop("trying", None)
        slowest = max(slowest, min(5.0, 0.7 * (time.monotonic() - began)))
    write(content, path)


def give_up_if_broken(content: Content, path: Path) -> None:
    """After a bad access to memory the GPU is of no more use to this process; one that resumes can go on."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        del content["running"]
        content.pop("trying", None)
        write(content, path)
        sys.stdout.flush()
        os._exit(BROKEN)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_timing", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=200.0, help="when to stop (%(default)s)")
    parser.add_argument("--until", type=float, help="when to stop, in seconds since the epoch, instead")
    parser.add_argument("--quick", action="store_true", help="shorter races")
    parser.add_argument("--resume", action="store_true", help="keep what the file has, go on behind it")
    parser.add_argument("--without", action="append", default=[], help="a plan that is known to hang")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    options = parser.parse_args(arguments)

    ends = options.until or time.time() + options.seconds
    content: Content = {"measured": [], "failed": [], "left_out": [], "benchmarks": [], "plans": []}
    if options.resume and options.results.is_file():
        content |= json.loads(options.results.read_text(encoding="utf-8"))
    hung = content.setdefault("hung", [])
    for plan in options.without:
        hung += [[f"{plan} {name}"] for name in ("forward", "backward") if [f"{plan} {name}"] not in hung]
    if "machine_info" not in content:
        limits = ceilings(options.device)
        print("  ".join(f"{name} {value:.0f}" for name, value in limits.items()), flush=True)
        content |= {"machine_info": machine(options.device, options.quick) | limits, "commit_info": commit()}
    work = items(options.device, options.quick)
    measure_all(work, content, options.results, ends - time.time())
    print(
        f"{len(content['benchmarks'])} cases and {len(content['plans'])} sets of plans measured,"
        f" {len(content['failed'])} failed, {len(content['left_out'])} left out for lack of time"
    )
    return SOME_FAILED if content["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
