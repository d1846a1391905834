"""What the CUDA kernels' accesses cost shared and global memory, place by place: see traffic.cpp.

    python -m tests.emulator.traffic lstm bfloat16 cluster --hidden 256 --batch 16 --partition 8,2,8,1

A partition is members, unit groups, columns and column tiles.
"""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests import emulator
from tests.emulator import layer
from tests.emulator.layer import Partition
from tests.problems import CELLS, Problem

KINDS = {"s": "shared", "p": "peer", "g": "global"}
_HERE = Path(__file__).parent
_RULES = """\
flags = -std=c++20 -g -O2 -DSEQKERNELS_EMULATED -I{root}/tests/emulator -I{root}/csrc/cuda
plain = -fno-threadsafe-statics -fno-tree-sra
reports = -fsanitize=thread --param tsan-distinguish-volatile=1 -Wno-tsan $plain
rule emulator
  command = {compiler} $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule kernels
  command = {compiler} $flags $reports $cell -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
rule program
  command = {compiler} -no-pie $in -o $out
"""


@dataclass(frozen=True)
class Cost:
    """Of one place in the code, all steps and blocks together."""

    memory: str  # "shared", "peer" (another block's shared memory) or "global"
    is_store: bool
    bytes: int  # of a lane
    accesses: int  # of whole warps
    cost: int  # wavefronts of shared memory; else sectors of 32 bytes
    least: int
    place: str

    @property
    def excess(self) -> int:
        return self.cost - self.least


def program() -> Path:
    sources = [path for path in _HERE.parent.glob("*.cpp") if path.stem not in ("selftest", "kernels")]
    parts = [("emulator", path.stem, path, "") for path in (*sources, _HERE / "traffic.cpp")]
    parts += [("kernels", "driver", layer.DRIVER, "")]
    parts += [("kernels", *part) for part in (emulator.ROWS, *emulator.kernels(list(CELLS)))]
    objects = [f"traffic/{name}.o" for _, name, _, _ in parts]
    lines = [f"build traffic/{name}.o: {rule} {path}\n  cell = {cell}" for rule, name, path, cell in parts]
    root = _HERE.parents[2]
    rules = _RULES.format(root=root, compiler=os.environ.get("CXX", "c++"))
    lines.append(f"build traffic_program: program {' '.join(objects)}\n")
    return emulator.make("traffic_program", [rules, *lines])


def costs(problem: Problem, plan: str, partition: Partition | None, *, tf32: bool = False) -> list[Cost]:
    """Of both passes, the most excess first."""
    driver = program()
    outcome = layer.run(driver, problem, plan, partition, tf32=tf32)
    if outcome.status != 0:
        raise RuntimeError(outcome.errors)
    lines = [line.split()[3:] for line in outcome.kernels if " traffic " in line]
    places = _places(driver, [line[0] for line in lines])
    together: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for code, kind, size, *numbers in lines:
        total = together[places[code], kind, size]
        for n, number in enumerate(numbers):
            total[n] += int(number)
    found = [
        Cost(KINDS[kind.lower()], kind.isupper(), int(size), accesses, cost, least, place)
        for (place, kind, size), (accesses, cost, least) in together.items()
    ]
    return sorted(found, key=lambda cost: (-cost.excess, -cost.cost))


def _places(binary: Path, codes: list[str]) -> dict[str, str]:
    """The lines of csrc that each address was inlined through, innermost first."""
    places = {}
    tool = ["addr2line", "-e", str(binary), "-i", "-a"]
    for code in codes:  # a return address: the call is before it
        done = subprocess.run([*tool, hex(int(code, 16) - 1)], capture_output=True, text=True, check=True)
        frames = [Path(line.split(" ")[0]).name for line in done.stdout.splitlines()[1:] if "/csrc/" in line]
        places[code] = " < ".join(frames[:4]) or "the driver"
    return places
