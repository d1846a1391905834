"""Sentences with a tag for every token, in CoNLL columns.

A line for each token, its columns separated by spaces or tabs, the token first and the tag last, and an empty
line after each sentence (Tjong Kim Sang, De Meulder 2003, arXiv:cs/0306050). Lines of -DOCSTART- are skipped.
All schemes of `spans` are read, as the IOB2 that is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from examples.common.data import InputError, read_lines

from .spans import split_tag, to_iob2


class Sentence(NamedTuple):
    """Tokens, and as many tags, in IOB2."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def read(path: Path, types: Collection[str] | None = None) -> list[Sentence]:
    """The sentences of a CoNLL file.

    Args:
        types: The types of entity that may occur; any by default.

    Raises:
        InputError: The file cannot be read, or has no sentence, or a line has another number of columns than
            the first one, or its last column is no tag, or one of an unknown type.
    """
    sentences: list[Sentence] = []
    tokens: list[str] = []
    tags: list[str] = []
    columns = 0
    for number, line in enumerate([*read_lines(path), ""], start=1):
        fields = (line.split("\t") if "\t" in line else line.split(" ")) if line.strip() else []
        fields = [field.strip() for field in fields if field.strip()]
        if not fields or fields[0] == "-DOCSTART-":
            if tokens:
                sentences.append(Sentence(tuple(tokens), tuple(to_iob2(tags))))
                tokens, tags = [], []
            continue
        columns = columns or len(fields)
        if len(fields) < 2:
            raise InputError(path, number, "a token and its tag", repr(line))
        if len(fields) != columns:
            raise InputError(path, number, f"{columns} columns, as in the lines before", f"{len(fields)}")
        tokens.append(fields[0])
        tags.append(_checked(fields[-1], types, path, number))
    if not sentences:
        raise InputError(path, None, "sentences", "none")
    return sentences


def _checked(tag: str, types: Collection[str] | None, path: Path, line: int) -> str:
    try:
        _, type = split_tag(tag)
    except ValueError:
        expected = "a tag: O, or B-, I-, E-, L-, S- or U- with a type"
        raise InputError(path, line, expected, repr(tag)) from None
    if type and types is not None and type not in types:
        raise InputError(path, line, f"one of the trained types {', '.join(sorted(types))}", repr(type))
    return tag


def write(sentences: Iterable[Sentence]) -> str:
    """The sentences as text that `read` reads.

    Example:
        >>> print(write([Sentence(("Ann", "sings"), ("B-PER", "O"))]), end="")
        Ann B-PER
        sings O
        <BLANKLINE>
    """
    lines = (
        "".join(f"{token} {tag}\n" for token, tag in zip(*sentence, strict=True)) for sentence in sentences
    )
    return "\n".join(lines) + "\n"
