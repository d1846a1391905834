"""Puts the mutants of mutants/ into a copy of the kernels, and says which tests find each of them.

    python -m tests.mutate                       all of them
    python -m tests.mutate bias_tail grad_h0     those

All mutants are in one build: each is a condition on a number that the environment gives, so a mutant costs no
more than the tests that look for it. Tests with each dtype and on each instruction set that it concerns must
find it; where they do not, the exit status is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .mutants import MUTANTS, Mutant
from .tree import Tree

VARIABLE = "SEQKERNELS_MUTANT"
# The kernels of two instruction sets, with masks for tails and without, and of two emulated for bfloat16.
BUILD = {"SEQKERNELS_WITH_CUDA": "0", "SEQKERNELS_CPU_TARGETS": "avx512", "CXXFLAGS": "-O1"}
SWITCH = f"""
#include <stdlib.h>
namespace seqkernels {{
inline const int mutant = [] {{
  const char* const number = getenv("{VARIABLE}");
  return number ? atoi(number) : -1;
}}();
}}
"""
# Prints the instruction sets of the build that this CPU can run.
ISAS = "from seqkernels import _C; from tests import kernels; print(*_C.cpu_isas(), *kernels.EMULATED)"
# Which every kernel includes.
SWITCH_FILE, SWITCH_AFTER = "cells/cell.h", "#pragma once\n"


@dataclass
class Found:
    """The tests that a mutant fails."""

    tests: int = 0
    failed: int = 0
    ended: str = ""  # how a process did that did not come to its end
    seconds: float = 0
    where: set[tuple[str, str]] = field(default_factory=set)  # dtypes and instruction sets

    def __str__(self) -> str:
        count = f"{self.failed} of {self.tests} tests fail, in {self.seconds:.0f} s"
        return f"{self.ended or count}: {listed(self.where)}"


def listed(where: set[tuple[str, str]]) -> str:
    """float32 on avx512, baseline; ..."""
    dtypes = sorted({dtype for dtype, _ in where})
    isas = [", ".join(sorted(isa for d, isa in where if d == dtype)) for dtype in dtypes]
    return "; ".join(f"{dtype} on {names}" for dtype, names in zip(dtypes, isas, strict=True))


def mutated(text: str, mutants: dict[int, Mutant]) -> str:
    """The source of a file with the mutants in it, each by its number."""
    spans = []
    for number, mutant in mutants.items():
        before, replaced, after = re.split("[«»]", mutant.text)
        around = before + replaced + after
        if text.count(around) != 1:
            sys.exit(f"{mutant.name}: {mutant.file} has {text.count(around)} times: {around}")
        start = text.index(around) + len(before)
        new = f"(::seqkernels::mutant == {number} ? ({mutant.instead}) : ({replaced}))"
        spans.append((start, start + len(replaced), new))
    for start, end, new in sorted(spans, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def with_mutants(csrc: Path) -> None:
    """Puts all mutants into the sources in a folder."""
    files: dict[str, dict[int, Mutant]] = defaultdict(dict)
    for number, mutant in enumerate(MUTANTS):
        files[mutant.file][number] = mutant
    for name, mutants in files.items():
        path = csrc / name
        path.write_text(mutated(path.read_text(encoding="utf-8"), mutants), encoding="utf-8")
    path = csrc / SWITCH_FILE
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(SWITCH_AFTER, SWITCH_AFTER + SWITCH), encoding="utf-8")


def run(tree: Tree, tests: tuple[str, ...], number: int | None) -> Found:
    """What the tests say of a mutant."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "-pno:cacheprovider", *tests]
    environment = tree.environment(**{VARIABLE: str(-1 if number is None else number)})
    done = subprocess.run(command, cwd=tree.folder, env=environment, capture_output=True, text=True)
    found = Found()
    if done.returncode not in (0, 1):
        found.ended = f"the tests ended with {done.returncode}"
    for line in done.stdout.splitlines():
        if test := re.match(r"(?:FAILED|ERROR) (.*?)(?: - |$)", line):
            found.failed += 1
            dtype, isa = re.search(r"(?<![a-z])b?float\d+", test[1]), re.search(r"cpu/(\w+)", test[1])
            if dtype and isa:
                found.where.add((dtype[0], isa[1]))
        elif summary := re.search(r"in ([\d.]+)s", line):
            found.seconds = float(summary[1])
            found.tests = sum(int(n) for n in re.findall(r"(\d+) (?:passed|failed)", line))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description="Which tests find mistakes.")
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="which mutants; all by default")
    names = parser.parse_args().names or [mutant.name for mutant in MUTANTS]
    numbers = {mutant.name: number for number, mutant in enumerate(MUTANTS)}
    if unknown := set(names) - numbers.keys():
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    tree = Tree("mutants")
    tree.update(change=lambda folder: with_mutants(folder / "csrc"))
    tree.run("setup.py", "-q", "build_ext", "--inplace", **BUILD)
    isas = set(tree.run("-c", ISAS).split())
    for tests in dict.fromkeys(MUTANTS[numbers[name]].tests for name in names):
        right = run(tree, tests, None)
        if right.failed or right.ended or not right.tests:
            print(f"without a mutant, {' '.join(tests)}: {right.failed} failed. {right.ended}")
            return 1
    missed = []
    for name in names:
        mutant = MUTANTS[numbers[name]]
        found = run(tree, mutant.tests, numbers[name])
        print(f"{name}: {found}", flush=True)
        lacks = {(dtype, isa) for dtype, isa in mutant.where - found.where if isa in isas}
        if lacks:
            missed.append(name)
            print(f"  {mutant.breaks} Not found with {listed(lacks)}.", flush=True)
    print(f"{len(names) - len(missed)} of {len(names)} mutants are found wherever they can be")
    return len(missed) > 0


if __name__ == "__main__":
    sys.exit(main())
