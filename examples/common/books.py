"""Texts that every machine with a Python has: the sources of its standard library, and its reference."""

from __future__ import annotations

import importlib
import re
import sysconfig
from pathlib import Path

from .errors import InputError

__all__ = ["language_reference", "standard_library"]


def standard_library(characters: int) -> str:
    """The first ASCII characters of the standard library's own modules, in alphabetical order."""
    parts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_bytes().decode("ascii", errors="ignore"))
        if sum(map(len, parts)) >= characters:
            break
    return "".join(parts)[:characters]


def language_reference() -> str:
    """The chapters of The Python Language Reference that `help()` shows, some 60,000 words of English, every
    paragraph once: `help()` has several chapters under more than one topic.

    Raises:
        InputError: This Python came without them.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        expected = "a Python with the module pydoc_data, which has the text"
        raise InputError("--book", None, expected, "one without") from None
    paragraphs = (part for _, text in sorted(topics.items()) for part in re.split(r"\n\s*\n", text))
    kept = dict.fromkeys(part.strip("\n").rstrip() for part in paragraphs if part.strip())
    return "\n\n".join(kept) + "\n"
