"""What is built: a library without Python, a small module for each Python, wheels of them (wheels.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

from seqkernels._extension import _C, LIBRARY
from tests import wheels

ROOT = Path(__file__).parents[1]
elf = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("readelf") and shutil.which("nm")), reason="needs binutils"
)


def printed(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def needed(binary: object) -> list[str]:
    """The libraries that a binary is linked with."""
    lines = printed("readelf", "--dynamic", binary).splitlines()
    return [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]


@elf
def test_the_library_knows_no_python() -> None:
    assert not any("python" in name for name in needed(LIBRARY))
    assert {"libtorch.so", "libtorch_cpu.so"} <= set(needed(LIBRARY))
    undefined = printed("nm", "--dynamic", "--undefined-only", LIBRARY)
    assert not [line for line in undefined.splitlines() if " Py" in line or " _Py" in line]


@elf
def test_the_module_is_small_and_knows_no_torch() -> None:
    assert not any("torch" in name or "c10" in name for name in needed(_C.__file__))
    assert LIBRARY.name in needed(_C.__file__)
    assert Path(_C.__file__).stat().st_size < LIBRARY.stat().st_size / 10


@elf
def test_the_library_shows_what_is_marked() -> None:
    """What others may call says so (csrc/api.h); of the standard library's templates everybody has a copy."""
    lines = printed("nm", "--dynamic", "--defined-only", "--demangle", LIBRARY).splitlines()
    shown = {line.split(" ", 2)[2] for line in lines if line.split(" ", 2)[1] in "TBD"}
    ours = {name.split("(")[0].split("[")[0] for name in shown if name.startswith("seqkernels::")}
    marked = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "csrc").rglob("*.h") if path.name != "api.h"
    )
    declared = [line for line in marked.splitlines() if "SEQKERNELS_API" in line]
    assert ours
    for name in ours:
        first, *_, last = [*name.removeprefix("seqkernels::").removeprefix("cuda::").split("::")] * 2
        assert any(first in line or last in line for line in declared), name
    assert not {name for name in shown if name.startswith(("cuda", "cu"))}, (
        "CUDA's runtime is for this library alone"
    )


def test_the_library_alone_has_the_ops() -> None:
    """A program that runs exported models loads it without this package, whose Python it does not need."""
    code = f"import torch; torch.ops.load_library({str(LIBRARY)!r}); print(torch.ops.seqkernels.gru)"
    assert "seqkernels.gru" in printed(sys.executable, "-c", code)


def test_a_python_that_there_is_not() -> None:
    command, message = "/nowhere/python3.12", "'/nowhere/python3.12' is no Python that runs here"
    environment = {**os.environ, "SEQKERNELS_PYTHONS": command}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(
    ("address", "printed_urls"),
    [
        ("https://example.org/a/b/", "Issues, https://example.org/a/b/issues"),
        ("example.org/a", "must be https://HOST/OWNER/NAME, got 'example.org/a'"),
    ],
)
def test_the_address_of_the_repository(address: str, printed_urls: str, tmp_path: Path) -> None:
    environment = {**os.environ, "SEQKERNELS_REPOSITORY": address}
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    (metadata,) = [*tmp_path.glob("*/PKG-INFO")] or [None]
    assert printed_urls in done.stderr + (metadata.read_text(encoding="utf-8") if metadata else "")


def test_the_build_says_that_torch_is_missing(tmp_path: Path) -> None:
    shutil.copytree(Path(setuptools.__file__).parent, tmp_path / "setuptools")  # alone
    path = f"sys.path = [p for p in sys.path if 'site-packages' not in p] + [{str(tmp_path)!r}]"
    code = f"import runpy, sys; {path}; runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "building seqkernels needs torch" in done.stderr
    assert "pip install torch" in done.stderr


NAME = "seqkernels-1.0-cp310.cp312-cp310.cp312-linux_x86_64.whl"
INSIDE = (
    "seqkernels/__init__.py",
    "seqkernels/_C.pyi",
    "seqkernels/py.typed",
    "seqkernels/integrations/sb3.py",
    "seqkernels/libseqkernels.so",
    "seqkernels/_C.cpython-310-x86_64-linux-gnu.so",
    "seqkernels/_C.cpython-312-x86_64-linux-gnu.so",
    "seqkernels-1.0.dist-info/METADATA",
)


@pytest.mark.parametrize(
    ("without", "added", "message"),
    [
        ("", "", None),
        ("cpython-312", "", "is for"),
        ("libseqkernels", "", "expected"),
        ("", "tests/kernels/_kernels.so", "_kernels.so"),
        ("", "seqkernels/_C.cpython-313-x86_64-linux-gnu.so", "cpython-313"),
    ],
)
def test_what_is_inside_is_checked(tmp_path: Path, without: str, added: str, message: str | None) -> None:
    wheel = tmp_path / NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in [*INSIDE, added]:
            if name and not (without and without in name):
                archive.writestr(name, "")
    assert wheels.versions_of(wheel) == {"3.10", "3.12"}
    if message is None:
        wheels.check_inside(wheel)
    else:
        with pytest.raises(SystemExit, match=message):
            wheels.check_inside(wheel)
