"""Builds csrc/cuda's host code into a library of its own, with the emulator as CUDA: see cudart.cpp."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from torch.utils import cpp_extension

from tests import emulator

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
HOST = (
    "layer.cpp",
    "cuda/blas.cpp",
    "cuda/layer.cpp",
    "cuda/matrix.cpp",
    "cuda/plan.cpp",
    "cuda/runtime.cpp",
    "cuda/time_loop.cpp",
)

_RULES = """\
torch = -DTORCH_TARGET_VERSION=0x020a000000000000 {includes}
# Few input gates fit, so that forward takes several launches.
host_flags = -std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -w -DSEQKERNELS_GATES_BYTES=20000 $torch
rule host
  command = {compiler} $host_flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule library
  command = {compiler} -shared $in -o $out {libraries} -Wl,--no-undefined
"""


def cuda_headers() -> Path | None:
    """Where the CUDA runtime's headers are, from a toolkit or from the compiler's wheels."""
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *Path("/usr/local").glob("cuda-*")]
    wheels = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*")
    folders = [root / "include" for root in (*toolkits, *wheels)]
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)


def build(headers: Path) -> Path:
    """The library, to be loaded by torch.ops.load_library."""
    includes = [f"-I{CSRC}", f"-I{HERE}", f"-isystem {headers}"]
    includes += [f"-isystem {folder}" for folder in cpp_extension.include_paths()]
    folders = cpp_extension.library_paths()
    rules = _RULES.format(
        compiler=os.environ.get("CXX", "c++"),
        includes=" ".join(includes),
        libraries=" ".join([*(f"-L{path}" for path in folders), "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]),
    )
    lines, names = emulator.emulator_objects()
    cells = list(emulator.registry())
    parts = [("launch", HERE / "launch.cpp", ""), emulator.ROWS]
    parts += [
        part for file in ("cell.cu", "cell_transition.cu") for part in emulator.kernels(cells, file=file)
    ]
    kernel_lines, kernel_names = emulator.objects(parts)
    host = [HERE / "cublas.cpp", HERE / "cudart.cpp", HERE / "ops.cpp", *(CSRC / file for file in HOST)]
    host_names = [f"host/{path.parent.name}_{path.stem}.o" for path in host]
    lines += [*kernel_lines, rules]
    lines += [f"build {name}: host {path}" for name, path in zip(host_names, host, strict=True)]
    lines.append(f"build host.so: library {' '.join([*names, *kernel_names, *host_names])}")
    return emulator.make("host.so", lines)
