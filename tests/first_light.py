"""First light of one plan on a GPU: small layers against float64, then long ones against themselves.

Some of the small ones have all options of the recurrence.

    python -m tests.first_light persistent_cluster

A line of JSON for each layer and pass: the largest error of any result, as multiples of the tolerance of its
dtype, and a digest of all results, to compare builds by. `benchmarks.gpu` gives each plan a process of its
own and a limit: a plan that hangs takes nobody along.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu_output import PLANS
from tests.conftest import TOLERANCES, error_of, set_tf32
from tests.problems import CELLS, OPTIONS, Problem

DTYPES = {
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
    "float64": torch.float64,
}
# T, B, I, H, directions
SMALL = [(5, 9, 16, 64, 2), (4, 16, 16, 256, 1), (4, 20, 16, 512, 1), (3, 40, 16, 1024, 1)]
LONG = [(1500, 24, 16, 256, 1), (600, 16, 16, 1024, 1)]
REPEATS = 3  # of a long layer: all must give the same bits


@contextlib.contextmanager
def forced(plan: str) -> Iterator[None]:
    os.environ["SEQKERNELS_CUDA_PLAN"] = plan
    try:
        yield
    finally:
        del os.environ["SEQKERNELS_CUDA_PLAN"]


class Refused(Exception):
    """The plan cannot run this layer, and says why."""


def run(problem: Problem, plan: str, which: str) -> dict[str, Tensor]:
    """All results; one pass is run by the plan, the other by whatever is best."""
    try:
        with torch.no_grad():
            with forced(plan if which == "forward" else "stepwise"):
                forward = problem.forward()
            with forced(plan if which == "backward" else "stepwise"):
                grads = problem.backward(forward)
            if problem.device != "cpu":
                torch.cuda.synchronize()
    except RuntimeError as error:
        if "which cannot run this" in str(error):
            raise Refused(str(error).split("which cannot run this: ")[-1]) from None
        raise
    return problem._named(forward, grads)


def small(problem: Problem, plan: str, which: str, tolerance: float) -> dict[str, float | str]:
    actual = run(problem, plan, which)
    expected = problem.expected(kinks=actual["output"])
    errors = {name: error_of(actual[name], expected[name]) / tolerance for name in expected}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return {"error": errors[worst], "worst": worst, "digest": digest(actual)}


def digest(results: dict[str, Tensor]) -> str:
    """Of all bits, name by name."""
    hashed = hashlib.sha256()
    for name in sorted(results):
        hashed.update(results[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]


def long(problem: Problem, plan: str, which: str) -> dict[str, float | str]:
    first = run(problem, plan, which)
    different = [
        name
        for _ in range(REPEATS)
        for name, tensor in run(problem, plan, which).items()
        if not torch.equal(tensor, first[name])
    ]
    finite = all(bool(tensor.isfinite().all()) for tensor in first.values())
    error = 0.0 if finite and not different else float("inf")
    return {"error": error, "worst": ", ".join(sorted(set(different))), "digest": digest(first)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.first_light", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--until", type=float, default=float("inf"), help="in seconds since the epoch")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a rehearsal")
    parser.add_argument("--results", type=Path, help="a file to append the lines to, as they come")
    options = parser.parse_args()

    def say(entry: dict[str, object]) -> None:
        print(json.dumps(entry), flush=True)
        if options.results:
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    cells = [cell for cell in CELLS if cell != "rnn_relu"]  # which is as rnn_tanh
    layers = [(sizes, dtype, cell, ()) for sizes in SMALL for cell in cells for dtype in DTYPES]
    layers += [(sizes, dtype, cell, OPTIONS) for sizes in SMALL[::3] for cell in cells for dtype in DTYPES]
    layers += [
        (sizes, dtype, cell, ())
        for sizes in LONG
        for dtype in ("bfloat16", "tf32")
        for cell in ("lstm", "gru")
    ]
    failed = 0
    for sizes, dtype, cell, asked in layers:
        if time.time() > options.until:
            say({"plan": options.plan, "left_out": "no time was left"})
            break
        set_tf32(dtype == "tf32")
        for which in ("forward", "backward"):
            problem = Problem(cell, *sizes, dtype=DTYPES[dtype], device=options.device, asked=asked)
            entry = {"plan": options.plan, "cell": cell, "dtype": dtype, "pass": which, "sizes": sizes}
            entry["asked"] = list(asked)
            say(entry | {"trying": True})
            try:
                if sizes in LONG:
                    entry |= long(problem, options.plan, which)
                else:
                    tolerance = TOLERANCES["tf32" if dtype == "tf32" else DTYPES[dtype]]
                    entry |= small(problem, options.plan, which, tolerance)
                good = float(entry["error"]) <= 1  # type: ignore[arg-type]
            except Refused as refusal:
                entry["refused"], good = str(refusal), True
            except Exception as error:
                entry["failed"], good = str(error).strip().splitlines()[0][:300], False
            failed += not good
            say(entry)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
