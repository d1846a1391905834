"""Builds the CPU kernels with a sanitizer of the compiler, and runs tests with them.

    python -m tests.sanitizers address             AddressSanitizer and UndefinedBehaviorSanitizer
    python -m tests.sanitizers thread              ThreadSanitizer
    python -m tests.sanitizers address -k lstm     arguments for pytest

An access outside of a tensor, undefined behaviour or a data race ends the process with a report.
ThreadSanitizer knows nothing of the barriers of OpenMP, from which torch's pool of threads is made; so its
tests run in a forked process, where a team is made of threads that are started for a call.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass

from .tree import Tree


@dataclass(frozen=True)
class Sanitizer:
    flags: str
    libraries: tuple[str, ...]  # of the compiler, to be loaded before Python itself
    options: dict[str, str]
    tests: tuple[str, ...]
    forked: bool = False
    suppressions: str = ""  # of reports on code that is not ours, compiled without the sanitizer


# Leaks are not looked for: Python, and what is made once for the life of the process, never gives all back.
SANITIZERS = {
    "address": Sanitizer(
        # What is left out is asked at every access, which doubles the time to compile.
        "-fsanitize=address,undefined -fno-sanitize=null,alignment,object-size,vptr"
        " -fno-sanitize-recover=undefined",
        ("libasan.so", "libubsan.so"),
        {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
        (
            "tests/test_memory.py",
            "tests/test_ops.py",
            "tests/test_recurrence.py",
            "tests/test_single_steps.py",
            "tests/test_fastpath.py",
            "tests/test_frozen.py",
        ),
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        ("libtsan.so",),
        {"TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1:exitcode=66"},
        ("tests/test_threads.py", "-k", "lstm and (threads or runs or fork)"),
        forked=True,
        suppressions="race:libtorch_cpu.so\nrace:libtorch_python.so\nrace:libgomp.so\n",
    ),
}
IN_A_FORK = """
import os, sys
import pytest, seqkernels
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
assert seqkernels._C.process_was_forked()
status = pytest.main(sys.argv[1:])
sys.stdout.flush()
os._exit(status)
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sanitizers", description="Run tests with a sanitizer."
    )
    parser.add_argument("sanitizer", choices=SANITIZERS)
    options, pytest_arguments = parser.parse_known_args()
    sanitizer, tree = SANITIZERS[options.sanitizer], Tree(f"sanitized_{options.sanitizer}")
    tree.update()
    flags = f"{sanitizer.flags} -O1 -g1 -fno-omit-frame-pointer"
    build = {"SEQKERNELS_WITH_CUDA": "0", "SEQKERNELS_CPU_TARGETS": "avx2", "SEQKERNELS_TEST_KERNELS": "0"}
    tree.run("setup.py", "-q", "build_ext", "--inplace", CXXFLAGS=flags, LDFLAGS=sanitizer.flags, **build)
    compiler = os.environ.get("CXX", "g++")
    preload = [
        subprocess.check_output([compiler, f"-print-file-name={library}"], text=True).strip()
        for library in sanitizer.libraries
    ]
    start = ["-c", IN_A_FORK] if sanitizer.forked else ["-m", "pytest"]
    tests = [] if any(argument.startswith("tests/") for argument in pytest_arguments) else sanitizer.tests
    quietly = ["-q", "-pno:cacheprovider", "--capture=sys"]  # a report is the process's own, not a test's
    command = [sys.executable, *start, *quietly, *tests, *pytest_arguments]
    variables = dict(sanitizer.options)
    if sanitizer.suppressions:
        file = tree.folder / "suppressions"
        file.write_text(sanitizer.suppressions, encoding="utf-8")
        variables = {name: f"{value}:suppressions={file}" for name, value in variables.items()}
    environment = tree.environment(LD_PRELOAD=":".join(preload), **variables)
    return subprocess.run(command, cwd=tree.folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
