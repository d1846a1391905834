"""The one kind of error that a user of the programs meets."""

from __future__ import annotations

from pathlib import Path

__all__ = ["InputError"]


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
