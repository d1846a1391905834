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

# The emulator itself is never instrumented: what it does between fibers is no access of theirs.
_RULES = """\
warnings = -Wall -Wextra -Wno-parentheses -Wno-missing-field-initializers -Werror
flags = -std=c++20 -g $warnings -DSEQKERNELS_EMULATED -I{root}/tests/emulator
rule emulator
  command = {compiler} $flags -I{root}/csrc/cuda -O2 -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule kernels
  command = {compiler} $flags -I$csrc/cuda -O1 $sanitize $cell -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
rule program
  command = {compiler} $sanitize $in -o $out
"""


def registry(csrc: Path = CSRC) -> dict[str, str]:
    """The struct of every cell, by the cell's name."""
    text = (csrc / "cells" / "registry.h").read_text(encoding="utf-8")
    structs = re.search(r"^using Registry = CellList<([\w\s,]+)>;", text, re.MULTILINE)[1].split(",")  # type: ignore[index]
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", s.strip()).lower(): s.strip() for s in structs}


def kernels(cells: Sequence[str], csrc: Path = CSRC) -> list[tuple[str, Path, str]]:
    """(name, source, options) of what is to be compiled of the kernels for some cells."""
    structs = registry(csrc)
    parts = [("rows", csrc / "cuda" / "rows.cu", "")]
    return parts + [
        (cell, csrc / "cuda" / "cell.cu", f"-DSEQKERNELS_CELL={structs[cell]}") for cell in sorted(cells)
    ]


def build(
    source: Path,
    cells: Sequence[str] = (),
    *,
    sanitize: bool = False,
    csrc: Path = CSRC,
    variant: str = "",
) -> Path:
    """The program of `source`, the kernels of `cells` and the emulator, with ThreadSanitizer if `sanitize`.

    `csrc` is where the kernels are and include from; with a `variant`, they are not the project's own.
    """
    instrumentation = "sanitized" if sanitize else "plain"
    program = f"{source.stem}_{variant}{'_' if variant else ''}{instrumentation}"
    lines = [_RULES.format(root=_ROOT, compiler=os.environ.get("CXX", "c++"))]
    objects = []
    for part in sorted(_HERE.glob("*.cpp")):
        if part.stem not in _PROGRAMS:
            objects.append(f"{part.stem}.o")
            lines.append(f"build {part.stem}.o: emulator {part}")
    option = f"\n  sanitize = {'-fsanitize=thread' if sanitize else ''}"
    parts = [(source.stem, source, "", CSRC)]
    parts += [(*part, csrc) for part in (kernels(cells, csrc) if cells else [])]
    for name, file, cell, root in parts:
        folder = f"{variant}/" if root != CSRC else ""
        objects.append(f"{folder}{name}_{instrumentation}.o")
        variables = f"{option}\n  csrc = {root}\n  cell = {cell}"
        lines.append(f"build {objects[-1]}: kernels {file.resolve()}{variables}")
    lines.append(f"build {program}: program {' '.join(objects)}{option}\n")
    return make(program, "\n".join(lines))


def make(program: str, rules: str) -> Path:
    """Follows the rules of ninja that make `program` in BUILD."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = BUILD / f"{program}.ninja"
        plan.write_text(rules)
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
