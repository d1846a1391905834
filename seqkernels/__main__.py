"""`python -m seqkernels`: what this build is and can do here; with `explain`, what a program runs on."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

import torch

from . import _C, __version__
from ._extension import BUILD_CONFIG


def report() -> str:
    """The lines that `python -m seqkernels` prints; helpful in a bug report."""
    rows = {
        "seqkernels": f"{__version__} (compiled part: {BUILD_CONFIG['version']})",
        "torch": f"{torch.__version__} (built for {BUILD_CONFIG['torch_target']} and later)",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "compiler": BUILD_CONFIG["compiler"],
        "CPU kernels": ", ".join(BUILD_CONFIG["cpu_targets"]),
        "  runnable here": ", ".join(_C.cpu_isas()),
        "  in use": f"{_C.cpu_isa()} (SEQKERNELS_CPU_ISA chooses)",
        "threads": torch.get_num_threads(),
        "CUDA kernels": BUILD_CONFIG["cuda_targets"].replace(",", ", ") or "none in this build",
        "CUDA devices": ", ".join(_cuda_devices()) or "none",
    }
    return "\n".join(f"{name:<16} {value}" for name, value in rows.items())


def _cuda_devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return found


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    from . import _explain_script

    if argv[:1] == ["explain"]:
        return _explain_script.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m seqkernels",
        description="Without a command: what this build is, and what it can do on this machine.",
    )
    commands = parser.add_subparsers(title="commands", metavar="command")
    commands.add_parser("explain", help="run a program, and say which kernels its recurrent layers ran on")
    parser.parse_args(argv)
    print(report())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
