"""Builds and runs programs of CUDA kernels' source on the emulator, for the kernels' tests and its own."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
CSRC = _ROOT / "csrc"
BUILD = _ROOT / "build" / "emulator"
_PROGRAMS = ("selftest", "kernels")  # the other files here are the emulator, part of every program

# The emulator itself is never instrumented: what it does between fibers is no access of theirs. Objects are
# for programs and for a library that is loaded beside the product.
_RULES = """\
warnings = -Wall -Wextra -Wno-parentheses -Wno-missing-field-initializers -Werror
flags = -std=c++20 -g1 -fPIC -fvisibility=hidden $warnings -DSEQKERNELS_EMULATED -I{root}/tests/emulator
rule emulator
  command = {compiler} $flags -I{root}/csrc/cuda -O2 -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule kernels
  command = {compiler} $flags -I$csrc/cuda -O1 $sanitize $options -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
rule program
  command = {compiler} $sanitize $in -o $out
"""
_SANITIZE = "-fsanitize=thread"
ROWS = ("rows", CSRC / "cuda" / "rows.cu", "")  # as those of `kernels`: those of every cell

# The element type of each sort of numbers, and what persistent kernels multiply (csrc/cuda/kernels.cuh).
_TYPES = {
    "float32": "float, float",
    "tf32": "float, TFloat32",
    "bfloat16": "BFloat16, BFloat16",
    "float16": "Float16, Float16",
}
_DTYPES = {"float32": "Float32", "tf32": "Float32", "bfloat16": "BFloat16", "float16": "Float16"}
_SOME_KERNELS = """\
#include <stdexcept>

#include "../cells/registry.h"
#include "kernels.cuh"

namespace seqkernels::cuda {{

template <>
const CellKernels& kernels_of<cells::{cell}>(DType dtype, bool tf32) {{
{body}
}}

}}  // namespace seqkernels::cuda
"""


def registry(csrc: Path = CSRC) -> dict[str, str]:
    """The struct of every cell, by the cell's name."""
    text = (csrc / "cells" / "registry.h").read_text(encoding="utf-8")
    structs = re.search(r"^using Registry = CellList<([\w\s,]+)>;", text, re.MULTILINE)[1].split(",")  # type: ignore[index]
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", s.strip()).lower(): s.strip() for s in structs}


def kernels(cells: Sequence[str], csrc: Path = CSRC, file: str = "cell.cu") -> list[tuple[str, Path, str]]:
    """(name, source, options) of what is to be compiled of the kernels of some cells: those in a file."""
    structs, name = registry(csrc), file.removesuffix(".cu").removeprefix("cell")
    return [
        (f"{cell}{name}", csrc / "cuda" / file, f"-DSEQKERNELS_CELL={structs[cell]}")
        for cell in sorted(cells)
    ]


def some_kernels(cell: str, numbers: Sequence[str]) -> str:
    """What compiles faster than cell.cu: the kernels of a cell, by its struct, for some sorts of numbers."""
    made = [
        f"  static const CellKernels of_{name} = both_passes<cells::{cell}, {_TYPES[name]}>();"
        for name in numbers
    ]
    chosen = [
        f"  if (dtype == DType::k{_DTYPES[name]} && tf32 == {str(name == 'tf32').lower()}) return of_{name};"
        for name in numbers
    ]
    body = "\n".join([*made, *chosen, '  throw std::invalid_argument("no kernels of that element type");'])
    return _SOME_KERNELS.format(cell=cell, body=body)


def emulator_objects() -> tuple[list[str], list[str]]:
    """The lines of ninja, from the first on, that make the emulator's objects, and their names."""
    paths = [path for path in sorted(_HERE.glob("*.cpp")) if path.stem not in _PROGRAMS]
    rules = _RULES.format(root=_ROOT, compiler=os.environ.get("CXX", "c++"))
    names = [f"{path.stem}.o" for path in paths]
    return [
        rules,
        *(f"build {name}: emulator {path}" for name, path in zip(names, paths, strict=True)),
    ], names


def objects(
    parts: Sequence[tuple[str, Path, str]], *, csrc: Path = CSRC, sanitize: bool = False, folder: str = ""
) -> tuple[list[str], list[str]]:
    """Further lines, that make objects of `parts` in a folder, and the names of these."""
    names = [f"{folder}/" * bool(folder) + f"{name}_{_suffix(sanitize)}.o" for name, _, _ in parts]
    variables = f"  csrc = {csrc}\n  sanitize = {_SANITIZE * sanitize}"
    lines = [
        f"build {name}: kernels {path.resolve()}\n{variables}\n  options = {options}"
        for name, (_, path, options) in zip(names, parts, strict=True)
    ]
    return lines, names


def _suffix(sanitize: bool) -> str:
    return "sanitized" if sanitize else "plain"


def build(
    source: Path,
    cells: Sequence[str] = (),
    *,
    numbers: Sequence[str] = (),
    sanitize: bool = False,
    csrc: Path = CSRC,
    variant: str = "",
) -> Path:
    """The program of `source`, the kernels of `cells` and the emulator, with ThreadSanitizer if `sanitize`.

    The kernels are those of all element types, or of some sorts of numbers: "float32", "tf32", "bfloat16",
    "float16". `csrc` is where they are and include from; with a `variant`, they are not the project's own.
    """
    folder = variant or "_".join(numbers)
    parts = kernels(cells, csrc)
    if numbers:
        parts = [(name, BUILD / folder / f"{name}.cu", "") for name, _, _ in parts]
        for name, path, _ in parts:
            write(path, some_kernels(registry(csrc)[name], numbers))
    own = [(source.stem, source, ""), *([ROWS] if cells else [])]
    lines, names = emulator_objects()
    for of, tree, where in ((own, CSRC, ""), (parts, csrc, folder)):
        more_lines, more_names = objects(of, csrc=tree, sanitize=sanitize, folder=where)
        lines, names = lines + more_lines, names + more_names
    program = "_".join(filter(None, (source.stem, folder, _suffix(sanitize))))
    rule = f"build {program}: program {' '.join(names)}\n  sanitize = {_SANITIZE * sanitize}"
    return make(program, [*lines, rule])


def write(path: Path, text: str) -> None:
    """Only if it changes, for what depends on it would be compiled again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make(program: str, lines: Sequence[str]) -> Path:
    """Follows the lines of ninja that make `program` in BUILD."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = BUILD / f"{program}.ninja"
        plan.write_text("\n".join([*lines, ""]))
        ninja = shutil.which("ninja") or "ninja"
        done = subprocess.run([ninja, "-C", str(BUILD), "-f", plan.name], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{program} does not compile:\n{done.stdout}{done.stderr}")
    return BUILD / program


def run(program: Path, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs it; ThreadSanitizer ends it with status 66 at its first report."""
    options = "halt_on_error=1 atexit_sleep_ms=0 history_size=1"
    return subprocess.run(
        [str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "TSAN_OPTIONS": options},
    )
