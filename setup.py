"""Builds the one extension module, seqkernels._C; project metadata lives in pyproject.toml.

setuptools links, ninja compiles: every source has its own flags (an instruction set for each kernel file),
objects are made in parallel, and the compiler's dependency files make a change in any header rebuild
what includes it.

Environment:
    CXX, CXXFLAGS           the C++17 compiler (GCC or Clang) and extra flags, which come last
    MAX_JOBS                how many sources are compiled at once (default: one a core)
    SEQKERNELS_CPU_TARGETS  which instruction sets to compile CPU kernels for, besides baseline: "avx2", say
                            (default: all that the project knows)
    SEQKERNELS_TEST_KERNELS 0: a build in place leaves out tests/kernels, which wheels never have
    SEQKERNELS_WITH_CUDA    0: no CUDA kernels; 1: stop where they cannot be built; unset: if nvcc is found
    SEQKERNELS_CUDA_TARGETS what to compile CUDA kernels for: "sm_80 sm_90a", say, or "native", this GPU
                            (default: all kinds of GPU that the project knows, and PTX for those to come)
    SEQKERNELS_CUDA_STRICT  1: fences wherever PTX's memory model wants one, to compare results with (slower)
    CUDA_HOME, NVCC_CCBIN   the CUDA toolkit to use (default: the nvcc on PATH, /usr/local/cuda, or nvcc's
                            wheels in this environment); nvcc's host compiler
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
MIN_TORCH = (2, 10)
TORCH_TARGET = "0x020a000000000000"  # the stable C++ API of torch 2.10: one binary for it and all later ones

COMMON_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# Kernels may ignore errno and floating-point traps, but not NaN, infinity or signed zeros: no -ffast-math.
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# Scheduling before register allocation mixes the independent chains of a cell: 50 -> 35 ns for 16 units.
KERNEL_FLAGS += ["-fschedule-insns", "-fsched-pressure"]
# Where a loop begins in a cache line is worth up to a tenth of a forward pass, and any change moves it.
KERNEL_FLAGS += ["-falign-functions=64", "-falign-loops=64"]
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
AVX512_BF16_FLAGS = [*AVX512_FLAGS, "-mavx512bf16"]
AMX_FLAGS = [*AVX512_BF16_FLAGS, "-mamx-tile", "-mamx-bf16"]
# Instruction set -> its one file and flags. The rest of csrc is compiled for the baseline of the platform.
CPU_TARGETS = {"baseline": ("csrc/cpu/kernels_default.cpp", KERNEL_FLAGS)}
if platform.machine().lower() in ("x86_64", "amd64"):
    CPU_TARGETS["avx2"] = ("csrc/cpu/kernels_avx2.cpp", KERNEL_FLAGS + AVX2_FLAGS)
    CPU_TARGETS["avx512"] = ("csrc/cpu/kernels_avx512.cpp", KERNEL_FLAGS + AVX512_FLAGS)
    CPU_TARGETS["avx512bf16"] = ("csrc/cpu/kernels_avx512bf16.cpp", KERNEL_FLAGS + AVX512_BF16_FLAGS)
    CPU_TARGETS["amx"] = ("csrc/cpu/kernels_amx.cpp", KERNEL_FLAGS + AMX_FLAGS)

if wanted := os.environ.get("SEQKERNELS_CPU_TARGETS", "").replace(",", " ").split():
    for isa in wanted:
        if isa not in CPU_TARGETS:
            sys.exit(f"SEQKERNELS_CPU_TARGETS: expected some of {', '.join(CPU_TARGETS)}, got '{isa}'")
    CPU_TARGETS = {isa: target for isa, target in CPU_TARGETS.items() if isa in ("baseline", *wanted)}

HAS = [f"-DSEQKERNELS_HAS_{isa.upper()}" for isa in CPU_TARGETS]

# Cards with compute capability 8.x, 9.0 and 10.0; all later ones compile the PTX when a kernel is first used.
CUDA_TARGETS = ("sm_80", "sm_90a", "sm_100a", "compute_100")
# ptxas reports every kernel's registers, stack and spills, which ninja keeps beside the object, as *.o.log.
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v"]


def project_version() -> str:
    """The version, read from seqkernels/__init__.py without importing it."""
    tree = ast.parse((ROOT / "seqkernels" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    sys.exit("seqkernels/__init__.py sets no __version__")


def require(package: str) -> str:
    """Version of an installed build requirement."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        sys.exit(f"building seqkernels needs {package}, and {sys.executable} lacks it: pip install {package}")


def require_torch() -> str:
    """Version of the installed torch, checked."""
    version = require("torch")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < MIN_TORCH:
        sys.exit(f"seqkernels needs torch >= {'.'.join(map(str, MIN_TORCH))}; {sys.executable} has {version}")
    return version


TORCH_VERSION = require_torch()
from torch.utils import cpp_extension  # noqa: E402  (only now is it known to be there)


def cxx_compiler() -> list[str]:
    """The compiler's command line so far: CXX, or the first of the usual names on PATH."""
    command = shlex.split(os.environ.get("CXX", "")) or [
        next(filter(shutil.which, ("g++", "clang++", "c++")), "g++")
    ]
    if sys.platform == "win32":
        sys.exit("seqkernels builds with GCC or Clang, on Linux and macOS; on Windows use WSL")
    if shutil.which(command[0]) is None:
        sys.exit(
            f"no C++ compiler: '{command[0]}' is not on PATH. Install GCC >= 11 or Clang >= 14"
            " (Debian, Ubuntu: apt install g++; macOS: xcode-select --install), or name one with CXX=."
        )
    return command


def find_nvcc() -> Path | None:
    """nvcc from CUDA_HOME, PATH, /usr/local/cuda, or the compiler's wheels in this environment."""
    toolkit, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc"))
    usual = Path("/usr/local/cuda/bin/nvcc")
    candidates = [toolkit and Path(toolkit, "bin", "nvcc"), on_path and Path(on_path), usual, *wheels]
    return next((nvcc for nvcc in candidates if nvcc and nvcc.is_file()), None)


def cuda_home(nvcc: Path) -> Path:
    """Root of nvcc's toolkit, as nvcc itself sees it (the nvcc on PATH may be a wrapper or a link)."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
    ).stderr
    top = re.search(r"^#\$ TOP=(.+)$", dry_run, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else nvcc.resolve().parent.parent


def sources(pattern: str) -> list[str]:
    """Files of csrc that match, relative to the project's root."""
    return sorted(path.relative_to(ROOT).as_posix() for path in CSRC.glob(pattern))


def cells() -> list[str]:
    """The names of the cells' structs, as csrc/cells/registry.h lists them."""
    registry = (CSRC / "cells" / "registry.h").read_text(encoding="utf-8")
    found = re.search(r"^using Registry = CellList<([\w\s,]+)>;", registry, re.MULTILINE)
    if found is None:
        sys.exit("csrc/cells/registry.h has no line 'using Registry = CellList<...>;'")
    return [name.strip() for name in found[1].split(",")]


def plan_cuda() -> tuple[Path | None, list[str], str]:
    """(nvcc or None, the sources in csrc/cuda, the decision in words)."""
    wanted = os.environ.get("SEQKERNELS_WITH_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"SEQKERNELS_WITH_CUDA must be 0 or 1, not '{wanted}'")
    cuda_sources = sources("cuda/*.cu")
    nvcc = find_nvcc()
    if wanted == "0":
        return None, [], "CPU build: SEQKERNELS_WITH_CUDA=0"
    problem = "" if cuda_sources else "no csrc/cuda sources"
    problem = problem or (
        ""
        if nvcc
        else "no nvcc found (looked at CUDA_HOME, PATH, /usr/local/cuda and the environment's wheels)"
    )
    if problem and wanted == "1":
        sys.exit(f"SEQKERNELS_WITH_CUDA=1, but {problem}")
    if problem:
        return None, [], f"CPU build: {problem}"
    return nvcc, cuda_sources, f"CPU and CUDA build: {nvcc} for {', '.join(cuda_targets())}"


def cuda_targets() -> tuple[str, ...]:
    """What CUDA kernels are compiled for: names of real (sm_90a) and virtual (compute_100) architectures."""
    wanted = os.environ.get("SEQKERNELS_CUDA_TARGETS", "").replace(",", " ").split()
    if wanted == ["native"]:
        import torch

        if not torch.cuda.is_available():
            sys.exit("SEQKERNELS_CUDA_TARGETS=native, but torch sees no GPU")
        major, minor = torch.cuda.get_device_capability()
        return (f"sm_{major}{minor}{'a' if major >= 9 else ''}",)
    for target in wanted:
        if not re.fullmatch(r"(sm|compute)_\d+[af]?", target):
            sys.exit(f"SEQKERNELS_CUDA_TARGETS: expected names such as sm_90a or compute_100, got '{target}'")
    return tuple(wanted) or CUDA_TARGETS


PRODUCT, TESTS = "seqkernels._C", "tests.kernels._kernels"


@dataclass(frozen=True)
class Unit:
    """One object: what it is compiled from, how, and the extension that it is linked into."""

    extension: str
    rule: str  # of the ninja file: cxx or cuda
    source: str
    flags: list[str]
    name: str = ""

    @property
    def object(self) -> str:
        return f"{self.name or self.source.replace('/', '_')}.o"


class NinjaBuildExt(cpp_extension.BuildExtension):
    """torch's build_ext, with objects compiled by ninja, each source with flags of its own."""

    def run(self) -> None:
        self.in_place = bool(self.inplace)  # setuptools takes it back while it builds
        super().run()

    def build_extensions(self) -> None:
        for package in ("ninja", "pybind11"):
            require(package)
        with_tests = self.in_place and (ROOT / "tests" / "kernels").is_dir()  # a source archive has none
        if not with_tests or os.environ.get("SEQKERNELS_TEST_KERNELS") == "0":
            self.extensions = [ext for ext in self.extensions if ext.name != TESTS]
        folder = Path(self.build_temp).resolve()
        if self.editable_mode:  # setuptools would compile everything in a folder that it throws away
            folder = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        ninja_file = folder / "build.ninja"
        text, units, (library_dirs, libraries) = self.ninja_file({ext.name for ext in self.extensions})
        if not ninja_file.is_file() or ninja_file.read_text(encoding="utf-8") != text:
            ninja_file.write_text(text, encoding="utf-8")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        if subprocess.run([sys.executable, "-m", "ninja", "-j", jobs], cwd=folder).returncode != 0:
            sys.exit("compiling seqkernels failed; the compiler's message is above")
        for ext in self.extensions:
            ext.extra_objects = [str(folder / unit.object) for unit in units if unit.extension == ext.name]
            if ext.name == TESTS:  # whose kernels meet at the barriers of the product's teams
                ext.extra_objects.append(str(folder / "csrc_cpu_team.cpp.o"))
            # Link again exactly when an object or the plan is new.
            ext.depends = [*ext.extra_objects, str(ninja_file)]
            ext.library_dirs, ext.libraries = library_dirs, libraries
        if sys.platform == "linux":
            # libtorch itself has no symbol of ours, but brings libtorch_cuda where there is one.
            for linker in ("linker_so", "linker_so_cxx"):
                self.compiler.set_executable(linker, [*getattr(self.compiler, linker), "-Wl,--no-as-needed"])
        super().build_extensions()

    def ninja_file(self, extensions: set[str]) -> tuple[str, list[Unit], tuple[list[str], list[str]]]:
        """(text of build.ninja, what it makes, (library folders, libraries) to link)."""
        import pybind11

        nvcc, cuda_sources, decision = plan_cuda()
        print(
            f"seqkernels {project_version()} for torch {TORCH_VERSION}; CPU kernels: {', '.join(CPU_TARGETS)}"
        )
        print(decision, flush=True)

        includes = [f"-I{CSRC}"] + [
            flag
            for folder in (
                pybind11.get_include(),
                *cpp_extension.include_paths(),
                sysconfig.get_path("include"),
            )
            for flag in ("-isystem", str(folder))
        ]
        defines = [
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            f'-DSEQKERNELS_VERSION="{project_version()}"',
            f'-DSEQKERNELS_TORCH_VERSION="{TORCH_VERSION}"',  # another torch: every object is made anew
            *([f'-DSEQKERNELS_CUDA_TARGETS="{",".join(cuda_targets())}"'] if nvcc else []),
        ]
        user_flags = shlex.split(os.environ.get("CXXFLAGS", ""))
        cxx = cxx_compiler() + COMMON_FLAGS + defines + includes
        lines = ninja_rule("cxx", f"{escape(cxx)} $flags {escape(user_flags)} -MMD")
        # Not torch_python: the ops use the stable C++ API alone.
        library_dirs = [Path(path) for path in cpp_extension.library_paths()]
        libraries = ["torch", "torch_cpu", "c10"]
        if nvcc:
            home = cuda_home(nvcc)
            library_dirs += [path for path in (home / "lib64", home / "lib") if path.is_dir()]
            libraries += ["cudart_static", "rt", "pthread", "dl"]
            images = [f"-gencode=arch=compute_{t.split('_')[1]},code={t}" for t in cuda_targets()]
            strict = ["-DSEQKERNELS_CUDA_STRICT"] if os.environ.get("SEQKERNELS_CUDA_STRICT") == "1" else []
            compile = [str(nvcc), *NVCC_FLAGS, *strict, *images]
            lines += ninja_rule("cuda", f"{escape(compile)} $flags -MMD", log="$out.log")
            runtime = ["-isystem", str(home / "include")]
        # First what takes longest.
        units = [unit for source in cuda_sources for unit in cuda_units(source)]
        units += [Unit(PRODUCT, "cxx", source, flags) for source, flags in CPU_TARGETS.values()]
        units += test_units() if TESTS in extensions else []
        for source in [*sources("*.cpp"), *sources("*/*.cpp")]:
            if "/cuda" not in source and "/kernels_" not in source:
                units.append(Unit(PRODUCT, "cxx", source, HAS if source.endswith("dispatch.cpp") else []))
            elif "/cuda" in source and nvcc:
                units.append(Unit(PRODUCT, "cxx", source, runtime))
        for unit in units:
            lines.append(f"build {unit.object}: {unit.rule} {escape_path(ROOT / unit.source)}")
            lines.append(f"  flags = {escape(unit.flags)}")
        return "\n".join(lines) + "\n", units, ([str(path) for path in library_dirs], libraries)


def cuda_units(source: str) -> list[Unit]:
    """What is made of a CUDA source: of cell.cu and cell_*.cu one object for each cell."""
    stem = Path(source).stem
    if not stem.startswith("cell"):
        return [Unit(PRODUCT, "cuda", source, [])]
    which = stem.removeprefix("cell")
    snake_case = {cell: re.sub(r"(?<!^)(?=[A-Z])", "_", cell).lower() for cell in cells()}
    return [
        Unit(PRODUCT, "cuda", source, [f"-DSEQKERNELS_CELL={cell}"], f"csrc_cuda_{snake}{which}.cu")
        for cell, snake in snake_case.items()
    ]


def test_units() -> list[Unit]:
    """What tests run of the CPU kernels' source beside the product's own."""
    # Vectors of the emulated targets are wider than the platform's; how they are passed concerns nobody else.
    emulated = [*KERNEL_FLAGS, "-Wno-psabi"]
    flags = {"emulated_avx512bf16": emulated, "emulated_amx": emulated, "module": HAS}
    units = [Unit(TESTS, "cxx", f"tests/kernels/{name}.cpp", given) for name, given in flags.items()]
    for isa in ("baseline", "avx2", "avx512"):
        if isa in CPU_TARGETS:
            names = [f"-DSEQKERNELS_ISA={isa}", f"-DSEQKERNELS_MATH={isa}_math"]
            of_isa = [*CPU_TARGETS[isa][1], *names]
            units.append(Unit(TESTS, "cxx", "tests/kernels/math.cpp", of_isa, f"tests_kernels_math_{isa}"))
    return units


def ninja_rule(name: str, compile: str, log: str = "") -> list[str]:
    """A rule that compiles a source, learns which headers it includes, and keeps what is printed in `log`."""
    command = f"  command = {compile} -MF $out.d -c $in -o $out"
    if log:
        command += f" > {log} 2>&1 || {{ cat {log}; exit 1; }}"
    return [f"rule {name}", command, "  depfile = $out.d", "  deps = gcc", "  description = $in"]


def escape(command: list[str]) -> str:
    """A command line for ninja: quoted for the shell, $ doubled."""
    return shlex.join(command).replace("$", "$$")


def escape_path(path: Path) -> str:
    """A path for a ninja build line."""
    return re.sub(r"([$ :])", r"$\1", str(path))


setup(
    ext_modules=[cpp_extension.CppExtension(name, sources=[]) for name in (PRODUCT, TESTS)],
    # torch's own use of ninja has one set of flags for all sources; ours is in NinjaBuildExt.
    cmdclass={"build_ext": NinjaBuildExt.with_options(use_ninja=False)},
)
