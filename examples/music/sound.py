"""A tune as sound: plucked strings, added up from their partials, in a WAV file."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .score import Note

__all__ = ["RATE", "pluck", "render", "save", "seconds"]

RATE = 22_050  # samples a second
_PLACE = 0.2  # where the string is plucked, as a part of its length
_PARTIALS = 12
_FADE = 0.01  # seconds in which a note ends, so that it does not click

Samples = NDArray[np.float64]


def pluck(pitch: int, seconds: float, rate: int = RATE) -> Samples:
    """A string that is plucked and dies away, about 1 at its loudest.

        s(t) = Σ_k sin(kπp) / k² · e^{-(2 + k) t} · sin(2π k f t),        f = 440 Hz · 2^((pitch - 69) / 12)

    A string plucked at the part p of its length has these partials (Rayleigh 1877, The Theory of Sound);
    higher ones die sooner. Those above half the sampling rate are left out.

    Args:
        pitch: MIDI number: 69 is the A of 440 Hz.
        seconds: How long it sounds.

    Returns:
        [round(seconds · rate)]
    """
    t = np.arange(round(seconds * rate)) / rate
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    sound = np.zeros_like(t)
    for k in range(1, _PARTIALS + 1):
        if k * frequency < rate / 2:
            strength = np.sin(k * np.pi * _PLACE) / k**2
            sound += strength * np.exp(-(2 + k) * t) * np.sin(2 * np.pi * k * frequency * t)
    return sound * np.clip((seconds - t) / _FADE, 0, 1)


def seconds(notes: Sequence[Note], beat: Fraction, tempo: float) -> float:
    """How long it takes to play the notes; `beat` and `tempo` as for `render`."""
    length = max((note.onset + note.duration for note in notes), default=Fraction())
    return float(min(length / beat / Fraction(tempo) * 60, Fraction(10**12)))


def render(notes: Sequence[Note], beat: Fraction, tempo: float, rate: int = RATE) -> Samples:
    """All notes together, between -1 and 1.

    Args:
        notes: Onsets and durations in whole notes.
        beat: What the tempo counts, in whole notes.
        tempo: Beats a minute.

    Returns:
        As many samples as the notes take at that tempo.
    """
    scale = 60 / tempo / float(beat)  # seconds of a whole note
    sound = np.zeros(round(seconds(notes, beat, tempo) * rate))
    for note in notes:
        if note.pitch is not None:
            first = round(float(note.onset) * scale * rate)
            own = pluck(note.pitch, float(note.duration) * scale, rate)[: len(sound) - first]
            sound[first : first + len(own)] += own
    return sound * (0.9 / max(0.9, np.abs(sound).max(initial=0)))


def save(sound: Samples, path: Path, rate: int = RATE) -> Path:
    """Write samples between -1 and 1 as a WAV file: 16 bits, one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(sound, -1, 1) * 32767).round().astype("<i2").tobytes())
    return path
