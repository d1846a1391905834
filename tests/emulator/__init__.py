"""Builds and runs programs of CUDA kernels' source on the emulator, for the kernels' tests and its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
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
  command = {compiler} $flags -I$csrc/cuda -O1 $sanitize -MMD -MF $out.d -x c++ -c $in -o $out
  depfile = $out.d
rule program
  command = {compiler} $sanitize $in -o $out
"""


def build(
    source: Path, *kernels: Path, sanitize: bool = False, csrc: Path = _ROOT / "csrc", variant: str = ""
) -> Path:
    """The program of `source`, `kernels` and the emulator, with ThreadSanitizer if `sanitize`.

    `csrc` is where `kernels` include from; with a `variant`, they are not the project's own.
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
    for file, root in [(source, _ROOT / "csrc"), *((kernel, csrc) for kernel in kernels)]:
        folder = f"{variant}/" if root != _ROOT / "csrc" else ""
        objects.append(f"{folder}{file.stem}_{instrumentation}.o")
        lines.append(f"build {objects[-1]}: kernels {file.resolve()}{option}\n  csrc = {root}")
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
