"""docs/guide/real-models.md is of the numbers beside it, and of the versions that are pinned."""

from __future__ import annotations

import re
from pathlib import Path

from .integration import page

ROOT = Path(__file__).parents[1]


def test_the_table_is_of_the_numbers() -> None:
    found = page.MARKED.search(page.PAGE.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == found[1] + page.table(page.rows()) + found[2]


def test_versions_are_those_that_are_installed() -> None:
    files = [ROOT / f"requirements-{name}.txt" for name in ("models", "integrations")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    pins = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
    pinned = {name.lower(): version for name, version in pins}
    assert {row["package"]: row["version"] for row in page.rows()}.items() <= pinned.items()
