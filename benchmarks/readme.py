"""README's table of speed, made of the results that are kept in benchmarks/results.

python -m benchmarks.readme            prints it
python -m benchmarks.readme --write    puts it into README.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.report import CELLS, Info, geometric_mean, median_of, of, read, table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
RESULTS = ROOT / "benchmarks" / "results"
CPU, AVX2, H200 = ("cpu",), ("cpu-avx2",), ("nvidia-h200-before", "nvidia-h200")
# What a row is called, the files of its cases (of a case in several, the last one's counts), work and dtype.
ROWS = [
    ("CPU, inference", CPU, "inference", "float32"),
    ("CPU, training", CPU, "training", "float32"),
    ("CPU, one step", CPU, "step", "float32"),
    ("CPU, one step, frozen", CPU, "frozen step", "float32"),
    ("CPU, inference in bfloat16", CPU, "inference", "bfloat16"),
    ("CPU, training in bfloat16", CPU, "training", "bfloat16"),
    ("CPU with AVX2, inference", AVX2, "inference", "float32"),
    ("CPU with AVX2, training", AVX2, "training", "float32"),
    ("H200, inference in bfloat16", H200, "inference", "bfloat16"),
    ("H200, training in bfloat16", H200, "training", "bfloat16"),
    ("H200, inference in float16", H200, "inference", "float16"),
    ("H200, training in float16", H200, "training", "float16"),
    ("H200, inference in TF32", H200, "inference", "tf32"),
    ("H200, training in TF32", H200, "training", "tf32"),
    ("H200, inference in float32", H200, "inference", "float32"),
    ("H200, training in float32", H200, "training", "float32"),
]


def cases(files: Iterable[str], work: str, dtype: str) -> list[Info]:
    """Those that torch.nn computes as it is: no cells or weights that it has not got, and no projections."""
    found: dict[str, Info] = {}
    for file in files:
        for info in of(read(RESULTS / f"{file}.json")[0], work=work, dtype=dtype):
            case = info["case"]
            if (
                "torch.nn" in info["speedup"]
                and not case.get("proj_size")
                and "weights" not in case["variant"]
            ):
                found[case["title"]] = info
    return list(found.values())


def cell_of(infos: list[Info]) -> str:
    """Geometric means over torch.nn and, where it ran, over ONNX Runtime."""
    means = []
    for peer in ("torch.nn", "onnxruntime"):
        ratios = [median_of(info["speedup"][peer]) for info in infos if peer in info["speedup"]]
        means += [f"{geometric_mean(ratios):.2f}"] if ratios else []
    return f"{means[0]} ({means[1]})" if len(means) > 1 else "".join(means) or "–"


def speed_table() -> str:
    rows = [["speedup over torch.nn (ONNX Runtime)", *(cell.upper() for cell in CELLS), "torch.nn faster in"]]
    for title, files, work, dtype in ROWS:
        infos = cases(files, work, dtype)
        slower = sum(median_of(info["speedup"]["torch.nn"]) < 1 for info in infos)
        rows.append([title, *(cell_of(of(infos, cell=cell)) for cell in CELLS), f"{slower} of {len(infos)}"])
    return table(rows)


def fill(text: str, readme: Path = ROOT / "README.md") -> None:
    """Replace what stands between the markers."""
    content = readme.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        sys.exit(f"{readme}: needs the lines {BEGIN} and {END} once each")
    before, rest = content.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description="README's table of speed."
    )
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    if parser.parse_args(arguments).write:
        fill(speed_table())
    else:
        print(speed_table())


if __name__ == "__main__":
    main()
