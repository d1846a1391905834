from __future__ import annotations

import argparse

import torch

from tests.emulator.layer import Partition
from tests.emulator.traffic import __doc__ as description
from tests.emulator.traffic import costs
from tests.problems import CELLS, Problem

parser = argparse.ArgumentParser(
    prog="python -m tests.emulator.traffic", description=(description or "").split("\n")[0]
)
parser.add_argument("cell", choices=CELLS)
parser.add_argument("dtype", choices=("float32", "tf32", "bfloat16", "float16"))
parser.add_argument("plan", choices=("stepwise", "cluster", "grid"))
parser.add_argument("--hidden", type=int, default=64)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--partition", default="2,2,8,1")
parser.add_argument("--all", action="store_true", help="places without excess, too")
options = parser.parse_args()

tf32 = options.dtype == "tf32"
dtype = torch.float32 if tf32 else getattr(torch, options.dtype)
problem = Problem(options.cell, options.steps, options.batch, 2, options.hidden, 1, True, None, dtype)
partition = None if options.plan == "stepwise" else Partition(*map(int, options.partition.split(",")))
print("   excess      cost     least  accesses  bytes memory")
for cost in costs(problem, options.plan, partition, tf32=tf32):
    if cost.excess > 0 or options.all:
        kind = f"{cost.memory} {'store' if cost.is_store else 'load'}"
        numbers = (cost.excess, cost.cost, cost.least, cost.accesses)
        print(" ".join(f"{number:9}" for number in numbers), f"{cost.bytes:6} {kind:13} {cost.place}")
