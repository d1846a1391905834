"""A tree with one cell more than the project has: the minimal gated unit, as mgu.diff adds it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIFF = Path(__file__).with_name("mgu.diff")
TREE = ROOT / "build" / "extra_cell"
_PARTS = ("csrc", "seqkernels", "benchmarks", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def build() -> Path:
    """The tree, with its extension for baseline CPUs compiled in place."""
    TREE.parent.mkdir(exist_ok=True)
    with open(TREE.parent / "extra_cell.lock", "w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory() as folder:
            _copy(Path(folder))
            command = ["git", "apply", str(DIFF)]
            environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(Path(folder).parent)}
            subprocess.run(command, cwd=folder, env=environment, check=True)
            _update(Path(folder))
        options = {"SEQKERNELS_WITH_CUDA": "0", "SEQKERNELS_TEST_KERNELS": "0"}
        options |= {"SEQKERNELS_CPU_TARGETS": "baseline", "CXXFLAGS": "-O0"}
        run("setup.py", "-q", "build_ext", "--inplace", **options)
    return TREE


def run(*arguments: str, **environment: str) -> str:
    """What `python ARGUMENTS` prints there."""
    variables = {**os.environ, "PYTHONPATH": str(TREE), "SEQKERNELS_CPU_ISA": "", **environment}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=TREE, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _copy(folder: Path) -> None:
    """The project's sources, without what is built of them."""
    leave = shutil.ignore_patterns("__pycache__", "*.so", "results")
    for name in _PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=leave)
        else:
            shutil.copy(source, folder / name)


def _update(folder: Path) -> None:
    """Only files that are new or have changed, for all that depends on them is compiled again."""
    for path in folder.rglob("*"):
        to = TREE / path.relative_to(folder)
        if path.is_file() and not (to.is_file() and to.read_bytes() == path.read_bytes()):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
