"""The reader of ABC notation: a subset of the standard 2.1 (abcnotation.com), described in the README.

It reads any text whatsoever. What it does not understand it notes down, with its line, where it stands: in
the header or in a bar; so it can judge what a model wrote. `read_book` is the way for files, and tells apart
tunes that were understood from others.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

from ..common.data import InputError, read_lines
from .keys import NATURALS, Key, Meter
from .score import Bar, Event, Problem, Tune

__all__ = ["parse", "read_book"]

_LENGTH = r"(?:[0-9]{1,4})?(?:/[0-9]{1,4}|/{1,4})?"
_NOTE = rf"(?:\^\^|\^|__|_|=)?[A-Ga-g][,']{{0,4}}{_LENGTH}"
_SYMBOL = re.compile(
    rf"""
    (?P<line>    (?: ::+ | :*\|[|\]]*:* | \[\|:* ) \ * (?: \[?[1-9](?![0-9/]) )? | \[[1-9](?![0-9/]) )
  | (?P<field>   \[[A-Za-z]:[^\]]*\] )
  | (?P<chord>   \[(?:{_NOTE})+\]{_LENGTH} )
  | (?P<note>    {_NOTE} )
  | (?P<rest>    [zx]{_LENGTH} )
  | (?P<tie>     - )
  | (?P<broken>  >{{1,3}} | <{{1,3}} )
  | (?P<tuplet>  \([2-9](?: :[0-9]?(?: :[0-9]?)? )? )
  | (?P<skipped> \s | ` | \\$ | [()] | \{{[^}}]*\}} | "[^"]*" | ![^!|]*! | [~.HLMOPSTJRuv] | y[0-9]? )
  | (?P<unknown> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_PITCH = re.compile(rf"(?P<accidental>[\^_=]*)(?P<letter>[A-Ga-g])(?P<octave>[,']*)(?P<length>{_LENGTH})")
_FIELD = re.compile(r"([A-Za-z+]):(?![|:])\s*(.*)")
_ACCIDENTALS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}
_TUPLETS = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}  # p notes in the time of q; 5, 7 and 9 depend on the meter


def read_book(path: Path) -> tuple[list[Tune], list[InputError]]:
    """The tunes of a file, each from its X: line to an empty line; what stands between them is skipped.

    Returns:
        The tunes that were understood, and for each other one its first error.

    Raises:
        InputError: As `read_lines`; or there is no X: line.
    """
    tunes: list[Tune] = []
    refused: list[InputError] = []
    lines = [*read_lines(path), ""]
    start = None
    for number, line in enumerate(lines):
        if start is None and line.startswith("X:"):
            start = number
        elif start is not None and not line.strip():
            tune = parse("\n".join(lines[start:number]), start + 1)
            problem = tune.first_problem()
            if problem is None and not tune.bars:
                problem = Problem(start + 1, "a tune with notes", "a header alone")
            if problem is None:
                tunes.append(tune)
            else:
                refused.append(InputError(path, *problem))
            start = None
    if not tunes and not refused:
        raise InputError(path, None, "tunes in ABC notation, each of which begins with X:", "none")
    return tunes, refused


def parse(text: str, line: int = 1) -> Tune:
    """A tune, from its header to its end; nothing in the text is an exception.

    Args:
        line: The number of the text's first line, for what is noted down about it.

    Example:
        >>> tune = parse("M:3/4\\nL:1/8\\nK:G\\nG2 F2 (3ABc|d>e Hm")
        >>> [event.pitches for event in tune.bars[0].events]
        [(67,), (66,), (69,), (71,), (72,)]
        >>> tune.bars[0].length, tune.bars[1].length, str(tune.bars[1].problems[0])
        (Fraction(3, 4), Fraction(1, 4), "line 4: expected a symbol of ABC's subset, found 'm'")
    """
    return _Reader().read(text, line)


class _Reader:
    """The state of reading one tune."""

    def __init__(self) -> None:
        self.tune = Tune()
        self.music: list[str] = []
        self.line = 1
        self.voice: str | None = None
        self.begun = False  # the header is over
        self.unit, self.meter = self.tune.unit, self.tune.meter  # as they are here
        self.signature: dict[str, int] = {}
        self.bar = Bar(1, first=True)
        self.accidentals: dict[str, int] = {}  # of this bar, by letter: they hold in all octaves
        self.last: dict[int, int] = {}  # of the last event: from natural pitches to those that sound
        self.carried: dict[int, int] = {}  # the same of an event that is tied to the next
        self.broken: Fraction | None = None  # what > or < makes of the next event's length
        self.tuplet, self.left = Fraction(1), 0  # what a tuplet makes of the length of its next events

    def read(self, text: str, line: int) -> Tune:
        for self.line, written in enumerate(text.split("\n"), line):
            content = written.split("%")[0].strip()
            match = _FIELD.fullmatch(content)
            if match is None and content:
                self._begin()
                self.music.append(content)
                self._read_music(content)
            elif match is not None:
                if self.begun and match[1] in "KLM":
                    self.music.append(content)
                self._read_field(match[1], match[2].strip())
        self._begin()
        self._finish_bar("")
        if self.tune.bars:
            self.tune.bars[0].first = self.tune.bars[-1].last = True
        self.tune.body = "\n".join(self.music)
        return self.tune

    def _begin(self) -> None:
        """The header ends with K:, at the latest where there is music."""
        if self.begun:
            return
        self.begun = True
        for name, value in (("M", self.tune.meter), ("K", self.tune.key)):
            if value is None and name not in self.tune.fields:
                self._problem(f"{name}: in the header", "none")
        if "L" not in self.tune.fields and self.tune.meter is not None:
            self.tune.unit = Fraction(1, 16 if self.tune.meter.length < Fraction(3, 4) else 8)
        self.unit, self.meter = self.tune.unit, self.tune.meter
        self.bar.meter = self.meter

    def _problem(self, expected: str, found: str) -> None:
        self.tune.problems.append(Problem(self.line, expected, found))

    # ---------------------------------------------------------------- fields

    def _read_field(self, name: str, value: str) -> None:
        if not self.begun:
            self.tune.fields.setdefault(name, value)
        if name == "M":
            meter = Meter.parse(value)
            if meter is None:
                self._problem("a meter such as 6/8, C or C|", repr(value))
            elif not self.begun:
                self.tune.meter = meter
            else:
                self.meter = meter
                if not self.bar.events:
                    self.bar.meter = meter
        elif name == "L":
            match = re.fullmatch(r"1(?:/(1|2|4|8|16|32|64))?", value)
            if match is None:
                self._problem("a length of notes such as 1/8", repr(value))
            elif not self.begun:
                self.tune.unit = Fraction(1, int(match[1] or 1))
            else:
                self.unit = Fraction(1, int(match[1] or 1))
        elif name == "K":
            key = Key.parse(value)
            if key is None:
                self._problem("a key such as G, Em or Ador", repr(value))
            elif not self.begun:
                self.tune.key = key
            self.signature = key.signature if key else {}
            self._begin()
        elif name == "V":
            voice = value.split()[0] if value else ""
            if self.voice not in (None, voice):
                self._problem("a single voice", f"V:{voice}")
            self.voice = voice

    # ---------------------------------------------------------------- music

    def _read_music(self, content: str) -> None:
        for match in _SYMBOL.finditer(content):
            kind, text = match.lastgroup, match.group()
            if kind == "line":
                self._finish_bar(text)
                continue
            if not (self.bar.events or self.bar.problems):
                self.bar.line = self.line
            if kind != "skipped":
                self.bar.text += text
            problem = self._read_symbol(kind or "", text)
            if problem is not None:
                self.bar.problems.append(Problem(self.line, *problem))

    def _read_symbol(self, kind: str, text: str) -> tuple[str, str] | None:
        """Read a symbol into the bar; what was expected and found, where it makes no sense."""
        if kind == "unknown":
            return "a symbol of ABC's subset", repr(text)
        if kind == "field":
            self._read_field(text[1], text[3:-1].strip())
        elif kind in ("note", "chord", "rest"):
            return self._event(kind, text)
        elif kind == "tie":
            if not (self.bar.events and self.bar.events[-1].pitches):
                return "a note before a tie", repr(text)
            self.bar.events[-1].tied = True
            self.carried = self.last
        elif kind == "broken":
            if not self.bar.events or self.broken is not None:
                return f"notes on both sides of {text[0]}", repr(text)
            part = Fraction(1, 2 ** len(text))
            before, self.broken = (2 - part, part) if text[0] == ">" else (part, 2 - part)
            self.bar.events[-1].duration *= before
        elif kind == "tuplet":
            if self.left:
                return f"{self.left} notes more of a tuplet", repr(text)
            p, q, r = (int(own) if own else 0 for own in (text[1:] + "::").split(":")[:3])
            compound = self.bar.meter is not None and self.bar.meter.compound
            self.tuplet = Fraction(q or _TUPLETS.get(p, 3 if compound else 2), p)
            self.left = r or p
        return None

    def _event(self, kind: str, text: str) -> tuple[str, str] | None:
        """Read a note, a chord or a rest."""
        inner, _, outer = text[1:].partition("]") if kind == "chord" else (text, "", "")
        pitches, lengths = [], []
        self.last = {}
        for match in _PITCH.finditer(inner) if kind != "rest" else ():
            pitches.append(self._pitch(match))
            lengths.append(_length(match["length"]))
        duration = (_length(text[1:]) if kind == "rest" else lengths[0]) * _length(outer) * self.unit
        self.carried = {}
        if self.broken is not None:
            duration, self.broken = duration * self.broken, None
        if self.left:
            duration, self.left = duration * self.tuplet, self.left - 1
        if duration <= 0:
            return "a length above 0", repr(text)
        self.bar.events.append(Event(duration, tuple(sorted(set(pitches)))))
        return None

    def _pitch(self, match: re.Match[str]) -> int:
        """The MIDI number of a note, by its accidental, those before it in the bar, or the key."""
        letter, octave = match["letter"], match["octave"]
        natural = (
            60 + NATURALS[letter.upper()] + 12 * (letter.islower() + octave.count("'") - octave.count(","))
        )
        letter = letter.upper()
        if match["accidental"]:
            self.accidentals[letter] = _ACCIDENTALS[match["accidental"]]
        alteration = self.accidentals.get(letter, self.signature.get(letter, 0))
        pitch = natural + alteration
        if not match["accidental"] and letter not in self.accidentals:
            pitch = self.carried.get(natural, pitch)
        self.last[natural] = pitch
        return pitch

    def _finish_bar(self, line: str) -> None:
        """End the bar at a bar line and begin the next."""
        bar, bars = self.bar, self.tune.bars
        closes, opens = line.startswith(":"), line.rstrip(" [123456789").endswith(":")
        thick = closes or opens or any(sign in line for sign in ("||", "]", "[|"))
        ending = int(line[-1]) if line[-1:].isdigit() else 0
        if self.left or self.broken is not None:
            bar.problems.append(Problem(self.line, "the rest of a tuplet or of > <", "the end of a bar"))
        if bar.events or bar.problems:
            bars.append(bar)
            self.bar = bar = Bar(self.line, meter=self.meter)
        if bars:
            bars[-1].closes |= closes
            bars[-1].last |= thick
        bar.opens |= opens
        bar.ending = ending or bar.ending
        bar.first = (bar.first or thick or not bars) and not bar.ending
        self.accidentals, self.broken, self.left = {}, None, 0


def _length(text: str) -> Fraction:
    """The number after a note: 3, 3/2, /2, / or //; 0 stands for what makes no sense."""
    number, slash, rest = text.partition("/")
    below = int(rest) if rest.isdigit() else 2 ** (1 + len(rest)) if slash else 1
    return Fraction(int(number or 1), below) if below else Fraction()
