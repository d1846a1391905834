"""What a program measured: tables that are printed and kept, and what they come to over several seeds.

A number from one training is one draw: another seed gives another. So what is claimed is the median over
seeds, with the lowest and the highest beside it, and a difference counts where these do not overlap.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import distributed, terminal
from .data import replace_text
from .errors import InputError

__all__ = ["Spread", "Summary", "keep", "markdown", "names", "read", "show", "spreads", "sum_up"]

Rows = Mapping[str, Mapping[str, float]]
FILE = "results.json"
SUMMARY = "seeds.json"  # of several seeds, by `repeat`


class Spread(NamedTuple):
    """The median of some numbers, the lowest and the highest.

    Example:
        >>> Spread.of([0.5, 0.25, 0.75]), str(Spread.of([0.5, 0.25, 0.75])), str(Spread.of([1.0, 1.0]))
        (Spread(median=0.5, low=0.25, high=0.75), '0.5 (0.25–0.75)', '1')
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        median, low, high = (terminal.number(value, digits=3) for value in self)
        return median if low == high else f"{median} ({low}–{high})"


class Summary(NamedTuple):
    """One table over several seeds."""

    title: str
    rows: dict[str, dict[str, list[float]]]  # a number for each seed

    def spreads(self) -> dict[str, dict[str, Spread]]:
        """The same rows and columns."""
        return spreads(self.rows)


def spreads(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, Spread]]:
    """The spread of what all seeds gave, for each row and column."""
    return {row: {name: Spread.of(values) for name, values in own.items()} for row, own in rows.items()}


def keep(folder: Path, table: str, title: str, rows: Rows) -> None:
    """Put a table into the file of results of a folder; of several processes, the first does.

    Args:
        table: Its name, by which it is found again; a table of that name is replaced.
        title: What stands above it.
        rows: Numbers by row and column.
    """
    if distributed.rank() > 0:
        return
    kept = _load(folder / FILE)
    kept[table] = {"title": title, "rows": rows}
    replace_text(folder / FILE, json.dumps(kept, ensure_ascii=False, indent=1) + "\n")


def show(folder: Path, table: str, title: str, rows: Rows) -> None:
    """Print a table and keep it."""
    terminal.console().print(terminal.table(title, rows))
    keep(folder, table, title, rows)


def read(folder: Path, table: str) -> tuple[str, Rows]:
    """The title and the rows of a table that was kept.

    Raises:
        InputError: There is none of that name.
    """
    kept = _load(folder / FILE)
    if table not in kept:
        raise InputError(folder / FILE, None, f"the results of {table}", ", ".join(kept) or "none")
    return kept[table]["title"], kept[table]["rows"]


def names(folder: Path) -> list[str]:
    """The names of the tables that were kept in a folder, in order."""
    return list(_load(folder / FILE))


def sum_up(folders: Mapping[int, Path], table: str) -> Summary:
    """A table over all seeds; rows and columns that some seed lacks are left out.

    Args:
        folders: That of each seed's results.

    Raises:
        InputError: A folder has no such table.
    """
    tables = [read(folder, table) for folder in folders.values()]
    title, first = tables[0]
    rows = {
        row: {
            name: [own[row][name] for _, own in tables]
            for name in columns
            if all(name in own.get(row, {}) for _, own in tables)
        }
        for row, columns in first.items()
    }
    return Summary(title, {row: own for row, own in rows.items() if own})


def markdown(rows: Mapping[str, Mapping[str, Spread]]) -> str:
    """Rows as a table of Markdown, the columns on their names.

    Example:
        >>> print(markdown({"GRU": {"accuracy": Spread(0.5, 0.25, 0.75)}, "mean": {}}))
        | | accuracy |
        |---|---:|
        | GRU | 0.5 (0.25–0.75) |
        | mean | – |
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        ["", *names],
        *([label, *(str(row.get(name, "–")) for name in names)] for label, row in rows.items()),
    ]
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head.replace("|  |", "| |"), "|---|" + "---:|" * len(names), *body])


def _load(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for table in found.values():
            if not isinstance(table["title"], str) or not all(
                isinstance(row, dict) for row in table["rows"].values()
            ):
                raise ValueError("a table without rows")
        return found
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        raise InputError(path, None, "results of this program", "a file of another kind") from None
