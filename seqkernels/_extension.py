"""Loads the library with the kernels and the module of this Python, or says how to get them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch  # whose libraries ours is linked with

__all__ = ["BUILD_CONFIG", "LIBRARY", "_C"]

LIBRARY = Path(__file__).with_name(f"libseqkernels.{'dylib' if sys.platform == 'darwin' else 'so'}")


def _how_to_get_them(error: Exception) -> str:
    modules = sorted(path.name for path in LIBRARY.parent.glob("_C.*") if path.suffix in (".so", ".dylib"))
    what = "The compiled part of seqkernels cannot be loaded. "
    if LIBRARY.is_file() and modules:
        what += f"It is there for {', '.join(modules)}, and this Python is {sys.implementation.cache_tag}. "
    return (
        f"{what}In a source checkout, build it with `pip install --no-build-isolation -e .`; otherwise "
        f"install seqkernels again for this Python. ({error.__cause__ or error})"
    )


try:
    torch.ops.load_library(LIBRARY)
    from . import _C
except (ImportError, OSError) as error:
    raise ImportError(_how_to_get_them(error)) from error

BUILD_CONFIG: dict[str, Any] = _C.build_config()
