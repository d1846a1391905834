"""The table of docs/guide/real-models.md, and the numbers that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "docs" / "guide"
PAGE, NUMBERS = FOLDER / "real-models.md", FOLDER / "real-models.json"
MARKED = re.compile(r"(<!-- models:begin -->\n).*(<!-- models:end -->)", re.DOTALL)
Row = dict[str, Any]


def table(rows: list[Row]) -> str:
    """In Markdown, and where they were measured."""
    head = "package | model | what fuse changes | what it leaves alone | training | inference"
    lines = [f"| {head} |", "| --- | --- | --- | --- | ---: | ---: |", *map(line, rows)]
    machines = dict.fromkeys(row["machine"] for row in rows)
    return "\n".join([*lines, *(f"\n{machine}" for machine in machines)]) + "\n"


def line(row: Row) -> str:
    """One of the table."""
    left = "; ".join(f"`{name}`: {why}" for name, why in row["left"].items())
    package = f"{row['package']} {row['version']}"
    speedups = [median(row[work]) for work in ("training", "inference")]
    return f"| {' | '.join([package, row['model'], '; '.join(row['fused']), left or '–', *speedups])} |"


def median(speedup: dict[str, float]) -> str:
    """The median, and the quartiles in brackets."""
    return f"{speedup['median']:.2f} [{speedup['q25']:.2f}, {speedup['q75']:.2f}]"


def rows() -> list[Row]:
    """Those that are shown."""
    return json.loads(NUMBERS.read_text(encoding="utf-8"))


def renew(new: list[Row]) -> None:
    """Put these rows in place of those of the same models, in the file of numbers and the page's table."""
    merged = {(row["package"], row["model"]): row for row in [*rows(), *new]}
    shown = [merged[key] for key in sorted(merged)]
    NUMBERS.write_text(json.dumps(shown, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKED.sub(lambda found: found[1] + table(shown) + found[2], text), encoding="utf-8")
