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


def table(content: dict[str, Any]) -> str:
    """In Markdown: `content` has the rows of the models, and a line about the machine."""
    head = "package | model | what fuse changes | what it leaves alone | training | inference"
    lines = [f"| {head} |", "| --- | --- | --- | --- | ---: | ---: |", *map(line, content["rows"])]
    return "\n".join([*lines, "", content["machine"]]) + "\n"


def line(row: Row) -> str:
    """One of the table."""
    left = "; ".join(f"`{name}`: {why}" for name, why in row["left"].items())
    package = f"{row['package']} {row['version']}"
    speedups = [shown(row[work]) for work in ("training", "inference")]
    return f"| {' | '.join([package, row['model'], '; '.join(row['fused']), left or '–', *speedups])} |"


def shown(speedup: dict[str, float]) -> str:
    """The median, and the quartiles in brackets."""
    return f"{speedup['median']:.2f} [{speedup['q25']:.2f}, {speedup['q75']:.2f}]"


def renew(rows: list[Row], machine: str) -> None:
    """Put these rows in place of those of the same models, in the file of numbers and the page's table."""
    known = json.loads(NUMBERS.read_text(encoding="utf-8"))["rows"] if NUMBERS.exists() else []
    merged = {(row["package"], row["model"]): row for row in [*known, *rows]}
    content = {"machine": machine, "rows": [merged[key] for key in sorted(merged)]}
    NUMBERS.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKED.sub(lambda found: found[1] + table(content) + found[2], text), encoding="utf-8")
