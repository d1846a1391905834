"""A tune as bars of notes: what is wrong with each bar, in which order they are played, and what sounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from .keys import Key, Meter

__all__ = ["Bar", "Event", "Note", "Problem", "Tune", "check", "last_pitch", "notes", "played"]


class Problem(NamedTuple):
    """What the reader did not understand."""

    line: int
    expected: str
    found: str

    def __str__(self) -> str:
        return f"line {self.line}: expected {self.expected}, found {self.found}"


@dataclass
class Event:
    """A note, a chord, or a rest."""

    duration: Fraction  # in whole notes
    pitches: tuple[int, ...]  # MIDI numbers, 60 is middle C; none: a rest
    tied: bool = False  # to the next event's notes of the same pitch


@dataclass
class Bar:
    """What is between two bar lines."""

    line: int
    text: str = ""
    events: list[Event] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    meter: Meter | None = None
    opens: bool = False  # a repeat begins before it
    closes: bool = False  # a repeat ends after it
    ending: int = 0  # begins the first, second, … ending of a repeat; 0: none
    first: bool = False  # of a part: a line for parts (double, thick, or of repeats) stands before it
    last: bool = False  # of a part, or of an ending: such a line stands after it

    @property
    def length(self) -> Fraction:
        """In whole notes."""
        return sum((event.duration for event in self.events), Fraction())


@dataclass
class Tune:
    """The reader's result, whatever was in the text."""

    fields: dict[str, str] = field(default_factory=dict)  # the header's, by letter; the first of each
    meter: Meter | None = None
    unit: Fraction = Fraction(1, 8)  # L:, in whole notes
    key: Key | None = None
    bars: list[Bar] = field(default_factory=list)
    body: str = ""  # the lines of music, without comments
    problems: list[Problem] = field(default_factory=list)  # of header and fields

    def first_problem(self) -> Problem | None:
        """The one furthest up, of header or bars."""
        found = [*self.problems, *(problem for bar in self.bars for problem in bar.problems)]
        return min(found, key=lambda problem: problem.line, default=None)


class Note(NamedTuple):
    """A sound; onset and duration in whole notes."""

    onset: Fraction
    duration: Fraction
    pitch: int | None  # MIDI number; None: silence


def check(tune: Tune) -> list[str | None]:
    """What is wrong with each bar: None where the bar is valid.

    A bar is valid if the header gives key and meter without an error, every symbol of the bar is read, and
    its length is that of the meter. A shorter bar is valid at the edge of a part alone:

    - as the first bar of the tune (a pickup);
    - as the first bar of a part, if its length and that of the last bar of its own part, or of the part
      before it, make up one bar together;
    - as the last bar of a part or of an ending, if its length and that of the first bar of its own part, or
      of the part after it, make up one bar together.

    Parts are what double or thick bar lines and those of repeats separate; an ending belongs to the part that
    it ends.
    """
    starts = [n for n, bar in enumerate(tune.bars) if bar.first]
    parts = [tune.bars[a:b] for a, b in pairwise([*starts, len(tune.bars)])]
    result: list[str | None] = []
    for number, part in enumerate(parts):
        lasts = [bar for bar in part if bar.last] + (
            [bar for bar in parts[number - 1] if bar.last] if number else []
        )
        firsts = [part[0], *(other[0] for other in parts[number + 1 : number + 2])]
        for bar in part:
            across = (lasts if bar is part[0] else []) + (firsts if bar.last else [])
            lengths = [bar.length, *(bar.length + other.length for other in across if other is not bar)]
            whole = bar.meter.length if bar.meter else Fraction()
            pickup = bar is tune.bars[0] and 0 < bar.length < whole
            problems = tune.problems or bar.problems
            if problems:
                result.append(str(problems[0]))
            elif whole in lengths or pickup:
                result.append(None)
            else:
                result.append(f"line {bar.line}: {bar.length} of a whole note where the meter has {whole}")
    return result


def played(tune: Tune) -> list[int]:
    """The indices of the bars in the order of playing: repeats twice, each time with its own ending.

    A repeat that closes without having opened goes back to the last one's end, or to the beginning.
    """
    bars, order = tune.bars, []
    at, start, turn, inside = 0, 0, 1, False  # `inside` an ending
    while at < len(bars):
        bar = bars[at]
        if at != start and (bar.opens or (bar.first and inside and turn > 1)):
            start, turn, inside = at, 1, False
        if bar.ending and bar.ending != turn:
            ahead = range(at + 1, len(bars))
            part = next((n for n in ahead if bars[n].opens), len(bars))
            own = next((n for n in ahead if bars[n].ending == turn and n < part), None)
            if own is not None:
                at = own
                bar = bars[at]
        inside = inside or bar.ending > 0
        order.append(at)
        at += 1
        if bar.closes:
            again = at < len(bars) and inside and bars[at].ending == turn + 1
            if turn == 1 or again:
                at, turn, inside = start, turn + 1, False
            else:
                start, turn, inside = at, 1, False
    return order


def notes(tune: Tune, order: Sequence[int] | None = None) -> list[Note]:
    """What sounds, rests included and tied notes joined, by onset.

    Args:
        order: The indices of bars; by default as they are played.
    """
    made: list[Note] = []
    now = Fraction()
    tied: dict[int, int] = {}  # from a pitch to the note in `made` that goes on
    for number in played(tune) if order is None else order:
        for event in tune.bars[number].events:
            still: dict[int, int] = {}
            for pitch in event.pitches or (None,):
                if pitch is not None and pitch in tied:
                    index = tied[pitch]
                    made[index] = made[index]._replace(duration=made[index].duration + event.duration)
                else:
                    index = len(made)
                    made.append(Note(now, event.duration, pitch))
                if event.tied and pitch is not None:
                    still[pitch] = index
            tied = still
            now += event.duration
    return made


def last_pitch(tune: Tune) -> int | None:
    """The MIDI number of the last note that is written, of a chord the lowest; None where there is none."""
    pitches = (event.pitches for bar in reversed(tune.bars) for event in reversed(bar.events))
    return next((min(own) for own in pitches if own), None)
