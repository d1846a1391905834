"""Builds csrc/cuda's host code into a library of its own, with the emulator as CUDA: see cudart.cpp."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from torch.utils import cpp_extension

from tests import emulator

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
PROGRAMS = ("selftest", "kernels")  # of the emulator's files, those that are none of it
HOST = (
    "layer.cpp",
    "cuda/layer.cpp",
    "cuda/matrix.cpp",
    "cuda/plan.cpp",
    "cuda/runtime.cpp",
    "cuda/time_loop.cpp",
)

_RULES = """\
flags = -O1 -g -fPIC -fvisibility=hidden -w
torch = -DTORCH_TARGET_VERSION=0x020a000000000000 {includes}
emulated = -DSEQKERNELS_EMULATED -I{emulator} -I{csrc}/cuda
rule host
  command = {compiler} -std=c++17 $flags $torch -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
rule emulated
  command = {compiler} -std=c++20 $flags $emulated $cell -MMD -MF $out.d -x c++ -c $in -o $out
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
        emulator=HERE.parent,
        csrc=CSRC,
        libraries=" ".join([*(f"-L{folder}" for folder in folders), "-ltorch", "-ltorch_cpu", "-lc10"]),
    )
    host = [HERE / "cudart.cpp", HERE / "ops.cpp", *(CSRC / file for file in HOST)]
    emulated = [path for path in HERE.parent.glob("*.cpp") if path.stem not in PROGRAMS]
    parts = [("host", f"{path.parent.name}_{path.stem}", path, "") for path in host]
    parts += [("emulated", path.stem, path, "") for path in (HERE / "launch.cpp", *emulated)]
    parts += [("emulated", *part) for part in emulator.kernels(list(emulator.registry()))]
    objects = [f"host/{name}.o" for _, name, _, _ in parts]
    lines = [
        f"build host/{name}.o: {rule} {path.resolve()}\n  cell = {cell}" for rule, name, path, cell in parts
    ]
    lines.append(f"build host.so: library {' '.join(objects)}\n")
    emulator.BUILD.mkdir(parents=True, exist_ok=True)
    with open(emulator.BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = emulator.BUILD / "host.ninja"
        plan.write_text(rules + "\n".join(lines))
        ninja = shutil.which("ninja") or "ninja"
        done = subprocess.run(
            [ninja, "-C", str(emulator.BUILD), "-f", plan.name], capture_output=True, text=True
        )
    if done.returncode != 0:
        raise RuntimeError(f"the CUDA host code does not compile:\n{done.stdout}{done.stderr}")
    return emulator.BUILD / "host.so"
