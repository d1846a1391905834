"""Made-up tunes: jigs, reels and waltzes by rules, with something to remember at every distance.

    a bar      as long as the meter of the header says, whatever rhythms it is made of
    a phrase   four bars over the chords of a cadence; notes on the beat are of the chord, others are steps
    a part     eight bars: two phrases, the second of which begins like the first and ends another way
    a tune     two parts, each repeated; the second ends as the first does, on the tonic of the header's key

Some parts begin with a pickup, which their last bar lacks; some have a first and a second ending. None of the
tunes is from the world.
"""

from __future__ import annotations

import random

from .keys import Key

__all__ = ["KINDS", "book", "tune"]

LETTERS = "CDEFGAB"
LOW, HIGH = 1, 13  # the range, D to b, in steps above middle C
KEYS = ["G", "D", "A", "Em", "Am", "Ador", "Edor", "Amix", "Dmix"]
KINDS = {"jig": "6/8", "reel": "4/4", "waltz": "3/4"}
# Roots of chords, in steps above the tonic, of phrases that stay open and of those that close.
CHORDS = {
    "maj": (["0304", "0354", "0024"], ["0340", "0540", "3440"]),
    "min": (["0364", "0534", "0064"], ["0340", "0640", "5440"]),
    "dor": (["0306", "0060", "0636"], ["0360", "0660", "6360"]),
    "mix": (["0306", "0636", "0046"], ["0360", "0660", "4360"]),
}
Rhythm = list[list[str]]  # by group, notes' lengths in eighths; > < long and short, t of a triplet
RHYTHMS: dict[str, list[tuple[int, Rhythm]]] = {
    "jig": [
        (6, [["1", "1", "1"], ["1", "1", "1"]]),
        (3, [["2", "1"], ["1", "1", "1"]]),
        (2, [["1", "1", "1"], ["2", "1"]]),
        (1, [["2", "1"], ["2", "1"]]),
        (1, [["3"], ["1", "1", "1"]]),
        (1, [[">", "<", "1"], ["1", "1", "1"]]),
    ],
    "reel": [
        (5, [["1", "1", "1", "1"], ["1", "1", "1", "1"]]),
        (3, [["2", "1", "1"], ["1", "1", "1", "1"]]),
        (2, [["1", "1", "1", "1"], ["2", "1", "1"]]),
        (2, [["t", "t", "t", "1", "1"], ["1", "1", "1", "1"]]),
        (1, [[">", "<", ">", "<"], ["1", "1", "2"]]),
        (1, [["3", "1"], ["1", "1", "1", "1"]]),
    ],
    "waltz": [
        (4, [["2"], ["2"], ["2"]]),
        (3, [["2"], ["1", "1"], ["2"]]),
        (2, [["4"], ["2"]]),
        (2, [["3", "1"], ["2"]]),
        (2, [["1", "1"], ["1", "1"], ["2"]]),
        (1, [["2"], [">", "<"], ["1", "1"]]),
    ],
}
# Last bars: their rhythms, up to the tonic that ends them; its length follows from the meter and the pickup.
CLOSES: dict[str, list[Rhythm]] = {
    "jig": [[["1", "1", "1"]], [["2", "1"]]],
    "reel": [[["1", "1", "1", "1"]], [["2", "2"]]],
    "waltz": [[["1", "1"]], [["2"]]],
}


def book(count: int, seed: int) -> str:
    """`count` tunes, an empty line after each.

    Example:
        >>> book(2, seed=0) == book(2, seed=0) != book(2, seed=1)
        True
    """
    generator = random.Random(f"tunes {seed}")
    return "\n".join(tune(generator, number) for number in range(1, count + 1))


def tune(generator: random.Random, number: int) -> str:
    """A tune of a random kind and key."""
    kind, name = generator.choice(list(KINDS)), generator.choice(KEYS)
    key = Key.parse(name)
    assert key is not None
    made = _Composer(generator, kind, key).parts()
    return f"X:{number}\nT:Made-up {kind} {number}\nR:{kind}\nM:{KINDS[kind]}\nL:1/8\nK:{name}\n{made}\n"


class _Composer:
    """Writes one tune; pitches are steps of the scale above middle C."""

    def __init__(self, generator: random.Random, kind: str, key: Key) -> None:
        self.generator, self.kind, self.key = generator, kind, key
        self.tonic = LETTERS.index(key.letter)
        self.step = self.tonic + 7 * (self.tonic + 4 < 7)  # where the melody is
        self.bar_length = 8 if kind == "reel" else 6

    def parts(self) -> str:
        """Both parts, as lines of four bars."""
        pickup = self.generator.random() < 0.3
        opens, closes = CHORDS[self.key.mode]
        close = self.generator.choice(closes)
        cadence = [self._bar(close[2]), self._close(pickup)]
        made = []
        for last in (False, True):
            self.step += self.generator.choice((0, 2)) if last else 0
            question = [self._bar(root) for root in self.generator.choice(opens)]
            again = question[:2] if self.generator.random() < 0.9 else [self._bar(root) for root in close[:2]]
            bars = question + again + cadence
            start = self._written(self._near("0"), "1") + "|" if pickup else ""
            end = "|]" if last else "||"
            if self.generator.random() < 0.25:
                other = self._close(pickup)
                tail = f"|1 {bars[7]}:|2 {other}{end}"
            else:
                tail = f"|{bars[7]}:|"
            made.append(f"|:{start}{'|'.join(bars[:4])}|\n{'|'.join(bars[4:7])}{tail}")
        return "\n".join(made)

    def _bar(self, root: str) -> str:
        """A bar over the chord on `root`."""
        weights, rhythms = zip(*RHYTHMS[self.kind], strict=True)
        return self._groups(self.generator.choices(rhythms, weights)[0], root)

    def _close(self, pickup: bool) -> str:
        """A bar that ends on the tonic and lacks the length of the pickup."""
        rhythm = self.generator.choice(CLOSES[self.kind])
        start = self._groups(rhythm, "4")
        left = self.bar_length - sum(int(length) for group in rhythm for length in group) - pickup
        self.step = min(
            (step for step in range(LOW, HIGH + 1) if (step - self.tonic) % 7 == 0),
            key=lambda step: abs(step - self.step),
        )
        return f"{start} {self._written(self.step, str(left))}"

    def _groups(self, rhythm: Rhythm, root: str) -> str:
        """Groups of notes: the first of each is of the chord, the others are steps away from it."""
        raised = self.key.mode == "min" and root == "4"  # the leading note of the dominant
        written = []
        for group in rhythm:
            text = ""
            self.step = self._near(root)
            direction = self.generator.choice((-1, 1))
            for place, length in enumerate(group):
                if place:
                    direction = -direction if self.generator.random() < 0.25 else direction
                    direction = 1 if self.step <= LOW else -1 if self.step >= HIGH else direction
                    self.step += direction
                if length == "t" and group[place - 1 : place] != ["t"]:
                    text += "(3"
                if raised and (self.step - self.tonic) % 7 == 6:
                    text, raised = text + self._sign(), False  # once: it holds to the end of the bar
                text += self._written(self.step, length)
            written.append(text)
        return " ".join(written)

    def _sign(self) -> str:
        """The accidental that raises the seventh note."""
        letter = LETTERS[(self.tonic + 6) % 7]
        return "=" if self.key.signature.get(letter) == -1 else "^"

    def _near(self, root: str) -> int:
        """A note of the chord on `root`, not far from where the melody is."""
        aim = self.step + self.generator.choice((-2, -1, 1, 2))
        chord = [step for step in range(LOW, HIGH + 1) if (step - self.tonic - int(root)) % 7 in (0, 2, 4)]
        return min(chord, key=lambda step: (abs(step - aim), step))

    @staticmethod
    def _written(step: int, length: str) -> str:
        letter = LETTERS[step % 7].lower() if step >= 7 else LETTERS[step % 7]
        return letter + {"1": "", "<": "", "t": "", ">": ">"}.get(length, length)
