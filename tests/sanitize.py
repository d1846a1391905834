"""Every plan, cell and dtype once, on tiny shapes: the program that compute-sanitizer looks at.

    compute-sanitizer --tool racecheck python -m tests.sanitize

It is slow there, so it checks no results, and after the time `--until` begins nothing new.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time

import torch

from .problems import CELLS, Problem

# The quickest to find something first: exchanges between blocks, then what a block does alone.
PLANS = ("persistent_cluster", "persistent_grid", "persistent_block", "stepwise")
DTYPES = {
    "float16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float64": torch.float64,
}
# H, B, directions, lengths; T = 3
SHAPES = [(100, 9, 2, [3, 3, 3, 2, 2, 1, 1, 1, 1]), (256, 17, 1, None)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description="for compute-sanitizer")
    parser.add_argument("--until", type=float, default=float("inf"), help="in seconds since the epoch")
    parser.add_argument("--without", action="append", default=[], choices=PLANS, help="a plan to leave out")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    plans = [plan for plan in PLANS if plan not in options.without]
    combinations = list(itertools.product(DTYPES, SHAPES, CELLS, plans))
    for n, (dtype, (hidden, batch, directions, lengths), cell, plan) in enumerate(combinations):
        if time.time() > options.until:
            print(f"left out for lack of time: {len(combinations) - n} of {len(combinations)} combinations")
            break
        os.environ["SEQKERNELS_CUDA_PLAN"] = plan
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        problem = Problem(
            cell, 3, batch, 8, hidden, directions, lengths=lengths, dtype=DTYPES[dtype], device=options.device
        )
        what = f"{plan} {cell} {dtype} H={hidden} B={batch}"
        try:
            problem.run()
        except RuntimeError as error:
            if "which cannot run this" not in str(error):
                raise
            print(f"cannot run {what}", flush=True)
        else:
            if options.device != "cpu":
                torch.cuda.synchronize()
            print(f"ran {what}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
