"""Keys and meters: what the fields K: and M: of a tune say.

A key signature is a place on the line of fifths … Bb F C G D …: each fifth up is a sharp more. C major has
none, and the other modes on the same tonic lie up to five fifths away from its major.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

__all__ = ["NATURALS", "Key", "Meter"]

NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C
_FIFTHS = "FCGDAEB"  # the order in which sharps come, that of flats backwards
_MODES = {"maj": 0, "ion": 0, "lyd": 1, "mix": -1, "dor": -2, "min": -3, "aeo": -3, "phr": -4, "loc": -5}
_KEY = re.compile(
    rf"""([A-G]) ([#b]?) \s* (m(?![a-zA-Z])|(?i:{"|".join(_MODES)})[a-zA-Z]*)?
    (?:\s+ (?:\w+=\S+ | (?:treble|alto|tenor|bass)\S*))* """,
    re.VERBOSE,
)
_METER = re.compile(r"([1-9][0-9]?)/(1|2|4|8|16|32)")


class Key(NamedTuple):
    """A tonic and a mode.

    Example:
        >>> key = Key.parse("Em")
        >>> key.tonic, key.signature, key.name
        (4, {'F': 1}, 'Em')
        >>> Key.parse("Bb mixolydian").signature
        {'B': -1, 'E': -1, 'A': -1}
        >>> Key.parse("H") is None
        True
    """

    letter: str  # A to G
    accidental: str  # "#", "b" or nothing
    mode: str  # three letters, a key of _MODES

    @classmethod
    def parse(cls, text: str) -> Key | None:
        """The key that K: names; None where it names none, or one with more than seven sharps or flats."""
        match = _KEY.fullmatch(text.strip())
        if match is None:
            return None
        mode = "min" if match[3] == "m" else (match[3] or "maj")[:3].lower()
        key = cls(match[1], match[2], mode)
        return key if abs(key.fifths) <= 7 else None

    @property
    def fifths(self) -> int:
        """The number of sharps; of flats, if negative."""
        return _FIFTHS.index(self.letter) - 1 + 7 * self._alteration + _MODES[self.mode]

    @property
    def signature(self) -> dict[str, int]:
        """By how many semitones the letters are altered that the signature names."""
        if self.fifths >= 0:
            return dict.fromkeys(_FIFTHS[: self.fifths], 1)
        return dict.fromkeys(_FIFTHS[: self.fifths - 1 : -1], -1)

    @property
    def tonic(self) -> int:
        """The pitch class of the tonic: semitones above C, 0 to 11."""
        return (NATURALS[self.letter] + self._alteration) % 12

    @property
    def name(self) -> str:
        """The key as K: writes it: "G", "Em", "Ador"."""
        return (
            self.letter
            + self.accidental
            + {"maj": "", "ion": "", "min": "m", "aeo": "m"}.get(self.mode, self.mode)
        )

    @property
    def _alteration(self) -> int:
        return {"#": 1, "b": -1, "": 0}[self.accidental]


class Meter(NamedTuple):
    """A time signature.

    Example:
        >>> Meter.parse("6/8").length, Meter.parse("6/8").beat, Meter.parse("C|").name
        (Fraction(3, 4), Fraction(3, 8), '2/2')
    """

    number: int
    unit: int  # of which `number` make a bar: 4 is a quarter note

    @classmethod
    def parse(cls, text: str) -> Meter | None:
        """The meter that M: names; None where it names none."""
        text = {"C": "4/4", "C|": "2/2"}.get(text.strip(), text.strip())
        match = _METER.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def length(self) -> Fraction:
        """Of a bar, in whole notes."""
        return Fraction(self.number, self.unit)

    @property
    def compound(self) -> bool:
        """Whether beats have three parts: 6/8, 9/8, 12/8 and the like."""
        return self.number % 3 == 0 and self.number > 3

    @property
    def beat(self) -> Fraction:
        """What a tempo counts, in whole notes: a dotted note in compound meters, else the unit."""
        return Fraction(3 if self.compound else 1, self.unit)

    @property
    def name(self) -> str:
        return f"{self.number}/{self.unit}"
