"""Times every cut of every persistent kernel, without torch: sweep.cpp, linked with the last build."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("sweep.cpp")
COLUMNS = (
    *("cell", "dtype", "pass", "hidden", "batch", "directions"),
    *("plan", "teams", "members", "unit_groups", "columns", "column_tiles"),
    *("us", "us_once", "error"),
)
HUNG = 75  # the program's exit status where a launch did not end


def toolkit() -> Path:
    """Where CUDA's headers and its static runtime are."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    found = next(
        (Path(home) for home in homes if home and Path(home, "include", "cuda_runtime_api.h").is_file()), None
    )
    if found is None:
        raise FileNotFoundError("the sweep needs a CUDA toolkit: CUDA_HOME, nvcc on PATH, or /usr/local/cuda")
    return found


def build(program: Path, build: Path = ROOT / "build") -> Path:
    """The program, linked with the kernels of the last build."""
    home = toolkit()
    objects = [*sorted(build.glob("objects/csrc_cuda_*.cu.o")), build / "objects" / "csrc_cuda_plan.cpp.o"]
    options = ["-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", f"-I{home / 'include'}"]
    libraries = [f"-L{path}" for path in (home / "lib64", home / "lib") if path.is_dir()]
    libraries += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    program.parent.mkdir(parents=True, exist_ok=True)
    command = [os.environ.get("CXX", "g++"), *options, SOURCE, *objects, *libraries, "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    return program


def command(program: Path, seconds: float, begin: int, without: Iterable[str]) -> list[str]:
    options = ["--seconds", f"{seconds:.1f}", "--from", str(begin)]
    return [str(program), *options, *(word for plan in without for word in ("--without", plan))]


def records(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What was measured, of the program's output; a last line that was cut off is left out."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write(path: Path, found: Iterable[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([entry[column] for column in COLUMNS] for entry in found if "us" in entry)
