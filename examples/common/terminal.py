"""What the programs print; under torchrun, only the first process does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from . import distributed

__all__ = ["console", "number", "progress", "table"]


def console() -> Console:
    """Where to print, at the time of the call; a file gets lines as long as they are.

    Text is printed as it is: what looks like rich's markup, such as "[/b]" or ":cat:", may be a user's.
    """
    made = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=distributed.rank() > 0)
    if not made.is_terminal:
        made.width = 200
    return made


def progress(unit: str) -> Progress:
    """A bar with the fields `loss` and `rate` (in units per second) of its task; gone when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:6.4f}"),
        TextColumn("{task.fields[rate]:>9,.0f} " + unit + "/s"),
    )
    output = console()
    return Progress(*columns, console=output, transient=True, disable=not output.is_terminal)


def number(value: float, digits: int = 4) -> str:
    """As many digits, or all before the point up to a thousand million."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def table(title: str, rows: Mapping[str, Mapping[str, float | NamedTuple]]) -> Table:
    """Rows of numbers with the same names, which head the columns; a dash where a row lacks one.

    What is not a number is shown as the text that it is.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    made = Table("", title=title, title_justify="left")
    for name in names:
        made.add_column(name, justify="right")
    for label, row in rows.items():
        made.add_row(label, *(_cell(row[name]) if name in row else "–" for name in names))
    return made


def _cell(value: float | NamedTuple) -> str:
    return str(value) if isinstance(value, tuple) else number(value)
