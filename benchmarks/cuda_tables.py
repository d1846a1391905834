"""The generated tables of docs/kernels-cuda.md, what the plans are, and of docs/kernels-cuda-figures.md, what
ptxas and the machine code say of the kernels.

    python -m benchmarks.cuda_tables            prints them
    python -m benchmarks.cuda_tables --write    puts them into the documents

Those of the kernels are made from the logs and objects that a build with CUDA leaves.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import cuda_sass
from seqkernels import plan

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "kernels-cuda.md"
FIGURES = ROOT / "docs" / "kernels-cuda-figures.md"
SASS_TARGET = "sm_90a"  # the one whose machine code is counted
H200 = (90, 132, 227 * 1024)  # compute capability, multiprocessors, bytes of shared memory of a block
GIGAHERTZ = 1.755  # of an H200's multiprocessors at boost

ELEMENTS = {"8BFloat16": "bf16", "7Float16": "fp16", "f": "fp32", "d": "fp64"}


@dataclass(frozen=True)
class Kernel:
    """One kernel for one target, as ptxas reports it."""

    form: str  # "persistent cluster, one tile" and the like, "stepwise", or the name of another kernel
    direction: str  # "forward" or "backward"; empty for others
    cell: str
    dtype: str  # of the elements; "tf32" where float32 is multiplied so
    target: str
    registers: int
    stack: int  # bytes, as the next two
    spill_stores: int
    spill_loads: int

    @property
    def row(self) -> tuple[str, ...]:
        """What it is, whatever the target."""
        return self.form, self.direction, self.cell, self.dtype


def kernels(build: Path = ROOT / "build") -> list[Kernel]:
    """The kernels of the last build, from its logs; none if it had no CUDA."""
    logs = sorted(build.glob("objects/csrc_cuda_*.cu.o.log"))
    return [kernel for log in logs for kernel in _parse(log.read_text(encoding="utf-8"))]


def _parse(log: str) -> Iterable[Kernel]:
    found = re.finditer(
        r"Compiling entry function '(\w+)' for '(\w+)'"
        r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    for match in found:
        symbol, target, stack, stores, loads, registers = match.groups()
        numbers = (int(registers), int(stack), int(stores), int(loads))
        yield Kernel(*_describe(symbol), target, *numbers)


def _describe(symbol: str) -> tuple[str, str, str, str]:
    kernel = (
        r"\d(persistent|stepwise|normalized)_kernelINS0_(?:14WithTransitionINS0_)?"
        r"\d+(?:Normalized)?(Forward|Backward)INS_5cells"
    )
    name = re.search(kernel, symbol)
    cell = next((title for key, title in cuda_sass.CELLS.items() if key in symbol), "")
    # What follows the closing E of the cell is the element type.
    plain = "4Lstm|13LstmProjected|3Gru|14GruResetBefore|13LstmLayerNorm|18LstmLayerNormJoint|12GruLayerNorm"
    cell_symbol = rf"cells(?:{plain}|3RnnINS\d?_?\d?(?:4Tanh|4Relu)E*)"
    element = re.search(cell_symbol + r"E+(?:NS0_)?(8BFloat16|7Float16|[fd])", symbol)
    if not name:
        other = re.search(r"4cuda\d+([a-z_]+)", symbol)
        element = element or re.search(r"kernelI(?:NS0_)?(8BFloat16|[fd])", symbol)
        return other[1] if other else symbol, "", cell, ELEMENTS[element[1]] if element else ""
    form = name[1]
    if form == "normalized":  # a stepwise one
        form = "stepwise"
    elif form == "persistent":
        form += f" {cuda_sass.variant(symbol)}"
    elif (stage := int(re.findall(r"Li(\d)E", symbol)[-1])) > 0:
        form += f", stage {stage}"
    return (
        form,
        name[2].lower(),
        cell,
        "tf32" if "8TFloat32" in symbol else ELEMENTS[element[1]] if element else "?",
    )


def kernel_table(found: list[Kernel]) -> list[str]:
    """Registers of each kernel for each target."""
    targets = sorted({kernel.target for kernel in found}, key=lambda t: int(re.sub(r"\D", "", t)))
    rows: dict[tuple[str, ...], dict[str, int]] = {}
    for kernel in found:
        rows.setdefault(kernel.row, {})[kernel.target] = kernel.registers
    lines = [
        f"| kernel | pass | cell | dtype | {' | '.join(targets)} |",
        "|---" * 4 + "|---:" * len(targets) + "|",
    ]
    for row in sorted(rows):
        registers = " | ".join(str(rows[row].get(target, "")) for target in targets)
        lines.append(f"| {' | '.join(row)} | {registers} |")
    return lines


def sass_table(build: Path = ROOT / "build") -> list[str]:
    """What a step of each persistent kernel costs in instructions."""
    names = [field.name for field in dataclasses.fields(cuda_sass.Figures)]
    lines = [
        f"| {SASS_TARGET} | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---" + "|---:" * len(names) + "|",
    ]
    objects = sorted(build.glob("objects/csrc_cuda_*.cu.o"))
    for kernel in sorted(cuda_sass.persistent_kernels(objects, [SASS_TARGET]), key=lambda k: k.title):
        found = cuda_sass.figures(kernel)
        lines.append(f"| {kernel.title} | {' | '.join(str(getattr(found, name)) for name in names)} |")
    return lines


def plan_table(name: str, dtype: torch.dtype) -> list[str]:
    """What runs an LSTM on an H200, and where the model sees the time of a step. float32 is IEEE."""
    lines = [
        f"| LSTM {name}, H200 | B | pass | plan | blocks of a group × groups | units, sequences of a block "
        "| shared memory | model, µs a step | exchanged a step, all blocks |",
        "|---|---:|---|---|---|---|---:|---:|---:|",
    ]
    for hidden in (128, 256, 512, 1024, 2048):
        for batch in (16, 64):
            for backward in (False, True):
                lines.append(_plan_row(dtype, hidden, batch, backward))
    return lines


def _plan_row(dtype: torch.dtype, hidden: int, batch: int, backward: bool) -> str:
    p = plan.cuda_plans("lstm", dtype, backward, batch, hidden, 1, False, H200)[0]
    start = f"| H = {hidden} | {batch} | {'backward' if backward else 'forward'} | {p['name']} "
    time = f"{p['cycles'] / GIGAHERTZ / 1000:.1f}"
    if p["name"] == "stepwise":
        return f"{start}| | | | {time} | |"
    blocks = p["members"] * p["column_groups"]
    read = blocks * (4 if backward else 1) * hidden * p["columns"] * dtype.itemsize * p["unit_groups"]
    return (
        f"{start}| {p['members']} × {p['column_groups']} | {16 * p['unit_groups']}, {p['columns']} "
        f"| {p['shared_bytes'] / 1024:.0f} KiB | {time} | {read / 2**20:.2f} MiB |"
    )


def with_tables(text: str, tables: dict[str, list[str]]) -> str:
    """`text` with each table between its two marks."""
    for name, lines in tables.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)"
        table = "\n".join(lines)
        text, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"there are {count} places for the table '{name}', not one")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/kernels-cuda.md")
    arguments = parser.parse_args()
    documents = {
        DOCUMENT: {
            "plans": plan_table("bf16", torch.bfloat16),
            "plans of float32": plan_table("float32", torch.float32),
        },
        FIGURES: {"kernels": kernel_table(kernels()), "machine code": sass_table()},
    }
    for document, tables in documents.items():
        if arguments.write:
            document.write_text(with_tables(document.read_text(encoding="utf-8"), tables), encoding="utf-8")
        else:
            print("\n\n".join("\n".join(lines) for lines in tables.values()), end="\n\n")


if __name__ == "__main__":
    main()
