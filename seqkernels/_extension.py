"""Loads the compiled part, or says how to get one."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  (its libraries are what the extension is linked with)

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "The compiled part of seqkernels, seqkernels._C, cannot be loaded. In a source checkout, build it "
        "with `pip install --no-build-isolation -e .`; otherwise install seqkernels again for this Python. "
        f"({error})"
    ) from error

__all__ = ["BUILD_CONFIG", "_C"]

BUILD_CONFIG: dict[str, Any] = _C.build_config()
