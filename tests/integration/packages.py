"""Packages that need help to be imported."""

from __future__ import annotations

import sys
import types

import pytest


def torchaudio() -> None:
    """Import torchaudio, where its wheel is of CUDA and torch is not: then without its compiled part.

    torchaudio does without it where it was built without, which neither a recurrent layer nor a loss notices.
    """
    try:
        pytest.importorskip("torchaudio")
    except OSError:  # the compiled part links to CUDA's libraries
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        without = types.ModuleType("torchaudio._extension")
        vars(without).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda f: f
        )
        sys.modules[without.__name__] = without
        import torchaudio  # noqa: F401
