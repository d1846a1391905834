"""A copy of the project's sources, to be built in another way than the project itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FOLDERS = ("csrc", "seqkernels", "benchmarks", "examples", "tests")
_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


class Tree:
    """The copy in build/NAME; it holds one built extension, as the project does."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / "build" / name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Tests may run in several processes."""
        self.folder.parent.mkdir(exist_ok=True)
        with open(self.folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def update(self, patch: Path | None = None, change: Callable[[Path], None] | None = None) -> None:
        """The sources as they are now, changed by `patch`, and by `change`, which is told their folder."""
        with tempfile.TemporaryDirectory() as folder:
            _copy(Path(folder))
            if change is not None:
                change(Path(folder))
            if patch is not None:
                environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(Path(folder).parent)}
                subprocess.run(["git", "apply", str(patch)], cwd=folder, env=environment, check=True)
            _replace_what_differs(Path(folder), self.folder)

    def environment(self, **variables: str) -> dict[str, str]:
        """What a process gets that is to use the copy."""
        return {**os.environ, "PYTHONPATH": str(self.folder), "SEQKERNELS_CPU_ISA": "", **variables}

    def run(self, *arguments: str, **variables: str) -> str:
        """What `python ARGUMENTS` prints there."""
        command = [sys.executable, *arguments]
        environment = self.environment(**variables)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout


def _copy(folder: Path) -> None:
    """The project's sources, without what is built of them."""
    leave = shutil.ignore_patterns("__pycache__", "*.so", "results")
    for name in _FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in _FILES:
        shutil.copy(ROOT / name, folder / name)


def _replace_what_differs(source: Path, target: Path) -> None:
    """Only files that are new or have changed, for all that depends on them is compiled again."""
    for path in source.rglob("*"):
        to = target / path.relative_to(source)
        if path.is_file() and not (to.is_file() and to.read_bytes() == path.read_bytes()):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
