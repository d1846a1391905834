"""The one kind of error that a user of the programs meets."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["InputError", "told"]


class InputError(Exception):
    """Input that its author has to put right; the command line shows it as one line, without a traceback.

    Args:
        path: The file, or the option, that is at fault.
        line: Its line, counted from 1; None where the fault is not in one line.
        expected: What should have been there.
        found: What was there instead.

    Example:
        >>> str(InputError("tweets.csv", 7, "2 columns", "3"))
        'tweets.csv:7: expected 2 columns, found 3'
    """

    def __init__(self, path: Path | str, line: int | None, expected: str, found: str) -> None:
        place = f"{path}:{line}" if line is not None else f"{path}"
        super().__init__(f"{place}: expected {expected}, found {found}")
        self.path, self.line, self.expected, self.found = path, line, expected, found


def told(error: Exception) -> str | None:
    """What to tell the user, in one line, of an error of the operating system, or of sizes that do not fit
    into memory; None for any other error, which is the program's own.

    Example:
        >>> told(OSError(28, "No space left on device", "out/ner.png"))
        'out/ner.png: no space left on device'
    """
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{(error.strerror or str(error)).lower()}"
    # PyTorch has several ways of saying it.
    signs = ("can't allocate memory", "Storage size calculation overflowed", "multiplication overflow")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs):
        return f"expected sizes that fit into memory, found larger ones: {str(error).splitlines()[0]}"
    return None
