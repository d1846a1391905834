"""From a tag for every token to entities, and from entities to precision, recall and F1.

A tag is O, outside of any entity, or B-TYPE, I-TYPE, where B begins an entity and I continues one. Other
schemes are read as well: IOB1, in which B is used only between two adjacent entities of one type, and BIOES,
in which E ends an entity and S is one on its own (also known as BILOU's L and U).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_BEGINS, _GOES_ON, _ENDS = frozenset("BSU"), frozenset("IEL"), frozenset("ESLU")


class Span(NamedTuple):
    """An entity: the tokens from `start` up to, not including, `end`, and its type."""

    start: int
    end: int
    type: str


def split_tag(tag: str) -> tuple[str, str]:
    """A tag's letter and type; both are empty for O.

    Raises:
        ValueError: It is no tag.

    Example:
        >>> split_tag("B-PER"), split_tag("O")
        (('B', 'PER'), ('', ''))
    """
    if tag == OUTSIDE:
        return "", ""
    letter, dash, type = tag.partition("-")
    if not dash or not type or letter not in _BEGINS | _GOES_ON:
        raise ValueError(f"{tag!r} is not O and not B-, I-, E-, L-, S- or U- with a type")
    return letter, type


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities that the tags of one sentence mark, in order.

    A tag that continues an entity where there is none of its type begins one, as in the scorer of the CoNLL
    shared tasks; so every sequence of tags has a meaning, and so does IOB1.

    Example:
        >>> spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
        [Span(start=0, end=2, type='PER'), Span(start=3, end=4, type='LOC'), Span(start=4, end=5, type='LOC')]
    """
    found: list[Span] = []
    start, current = 0, ""  # of the entity that is open before each token
    for i, (letter, type) in enumerate([*map(split_tag, tags), ("", "")]):
        if current and (letter in _BEGINS or type != current):
            found.append(Span(start, i, current))
            current = ""
        if type and not current:
            start, current = i, type
        if current and letter in _ENDS:
            found.append(Span(start, i + 1, current))
            current = ""
    return found


def to_iob2(tags: Sequence[str]) -> list[str]:
    """The same entities, each as one B- and then I- tags, whatever the scheme was.

    Example:
        >>> to_iob2(["I-PER", "E-PER", "S-LOC"])
        ['B-PER', 'I-PER', 'B-LOC']
    """
    uniform = [OUTSIDE] * len(tags)
    for start, end, type in spans(tags):
        uniform[start:end] = [f"B-{type}"] + [f"I-{type}"] * (end - start - 1)
    return uniform


class Score(NamedTuple):
    """How many entities are found, are there, and are found rightly, at both ends and in type."""

    found: int
    there: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.there if self.there else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, 2 P R / (P + R)."""
        return 2 * self.right / (self.found + self.there) if self.found + self.there else 0.0


def score(predicted: Iterable[Sequence[str]], actual: Iterable[Sequence[str]]) -> dict[str, Score]:
    """Entity-level scores by type, in alphabetical order, and of `all` types together.

    Args:
        predicted, actual: The tags of each sentence.

    Raises:
        ValueError: The two differ in the number of sentences or in the length of one.

    Example:
        >>> score([["B-PER", "I-PER", "B-LOC"]], [["B-PER", "O", "B-LOC"]])["all"]
        Score(found=2, there=2, right=1)
    """
    found: Counter[str] = Counter()
    there: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for ours, theirs in zip(predicted, actual, strict=True):
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} predicted tags for {len(theirs)} tokens")
        got, wanted = set(spans(ours)), set(spans(theirs))
        for counter, of in ((found, got), (there, wanted), (right, got & wanted)):
            counter.update(span.type for span in of)
    scores = {type: Score(found[type], there[type], right[type]) for type in sorted(found | there)}
    return {**scores, "all": Score(found.total(), there.total(), right.total())}
