"""The reader of ABC against the rules of the notation, the checker, and sound against its pitch."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.music import abc, measure, score, sound
from examples.music.keys import Key, Meter

SMALL = ["--tunes", "40", "--hidden", "16", "--samples", "2", "--orders", "3", "--length", "64"]


def read(body: str, key: str = "C", meter: str = "4/4") -> score.Tune:
    return abc.parse(f"X:1\nT:Test\nM:{meter}\nL:1/8\nK:{key}\n{body}\n")


def pitches(body: str, key: str = "C") -> list[int | None]:
    return [note.pitch for note in score.notes(read(body, key))]


def lengths(body: str, meter: str = "4/4") -> list[Fraction]:
    """In eighths."""
    return [8 * note.duration for note in score.notes(read(body, meter=meter))]


# ---------------------------------------------------------------- the reader


def test_pitches_of_letters_and_octaves() -> None:
    assert pitches("C,CBcbc'c''") == [48, 60, 71, 72, 83, 84, 96]
    assert pitches("^C _D =E ^^F __G z") == [61, 61, 64, 67, 65, None]


def test_accidentals_hold_to_the_end_of_the_bar() -> None:
    """In all octaves, as the standard has it; a natural undoes the key."""
    assert pitches("^F G F f|F") == [66, 67, 66, 78, 65]
    assert pitches("=F f F|F", key="G") == [65, 77, 65, 66]
    assert pitches("^F2-|F F", key="C") == [66, 65]  # one long note, and the next bar's own


@pytest.mark.parametrize(
    ("name", "fifths", "tonic"),
    [
        ("C", 0, 0),
        ("F#m", 3, 6),
        ("Bb", -2, 10),
        ("G dorian", -1, 7),
        ("Amix", 2, 9),
        ("E Phrygian", 0, 4),
        ("Flyd clef=treble", 0, 5),
        ("Bloc", 0, 11),
    ],
)
def test_keys(name: str, fifths: int, tonic: int) -> None:
    key = Key.parse(name)
    assert key is not None
    assert (key.fifths, key.tonic) == (fifths, tonic)
    assert Key.parse(key.name) == key or key.mode in ("aeo", "ion")


def test_no_keys_and_meters() -> None:
    assert [Key.parse(text) for text in ("", "none", "HP", "G#", "Gx", "c")] == [None] * 6
    assert [Meter.parse(text) for text in ("", "none", "4", "0/4", "4/3")] == [None] * 5
    assert Meter.parse("C") == (4, 4)
    assert Meter.parse("9/8").beat == Fraction(3, 8)  # type: ignore[union-attr]


def test_lengths() -> None:
    assert lengths("A A2 A/2 A/ A// A3/2 z4") == [1, 2, 0.5, 0.5, 0.25, 1.5, 4]
    assert lengths("A>B A<B A>>B [CE]2>G") == [1.5, 0.5, 0.5, 1.5, 1.75, 0.25, 3, 3, 0.5]
    third = Fraction(2, 3)
    assert lengths("(3ABc (3A2B2c2 d") == [third] * 3 + [2 * third] * 3 + [1]
    assert lengths("(2AB (3:2:2AB c", "6/8") == [1.5, 1.5, third, third, 1]
    assert lengths("(5ABcde", "6/8") == [Fraction(3, 5)] * 5


def test_default_length_of_notes() -> None:
    """Without L:, a sixteenth where the meter is below 3/4, else an eighth."""
    for meter, unit in (("2/4", 16), ("3/4", 8), ("C", 8)):
        assert abc.parse(f"M:{meter}\nK:C\nA").bars[0].length == Fraction(1, unit)


def test_ties_join_notes_across_bars() -> None:
    tune = read("A4 B4-|B2 B2 c4-|d4 c4")
    assert [(8 * note.duration, note.pitch) for note in score.notes(tune)] == [
        (4, 69),
        (6, 71),
        (2, 71),
        (4, 72),  # a tie to another pitch joins nothing
        (4, 74),
        (4, 72),
    ]


def test_chords_sound_together_and_take_one_length() -> None:
    made = score.notes(read("[CEG]2 c"))
    assert [note.pitch for note in made] == [60, 64, 67, 72]
    assert [8 * note.onset for note in made] == [0, 0, 0, 2]


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ("A8|B8|]", "AB"),
        ("|:A8|B8:|", "ABAB"),
        ("A8|B8:|c8|", "ABABc"),
        ("|:A8|1B8:|2c8|]", "ABAc"),
        ("|:A8|1B8:|2c8|:d8:|", "ABAcdd"),
        ("|:A8::B8:|", "AABB"),
        ("|:A8|[1B8:|[2c8||d8|e8:|", "ABAcdede"),
        ("|:A8|1B8:|2c8:|3d8|]", "ABAcAd"),
        ("A8|:B8:|\n|:c8|\n:|", "ABBcc"),
    ],
)
def test_repeats(body: str, order: str) -> None:
    tune = read(body)
    assert "".join(tune.bars[n].text[0] for n in score.played(tune)) == order
    assert not tune.first_problem()


def test_what_is_skipped() -> None:
    tune = read('"Am"~A {gc}B !trill!c (de) .f|w|'.replace("w", "g8") + "% not read\nw: la la\n\\")
    assert [event.pitches[0] for bar in tune.bars for event in bar.events] == [69, 71, 72, 74, 76, 77, 79]
    assert tune.first_problem() is None
    assert "not read" not in tune.body
    assert "la la" not in tune.body


def test_fields_within_the_music() -> None:
    tune = read("A8|\nM:3/4\nA6|[L:1/4][K:D]F3|")
    assert score.check(tune) == [None, None, None]
    assert tune.bars[2].events[0].pitches == (66,)
    assert tune.key == Key.parse("C")  # the header's


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("M:4/4\nK:C\nAB?c", "line 3: expected a symbol of ABC's subset, found '?'"),
        ("M:4/4\nAB", "line 2: expected K: in the header, found none"),
        ("K:C\nAB", "line 1: expected M: in the header, found none"),
        ("M:4/4\nK:Q\nAB", "line 2: expected a key such as G, Em or Ador, found 'Q'"),
        ("M:4/4\nL:x\nK:C\nAB", "line 2: expected a length of notes such as 1/8, found 'x'"),
        ("M:none\nK:C\nAB", "line 1: expected a meter such as 6/8, C or C|, found 'none'"),
        ("M:4/4\nK:C\n(3AB|", "line 3: expected the rest of a tuplet or of > <, found the end of a bar"),
        ("M:4/4\nK:C\nA>|B", "line 3: expected the rest of a tuplet or of > <, found the end of a bar"),
        ("M:4/4\nK:C\n-A", "line 3: expected a note before a tie, found '-'"),
        ("M:4/4\nK:C\nA0", "line 3: expected a length above 0, found 'A0'"),
        ("M:4/4\nV:1\nV:2\nK:C\nA", "line 3: expected a single voice, found V:2"),
    ],
)
def test_problems_have_a_line(text: str, problem: str) -> None:
    assert str(abc.parse(text).first_problem()) == problem


# ---------------------------------------------------------------- the checker


def valid(body: str, meter: str = "4/4") -> list[bool]:
    return [problem is None for problem in score.check(read(body, meter=meter))]


def test_bars_that_add_up() -> None:
    assert valid("A8|A4 B4|A3|A9|A8|") == [True, True, False, False, True]
    assert valid("A6|A8|(3ABc A4|A>B A4", "6/8") == [True, False, True, True]
    assert valid("A8|A7?|A8") == [True, False, True]


def test_short_bars_at_the_edges_of_parts() -> None:
    assert valid("A|A8|A7|]") == [True, True, True]
    assert valid("A|A8|A6|]") == [True, True, False]  # what the last bar lacks is not the pickup's length
    assert valid("|:A|A8|A7:|\n|:B2|A8|A6:|") == [True] * 6
    assert valid("A8|A3:|\n|:A5|A8:|") == [True] * 4  # a bar that the repeat sign divides
    assert valid("A8:|\n|:B|A8:|") == [True, False, True]
    assert valid("A|A8|A7|A8|]") == [True, True, False, True]  # in the midst of a part
    assert valid("|:A|A8|1A7:|2A7|]") == [True] * 4
    assert valid("A8|A4|]") == [True, False]


def test_a_wrong_header_leaves_no_bar_valid() -> None:
    assert (
        score.check(abc.parse("M:4/4\nL:1/8\nA8|A8|"))[1] == "line 3: expected K: in the header, found none"
    )
    assert measure.measure([""])["valid bars"] == 0
    assert measure.measure(["K:C\nM:4/4"])["valid bars"] == 0


@settings(deadline=None, max_examples=150)
@given(
    st.one_of(
        st.text(alphabet="ABGabz^_=,'/0123468|:[]()<>-~{}\"!%&\\ \nKMLXV", max_size=120),
        st.text(max_size=60),
        st.lists(st.sampled_from(["|:", ":|", "|1", "|2", "::", "||", "A8|", "B3-", "|3", "\n"])).map(
            "".join
        ),
    ),
    st.booleans(),
)
def test_any_text_is_judged(text: str, header: bool) -> None:
    tune = read(text) if header else abc.parse(text)
    checked = score.check(tune)
    assert len(checked) == len(tune.bars)
    made = score.notes(tune)
    assert all(note.duration > 0 for note in made)
    assert len(score.played(tune)) <= 9 * len(tune.bars)
    assert all(0 <= share <= 1 for share in measure.measure([text]).values())


def test_measures() -> None:
    start = "M:4/4\nL:1/8\nK:G\n"
    made = measure.measure([start + "|:G8:|\n|:A8|g8:|", start + "|:A8:|\n|:A8|", start + "A8:|\n|:G8:|"])
    assert made["ends on tonic"] == pytest.approx(2 / 3)
    assert made["repeats close"] == pytest.approx(2 / 3)
    assert made["bars again"] == pytest.approx(1 / 7)


# ---------------------------------------------------------------- sound


def frequency(samples: np.ndarray, rate: int) -> float:
    """Of the strongest partial, in Hz."""
    strength = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(strength.argmax() * rate / len(samples))


def test_a_is_440_hertz() -> None:
    seconds = 2
    assert frequency(sound.pluck(69, seconds), sound.RATE) == pytest.approx(440, abs=0.5)
    assert frequency(sound.pluck(57, seconds), sound.RATE) == pytest.approx(220, abs=0.5)


def test_file_is_as_long_as_the_tune() -> None:
    """Sixteen quarters, the repeat included, at 120 a minute: 8 seconds; the rest in the midst is silent."""
    tune = read("|:A4 z4|A8:|")
    samples = sound.render(score.notes(tune), Fraction(1, 4), 120)
    path = sound.save(samples, Path("new", "tune.wav"))
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, sound.RATE)
        assert file.getnframes() == 8 * sound.RATE
        played = np.frombuffer(file.readframes(8 * sound.RATE), "<i2")
    assert np.abs(played[: sound.RATE]).max() > 3000
    assert not played[sound.RATE + 1 : 2 * sound.RATE].any()
    assert np.abs(played).max() <= 32767


def test_many_notes_do_not_clip() -> None:
    together = [score.Note(Fraction(0), Fraction(1), pitch) for pitch in range(60, 90)]
    assert np.abs(sound.render(together, Fraction(1, 4), 120)).max() == pytest.approx(0.9)
    assert len(sound.render([], Fraction(1, 4), 120)) == 0
