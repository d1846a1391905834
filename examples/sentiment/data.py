"""Tweets with their polarity, as CSV.

The format is that of Sentiment140 (Go, Bhayani, Huang 2009): a row for each tweet, polarity first and text
last, with any columns (id, date, query, user) between them; polarity is 0 for negative, 2 for neutral, 4 for
positive. The words themselves do as well, and a first row that names the columns is skipped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.common.data import InputError, read_lines

from .tokenizer import tokenize

NEGATIVE, NEUTRAL, POSITIVE = "negative", "neutral", "positive"
_POLARITIES = {"0": NEGATIVE, "2": NEUTRAL, "4": POSITIVE}
_NUMBERS = {name: number for number, name in _POLARITIES.items()}


class Tweet(NamedTuple):
    """A text and how it feels."""

    text: str
    feeling: str

    @property
    def tokens(self) -> list[str]:
        return tokenize(self.text)


def read(path: Path, feelings: Sequence[str] = tuple(_NUMBERS)) -> list[Tweet]:
    """The tweets of a CSV file.

    Args:
        feelings: Those that may occur; by default all three.

    Raises:
        InputError: The file cannot be read, or a row of it is not a tweet: a column is missing, the polarity
            is none of `feelings`, or the text has no token.
    """
    rows = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    tweets: list[Tweet] = []
    line = 1  # where the row begins, which may be some lines before it ends
    try:
        for row in rows:
            if row and not (line == 1 and row[0].lower() in ("polarity", "target", "sentiment", "label")):
                tweets.append(_tweet(row, feelings, path, line))
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(path, line, "a row of CSV", str(error)) from None
    if not tweets:
        raise InputError(path, None, "tweets", "none")
    return tweets


def _tweet(row: list[str], feelings: Sequence[str], path: Path, line: int) -> Tweet:
    if len(row) < 2:
        raise InputError(path, line, "polarity and text, separated by a comma", "a single column")
    feeling = _POLARITIES.get(row[0].strip(), row[0].strip().lower())
    if feeling not in feelings:
        known = ", ".join(f"{_NUMBERS[name]} ({name})" for name in feelings)
        raise InputError(path, line, f"one of the polarities {known}", repr(row[0]))
    tweet = Tweet(row[-1], feeling)
    if not tweet.tokens:
        raise InputError(path, line, "a text with words in it", repr(row[-1]))
    return tweet


def write(tweets: Iterable[Tweet]) -> str:
    """The tweets as CSV that `read` reads.

    Example:
        >>> write([Tweet('so "good", yes', POSITIVE)])
        '4,"so ""good"", yes"\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((_NUMBERS[feeling], text) for text, feeling in tweets)
    return text.getvalue()
