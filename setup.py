"""Builds seqkernels' compiled parts; project metadata lives in pyproject.toml.

There are two. libseqkernels has the kernels and registers the ops; it knows torch's stable C++ API and no
Python. The module seqkernels._C is small, and of one Python; it calls the library, which lies beside it. So
one wheel serves several Pythons, with the kernels compiled and packed once.

ninja compiles and links, setuptools takes what it makes: every source has its own flags (an instruction set
for each kernel file), objects are made in parallel, and the compiler's dependency files make a change in any
header rebuild what includes it.

Environment:
    CXX, CXXFLAGS, LDFLAGS  the C++17 compiler (GCC or Clang) and extra flags, which come last
    SEQKERNELS_PYTHONS      further interpreters to make a module for, such as "python3.10 python3.13":
                            they need headers, but no package. A wheel is for them and the one that runs this
    MAX_JOBS                how many sources are compiled at once (default: one a core)
    SEQKERNELS_CPU_TARGETS  which instruction sets to compile CPU kernels for, besides baseline: "avx2", say
                            (default: all that the project knows)
    SEQKERNELS_TEST_KERNELS 0: a build in place leaves out tests/kernels, which wheels never have
    SEQKERNELS_WITH_CUDA    0: no CUDA kernels; 1: stop where they cannot be built; unset: if nvcc is found
    SEQKERNELS_CUDA_TARGETS what to compile CUDA kernels for: "sm_80 sm_90a", say, or "native", this GPU
                            (default: all kinds of GPU that the project knows, and PTX for those to come)
    SEQKERNELS_REPOSITORY   the address of the repository, https://HOST/OWNER/NAME, for the package's metadata
    SEQKERNELS_CUDA_STRICT  1: fences wherever PTX's memory model wants one, to compare results with (slower)
    CUDA_HOME, NVCC_CCBIN   the CUDA toolkit to use (default: the nvcc on PATH, /usr/local/cuda, or nvcc's
                            wheels in this environment); nvcc's host compiler
"""

from __future__ import annotations

import ast
import functools
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

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
MIN_PYTHON = (3, 10)
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
# Machine code in a sixth of its bytes, which cuobjdump unpacks in 20 ms for one cell and all targets.
NVCC_FLAGS += ["--compress-mode=size"]


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


@dataclass(frozen=True)
class Python:
    """An interpreter that a module is made for."""

    abi: str  # cp312
    include: str  # the folder of Python.h
    suffix: str  # of a module's file name

    @property
    def tag(self) -> str:
        return self.abi.rstrip("t")

    @property
    def version(self) -> int:
        return int(self.tag.removeprefix("cp"))


ASK_PYTHON = """
import sys, sysconfig
suffix, include = sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include")
print(sys.implementation.name, *sys.version_info[:2], sysconfig.get_platform(), suffix, include, sep="\\n")
"""


def ask_python(command: str) -> Python:
    """What a module for this interpreter needs to know."""
    asks = "" if command == sys.executable else "SEQKERNELS_PYTHONS: "
    try:
        answer = subprocess.run(
            [command, "-c", ASK_PYTHON], capture_output=True, text=True, check=True
        ).stdout
        implementation, major, minor, machine, suffix, include = answer.splitlines()
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        sys.exit(f"{asks}'{command}' is no Python that runs here ({error})")
    what = f"{command} is {implementation} {major}.{minor} for {machine}"
    if implementation != "cpython" or (int(major), int(minor)) < MIN_PYTHON:
        sys.exit(f"{asks}expected CPython {'.'.join(map(str, MIN_PYTHON))} or newer; {what}")
    if machine != sysconfig.get_platform():
        sys.exit(f"{asks}expected a Python for {sysconfig.get_platform()}; {what}")
    if not Path(include, "Python.h").is_file():
        sys.exit(
            f"{asks}{command} lacks its headers: no Python.h in {include} (Debian: apt install python3-dev)"
        )
    return Python("cp" + suffix.split("-")[1], include, suffix)


@functools.cache
def pythons() -> list[Python]:
    """Those that there will be modules for: first the one that runs this, then the others, oldest first."""
    this = ask_python(sys.executable)
    found = {this.abi: this}
    for command in os.environ.get("SEQKERNELS_PYTHONS", "").split():
        other = ask_python(command)
        found.setdefault(other.abi, other)
    return [this, *sorted((p for p in found.values() if p != this), key=lambda p: p.version)]


# setuptools' names of what is built.
LIBRARY, MODULE, TESTS = "seqkernels.libseqkernels", "seqkernels._C", "tests.kernels._kernels"


def module_name(python: Python) -> str:
    """setuptools' name of a Python's module, which it imports as seqkernels._C."""
    return MODULE if python == pythons()[0] else f"{MODULE}_{python.abi}"


def file_names() -> dict[str, str]:
    """Of everything that is built, the name of its file."""
    names = {module_name(python): f"_C{python.suffix}" for python in pythons()}
    names[LIBRARY] = f"libseqkernels.{'dylib' if sys.platform == 'darwin' else 'so'}"
    return {**names, TESTS: f"_kernels{pythons()[0].suffix}"}


@dataclass(frozen=True)
class Unit:
    """One object: what it is compiled from, how, and what it is linked into."""

    binary: str  # its name for setuptools
    rule: str  # of the ninja file: cxx, cxx_torch (which sees torch's headers) or cuda
    source: str
    flags: list[str]
    name: str = ""

    @property
    def object(self) -> str:
        return f"{self.name or self.source.replace('/', '_')}.o"


class NinjaBuildExt(cpp_extension.BuildExtension):
    """torch's build_ext, with everything compiled and linked by ninja, each source with flags of its own."""

    def run(self) -> None:
        self.in_place = bool(self.inplace)  # setuptools takes it back while it builds
        super().run()

    def get_ext_filename(self, ext_name: str) -> str:
        *folders, last = ext_name.split(".")
        names = {name.split(".")[-1]: file for name, file in file_names().items()}
        return os.path.join(*folders, names[last])

    def build_extensions(self) -> None:
        for package in ("ninja", "pybind11"):
            require(package)
        with_tests = self.in_place and (ROOT / "tests" / "kernels").is_dir()  # a source archive has none
        if not with_tests or os.environ.get("SEQKERNELS_TEST_KERNELS") == "0":
            self.extensions = [ext for ext in self.extensions if ext.name != TESTS]
        # One folder for all Pythons and ways to build, so that what is compiled once stays so.
        self.folder = ROOT / "build" / "objects"
        self.folder.mkdir(parents=True, exist_ok=True)
        ninja_file, text = self.folder / "build.ninja", ninja_text({ext.name for ext in self.extensions})
        if not ninja_file.is_file() or ninja_file.read_text(encoding="utf-8") != text:
            ninja_file.write_text(text, encoding="utf-8")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        if subprocess.run([sys.executable, "-m", "ninja", "-j", jobs], cwd=self.folder).returncode != 0:
            sys.exit("compiling seqkernels failed; the compiler's message is above")
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        target = self.get_ext_fullpath(ext.name)
        self.mkpath(os.path.dirname(target))
        self.copy_file(str(self.folder / file_names()[ext.name]), target)


class BdistWheel(bdist_wheel):
    """A wheel for every Python that it has a module for."""

    def get_tag(self) -> tuple[str, str, str]:
        inside = sorted(pythons(), key=lambda p: p.version)
        return ".".join(p.tag for p in inside), ".".join(p.abi for p in inside), super().get_tag()[2]


def ninja_text(binaries: set[str]) -> str:
    """The file that tells ninja how to make these."""
    import pybind11

    nvcc, cuda_sources, decision = plan_cuda()
    print(f"seqkernels {project_version()} for torch {TORCH_VERSION}; CPU kernels: {', '.join(CPU_TARGETS)}")
    print(f"{decision}; modules for {', '.join(p.abi for p in pythons())}", flush=True)

    cxx = [*cxx_compiler(), *COMMON_FLAGS, f"-I{CSRC}"]
    cuda = [f'-DSEQKERNELS_CUDA_TARGETS="{",".join(cuda_targets())}"'] if nvcc else []
    # Another torch: every object that sees its headers is made anew.
    torch = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f'-DSEQKERNELS_TORCH_VERSION="{TORCH_VERSION}"', *cuda]
    torch += system(*cpp_extension.include_paths())
    flags = escape(shlex.split(os.environ.get("CXXFLAGS", "")))
    lines = ninja_rule("cxx", f"{escape(cxx)} $flags {flags} -MMD")
    lines += ninja_rule("cxx_torch", f"{escape(cxx + torch)} $flags {flags} -MMD")
    runtime = []
    if nvcc:
        images = [f"-gencode=arch=compute_{t.split('_')[1]},code={t}" for t in cuda_targets()]
        strict = ["-DSEQKERNELS_CUDA_STRICT"] if os.environ.get("SEQKERNELS_CUDA_STRICT") == "1" else []
        compile = [str(nvcc), *NVCC_FLAGS, *strict, *images]
        lines += ninja_rule("cuda", f"{escape(compile)} $flags -MMD", log="$out.log")
        runtime = system(cuda_home(nvcc) / "include")

    # First what takes longest.
    units = [unit for source in cuda_sources for unit in cuda_units(source)]
    units += [Unit(LIBRARY, "cxx", source, flags) for source, flags in CPU_TARGETS.values()]
    for source in [*sources("*.cpp"), *sources("cpu/*.cpp"), *sources("cuda/*.cpp")]:
        if "/cuda" not in source and "/kernels_" not in source:
            has = HAS if source.endswith("dispatch.cpp") else []
            units.append(Unit(LIBRARY, "cxx_torch", source, has))
        elif "/cuda" in source and nvcc:
            units.append(Unit(LIBRARY, "cxx_torch", source, runtime))
    for python in pythons():
        given = [f'-DSEQKERNELS_VERSION="{project_version()}"', *cuda]
        given += system(pybind11.get_include(), python.include)
        for source in sources("python/*.cpp"):
            name = f"{source.replace('/', '_')}.{python.abi}"
            units.append(Unit(module_name(python), "cxx", source, given, name))
    if TESTS in binaries:
        units += test_units(system(pybind11.get_include(), pythons()[0].include))
    for unit in units:
        lines.append(f"build {unit.object}: {unit.rule} {escape_path(ROOT / unit.source)}")
        lines.append(f"  flags = {escape(unit.flags)}")

    link = f"  command = {escape(cxx_compiler())} $in -o $out $flags"
    lines += ["rule link", link, "  description = $out"]
    names, flags_of = file_names(), link_flags(nvcc)
    for binary in sorted(binaries):
        inputs = [unit.object for unit in units if unit.binary == binary]
        if binary == TESTS:  # whose kernels meet at the barriers of the product's teams
            inputs.append("csrc_cpu_team.cpp.o")
        elif binary != LIBRARY:
            inputs.append(names[LIBRARY])
        lines.append(f"build {names[binary]}: link {' '.join(inputs)}")
        lines.append(f"  flags = {escape(flags_of.get(binary, flags_of[MODULE]))}")
    return "\n".join(lines) + "\n"


def link_flags(nvcc: Path | None) -> dict[str, list[str]]:
    """What the library, the modules and the tests' module are linked with."""
    # Not torch_python: the ops use the stable C++ API alone. Python loads these libraries first.
    torch = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    cuda = []
    if nvcc:
        cuda = [f"-L{cuda_home(nvcc) / name}" for name in ("lib64", "lib")]
        cuda += ["-lcudart_static", "-lrt", "-lpthread", "-ldl"]
    if sys.platform == "darwin":
        library = ["-dynamiclib", f"-Wl,-install_name,@rpath/{file_names()[LIBRARY]}"]
        module = ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-rpath,@loader_path"]
    else:
        library = ["-shared", f"-Wl,-soname,{file_names()[LIBRARY]}"]
        module = ["-shared", "-Wl,-rpath,$ORIGIN"]
        # libtorch itself has no symbol of ours, but brings libtorch_cuda where there is one.
        torch = ["-Wl,--no-as-needed", *torch]
    extra = shlex.split(os.environ.get("LDFLAGS", ""))
    return {
        LIBRARY: [*library, *torch, *cuda, *extra],
        MODULE: [*module, *extra],
        TESTS: [*module, *torch, *extra],
    }


def system(*folders: object) -> list[str]:
    """The flags for headers that are not ours."""
    return [flag for folder in folders for flag in ("-isystem", str(folder))]


def cuda_units(source: str) -> list[Unit]:
    """What is made of a CUDA source: of cell.cu and cell_*.cu one object for each cell."""
    stem = Path(source).stem
    if not stem.startswith("cell"):
        return [Unit(LIBRARY, "cuda", source, [])]
    which = stem.removeprefix("cell")
    snake_case = {cell: re.sub(r"(?<!^)(?=[A-Z])", "_", cell).lower() for cell in cells()}
    return [
        Unit(LIBRARY, "cuda", source, [f"-DSEQKERNELS_CELL={cell}"], f"csrc_cuda_{snake}{which}.cu")
        for cell, snake in snake_case.items()
    ]


def test_units(includes: list[str]) -> list[Unit]:
    """What tests run of the CPU kernels' source beside the product's own."""
    # Vectors of the emulated targets are wider than the platform's; how they are passed concerns nobody else.
    emulated = [*KERNEL_FLAGS, "-Wno-psabi"]
    flags = {"emulated_avx512bf16": emulated, "emulated_amx": emulated, "module": [*HAS, *includes]}
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


def project_urls() -> dict[str, str]:
    """Where a release comes from, which whoever makes it knows."""
    repository = os.environ.get("SEQKERNELS_REPOSITORY", "").rstrip("/")
    if not repository:
        return {}
    if not re.fullmatch(r"https://[^/\s]+/[^/\s]+/[^/\s]+", repository):
        sys.exit(f"SEQKERNELS_REPOSITORY must be https://HOST/OWNER/NAME, got '{repository}'")
    pages = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}
    urls = {name: f"{repository}/blob/HEAD/{page}" for name, page in pages.items()}
    return {"Repository": repository, "Issues": f"{repository}/issues", **urls}


setup(
    project_urls=project_urls(),
    ext_modules=[Extension(name, sources=[]) for name in file_names()],
    # torch's own use of ninja has one set of flags for all sources; ours is in NinjaBuildExt.
    cmdclass={"build_ext": NinjaBuildExt.with_options(use_ninja=False), "bdist_wheel": BdistWheel},
)
