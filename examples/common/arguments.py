"""The types of the programs' arguments: each makes a value of a text, or says in one line why it cannot."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = [
    "above_zero",
    "cosine",
    "device",
    "folder",
    "not_negative",
    "order",
    "positive",
    "probability",
    "seed",
    "whole",
]

LARGEST = 1e30  # even its multiples are numbers in float32


def positive(text: str) -> int:
    """A positive integer, as an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def whole(low: int, high: int) -> Callable[[str], int]:
    """What takes a whole number from `low` to `high` as an argument."""

    def number(text: str) -> int:
        if not text.isdecimal() or len(text) > len(str(high)) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low:,} to {high:,}")
        return int(text)

    return number


seed = whole(0, 10**9)  # what all generators of random numbers take, also with others' seeds added
order = whole(1, 20)  # n of an n-gram model, whose tables grow with every word


def not_negative(text: str) -> float:
    """A number from 0 on that is finite in float32, too, as an argument."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    if number > LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not below {LARGEST:g}")
    return number


def probability(text: str) -> float:
    """A number from 0 to below 1, as an argument."""
    number = not_negative(text)
    if number >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not below 1")
    return number


def device(text: str) -> torch.device:
    """A device that this machine has, as an argument."""
    try:
        made = torch.device(text)
        torch.zeros(1, device=made).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).splitlines()[0]}") from None
    return made


def cosine(text: str) -> float:
    """A number from -1 to 1, as an argument."""
    number = float(text)
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from -1 to 1")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0, as an argument."""
    number = not_negative(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def folder(text: str) -> Path:
    """A folder, or what may become one, as an argument."""
    path = Path(text)
    if not text:
        raise argparse.ArgumentTypeError("'' is not the name of a folder")
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {(error.strerror or str(error)).lower()}") from None
    if is_file:
        raise argparse.ArgumentTypeError(f"{text!r} is a file, not a folder")
    return path
