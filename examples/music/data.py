"""Tune books as text to learn from: one canonical header, the music as it stands, and an end."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common import terminal
from ..common.data import InputError
from ..common.text import Vocabulary
from .abc import read_book
from .score import Tune

__all__ = ["TUNE", "begin", "encode", "fields_of", "header", "load", "stream", "text_of"]

TUNE = "<TUNE>"  # the token between tunes: the end of one and the start of the next
FIELDS = "RMLK"  # those of a header that are learned, in this order


def load(path: Path, *, strict: bool = False, least: int = 1) -> list[Tune]:
    """The tunes of a file; how many others were skipped is printed, and why the first was.

    Args:
        strict: Others are an error.
        least: How many tunes are needed.

    Raises:
        InputError: As `read_book`; `strict` and a tune that was not understood; or too few that were.
    """
    tunes, refused = read_book(path)
    if refused and (strict or not tunes):
        raise refused[0]
    if refused:
        terminal.console().print(
            f"{len(refused)} of {len(tunes) + len(refused)} tunes skipped: {refused[0]}", markup=False
        )
    if len(tunes) < least:
        raise InputError(path, None, f"{least} tunes or more", f"{len(tunes)}")
    return tunes


def header(fields: dict[str, str]) -> str:
    """The lines of a header, as far as there are fields for them.

    Example:
        >>> header({"K": "G", "M": "6/8", "L": "1/8"})
        'M:6/8\\nL:1/8\\nK:G\\n'
    """
    return "".join(f"{name}:{fields[name]}\n" for name in FIELDS if name in fields)


def fields_of(tune: Tune) -> dict[str, str]:
    """What is learned of a header: kind, if there, meter, length of notes, key, all in one way of writing."""
    assert tune.meter is not None  # or it would not have been understood
    assert tune.key is not None
    fields = {"R": tune.fields["R"]} if tune.fields.get("R") else {}
    return fields | {"M": tune.meter.name, "L": str(tune.unit), "K": tune.key.name}


def text_of(tune: Tune) -> str:
    """A tune as it is learned: without number, title and comments.

    Example:
        >>> from examples.music.abc import parse
        >>> text_of(parse("X:1\\nT:Scale\\nL:1/4\\nM:C\\nK:G major\\nGABc |] % up"))
        'M:4/4\\nL:1/4\\nK:G\\nGABc |]\\n'
    """
    return f"{header(fields_of(tune))}{tune.body}\n"


def encode(vocabulary: Vocabulary, texts: Iterable[str]) -> list[list[int]]:
    """The ids of each tune's characters, with that of its end."""
    end = vocabulary.index[TUNE]
    return [[*vocabulary.ids(text), end] for text in texts]


def stream(tunes: Sequence[list[int]], order: int | str | None = None) -> Tensor:
    """Tunes one after the other, [N], before the first an end; `order` is the seed of a shuffle."""
    end, chosen = tunes[0][-1], list(tunes)
    if order is not None:
        random.Random(f"order {order}").shuffle(chosen)
    return torch.tensor([end, *(i for own in chosen for i in own)])


def begin(headers: Sequence[dict[str, str]], given: dict[str, str], seed: int) -> dict[str, str]:
    """The header of a new tune: one of the training's that fits best, with what was given in its place.

    Example:
        >>> seen = [{"R": "jig", "M": "6/8", "L": "1/8", "K": "G"}, {"M": "4/4", "L": "1/8", "K": "D"}]
        >>> begin(seen, {"M": "6/8", "K": "Am"}, seed=0)
        {'R': 'jig', 'M': '6/8', 'L': '1/8', 'K': 'Am'}
    """

    def fit(fields: dict[str, str]) -> tuple[bool, int]:
        same = {name for name, value in given.items() if fields.get(name) == value}
        return not (given.keys() - {"K"}) - same, len(same)

    best = max(map(fit, headers))
    chosen = random.Random(f"header {seed}").choice([fields for fields in headers if fit(fields) == best])
    return chosen | given
