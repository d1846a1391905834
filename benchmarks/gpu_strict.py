"""Whether a STRICT build of the CUDA kernels, with every fence of PTX's memory model, gives the same bits.

    python -m benchmarks.gpu_strict GPU-smoke.jsonl --until SECONDS_SINCE_THE_EPOCH

Builds in a copy of the project, runs the first light of every persistent plan there, and compares the digests
of its results with those in the file, which the usual build has left. A difference would be one of ordering.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_output import PLANS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("csrc", "seqkernels", "tests", "benchmarks", "setup.py", "pyproject.toml")


def digests(lines: Iterable[str]) -> dict[tuple[Any, ...], str]:
    """By plan and layer, what first light has printed."""
    found = {}
    for line in lines:
        entry = json.loads(line)
        if "digest" in entry:
            sizes, asked = tuple(entry["sizes"]), tuple(entry.get("asked", ()))
            layer = (entry["plan"], entry["cell"], entry["dtype"], entry["pass"], sizes, asked)
            found[layer] = entry["digest"]
    return found


def difference(
    usual: dict[tuple[Any, ...], str], strict: dict[tuple[Any, ...], str]
) -> tuple[int, list[str]]:
    """How many layers both have, and those whose results differ."""
    common = sorted(usual.keys() & strict.keys())
    return len(common), [" ".join(map(str, layer)) for layer in common if usual[layer] != strict[layer]]


def build(folder: Path) -> None:
    """The project's copy there, built STRICT for this machine's GPU."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results")
            )
        else:
            shutil.copy2(source, folder / name)
    environment = {"SEQKERNELS_CUDA_STRICT": "1", "SEQKERNELS_WITH_CUDA": "1", "CXXFLAGS": "-O1"}
    environment["SEQKERNELS_CUDA_TARGETS"] = os.environ.get("SEQKERNELS_CUDA_TARGETS", "native")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("usual", type=Path, help="what the first look's smoke tests have written")
    parser.add_argument("--until", type=float, default=float("inf"), help="in seconds since the epoch")
    options = parser.parse_args()
    folder = ROOT / "build" / "strict"
    build(folder)
    results = folder / "strict.jsonl"
    for n, plan in enumerate(PLANS[1:]):
        now = time.time()
        ends = min(now + 25, now + (options.until - now) / (len(PLANS) - 1 - n))
        first_light = [sys.executable, "-m", "tests.first_light", plan, "--results", str(results)]
        subprocess.run(
            [*first_light, "--until", f"{ends:.0f}"], cwd=folder, stdout=subprocess.DEVNULL, check=False
        )
    usual, strict = (digests(p.read_text(encoding="utf-8").splitlines()) for p in (options.usual, results))
    common, different = difference(usual, strict)
    named = "".join(f"; {layer}" for layer in different[:5])
    print(f"{common} layers and passes, {len(different)} with other bits{named}")
    return int(common == 0 or bool(different))


if __name__ == "__main__":
    sys.exit(main())
