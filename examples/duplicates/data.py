"""Pairs of questions, as tab-separated values.

The format is that of the Quora Question Pairs: a first line that names the columns, among them question1,
question2 and is_duplicate (0 or 1), in any order and with any others; a field with tabs, quotes or line ends
in it stands in quotes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from examples.common.data import InputError, read_lines

COLUMNS = ("question1", "question2", "is_duplicate")
_TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")


class Pair(NamedTuple):
    """Two questions, and whether they ask the same."""

    first: str
    second: str
    duplicate: bool


def tokenize(question: str) -> list[str]:
    """Words and signs, in lower case.

    Example:
        >>> tokenize("What’s a well-known city?")
        ["what's", 'a', 'well-known', 'city', '?']
    """
    return _TOKEN.findall(question.replace("’", "'").lower())


def read(path: Path, *, strict: bool = False) -> tuple[list[Pair], int]:
    """The pairs of a TSV file, and how many others were left out, a question of theirs having no words.

    Args:
        strict: Whether a question without words is an error.

    Raises:
        InputError: The file cannot be read or has no pairs, the first line lacks one of the columns, or a row
            is broken: another number of fields, neither 0 nor 1, or, if `strict`, a question without words.
    """
    rows = csv.reader((line + "\n" for line in read_lines(path)), delimiter="\t", strict=True)
    pairs: list[Pair] = []
    left_out = 0
    line = 1  # where the row begins, which may be some lines before it ends
    try:
        head = next(rows)
        if missing := [name for name in COLUMNS if name not in head]:
            raise InputError(
                path, 1, f"names of columns with {', '.join(COLUMNS)}", f"none of {', '.join(missing)}"
            )
        line = rows.line_num + 1
        for row in rows:
            if row:
                if len(row) != len(head):
                    raise InputError(path, line, f"{len(head)} columns separated by tabs", f"{len(row)}")
                pair = _pair(dict(zip(head, row, strict=True)), path, line, strict)
                pairs += [pair] if pair else []
                left_out += pair is None
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(path, line, "a row of tab-separated values", str(error)) from None
    if not pairs:
        raise InputError(path, None, "pairs of questions", "none")
    return pairs, left_out


def _pair(row: dict[str, str], path: Path, line: int, strict: bool) -> Pair | None:
    """The pair of a row; None where a question has no words."""
    first, second, duplicate = (row[name] for name in COLUMNS)
    if duplicate not in ("0", "1"):
        raise InputError(path, line, "is_duplicate to be 0 or 1", repr(duplicate))
    for name in COLUMNS[:2]:
        if not tokenize(row[name]):
            if strict:
                raise InputError(path, line, f"a question as {name}", repr(row[name]))
            return None
    return Pair(first, second, duplicate == "1")


def write(pairs: Iterable[Pair]) -> str:
    """The pairs as TSV that `read` reads.

    Example:
        >>> write([Pair("why ?", "how ?", False)])
        'question1\\tquestion2\\tis_duplicate\\nwhy ?\\thow ?\\t0\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((first, second, int(duplicate)) for first, second, duplicate in pairs)
    return text.getvalue()
