"""Plain text as a stream of tokens, words or characters, and as the parts that training goes through."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..common import distributed
from ..common.data import InputError, read_lines
from ..common.text import Vocabulary

__all__ = [
    "Part",
    "Probe",
    "join",
    "parts",
    "read_probes",
    "read_text",
    "split_lines",
    "stream",
    "tokenize",
    "write_probes",
]

END = "\n"  # of a line, a token of its own at both levels
_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def tokenize(line: str, level: str) -> list[str]:
    """A line's tokens: at level "char" its characters, at level "word" its words in lower case and its signs.

    Example:
        >>> tokenize("Don't stop!", "word"), tokenize("No!", "char")
        (["don't", 'stop', '!'], ['N', 'o', '!'])
    """
    return list(line) if level == "char" else _WORDS.findall(line.lower())


def join(tokens: list[str], level: str) -> str:
    """Tokens as text again; at the level of words, with a space where there may have been one."""
    if level == "char":
        return "".join(tokens)
    return re.sub(r" ?(\n) ?| (?=[.,;:!?)])|(?<=\() ", r"\1", " ".join(tokens))


def read_text(path: Path, level: str) -> list[list[str]]:
    """The tokens of each line of a text file, its end included; empty lines are left out.

    Raises:
        InputError: As `read_lines`; or the text is shorter than ten lines, too few to hold some out.
    """
    lines = [[*tokenize(line, level), END] for line in read_lines(path) if line.strip()]
    if len(lines) < 10:
        raise InputError(path, None, "ten lines of text or more", f"{len(lines)}")
    return lines


def split_lines(lines: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """The first nine tenths to learn from, the last tenth to test on: neighbouring lines stay together."""
    edge = len(lines) * 9 // 10
    return lines[:edge], lines[edge:]


def stream(vocabulary: Vocabulary, lines: list[list[str]]) -> Tensor:
    """The ids of all tokens, one line after the other, [N]."""
    return torch.tensor([i for line in lines for i in vocabulary.ids(line)])


class Part(NamedTuple):
    """A stretch of text to read at one go, with the token that follows each."""

    inputs: Tensor  # [T, B]
    targets: Tensor  # [T, B]
    first: bool  # whether it begins the text; else it goes on where the part before it ended


def parts(ids: Tensor, batch: int, length: int) -> list[Part]:
    """All parts of an epoch, in order: the text as `batch` streams side by side, cut every `length` tokens.

    Every process has its share of the streams. The last part may be shorter; up to batch - 1 tokens at the
    end of the text are left out.

    Args:
        ids: The text, [N].
        batch: Streams of all processes together.

    Raises:
        ValueError: There are fewer than two tokens for each stream, or fewer streams than processes.
    """
    steps = (len(ids) - 1) // batch
    if steps < 1 or batch < distributed.world_size():
        raise ValueError(f"{len(ids)} tokens cannot be read as {batch} streams")
    own = list(distributed.shard(range(batch)))
    size = batch * steps
    inputs, targets = (t.view(batch, steps)[own].t() for t in (ids[:size], ids[1 : size + 1]))
    starts = range(0, steps, length)
    return [Part(inputs[n : n + length], targets[n : n + length], n == 0) for n in starts]


@dataclass(frozen=True)
class Probe:
    """A beginning, the form of the next word that fits and the one that does not, and how far away the word
    is (in tokens) that tells."""

    prefix: str
    right: str
    wrong: str
    distance: int


def write_probes(probes: list[Probe]) -> str:
    """Probes as lines of four columns, with tabs between."""
    return "".join(f"{p.prefix}\t{p.right}\t{p.wrong}\t{p.distance}\n" for p in probes)


def read_probes(path: Path) -> list[Probe]:
    """The file that `write_probes` makes.

    Raises:
        InputError: As `read_lines`; or a line is not of that form.
    """
    probes = []
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t")
        if len(columns) != 4 or not all(column.strip() for column in columns):
            raise InputError(
                path, number, "beginning, right word, wrong word, distance, with tabs between", repr(line)
            )
        if not columns[3].isdecimal() or int(columns[3]) < 1:
            raise InputError(path, number, "a distance of one word or more", repr(columns[3]))
        probes.append(Probe(columns[0], columns[1], columns[2], int(columns[3])))
    return probes
