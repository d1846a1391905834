"""What can be counted in tunes that anybody wrote: bars that add up, and form."""

from __future__ import annotations

from collections.abc import Sequence

from .abc import parse
from .score import Tune, check, last_pitch

__all__ = ["measure"]

Measures = dict[str, float]


def measure(texts: Sequence[str]) -> Measures:
    """Shares, from 0 to 1: of the bars that are valid, and of the tunes that keep a rule of form.

    A text without any bar counts as one bar that is not valid.

    Example:
        >>> good = "M:3/4\\nL:1/4\\nK:G\\n|:GAB|d2B|cAF|G3:|\\n|:BcB|AGF|BcA|G3:|"
        >>> measure([good, good.replace("G3:|\\n", "A2|")])
        {'valid bars': 0.9375, 'ends on tonic': 1.0, 'repeats close': 0.5, 'bars again': 0.0625}
    """
    tunes = [parse(text) for text in texts]
    checked = [check(tune) or ["no bars"] for tune in tunes]
    bars = [[bar.text for bar in tune.bars] for tune in tunes]
    again = sum(len(own) - len(set(own)) for own in bars)
    return {
        "valid bars": sum(own.count(None) for own in checked) / sum(map(len, checked)),
        "ends on tonic": sum(map(_ends_on_tonic, tunes)) / len(tunes),
        "repeats close": sum(map(_repeats_close, tunes)) / len(tunes),
        "bars again": again / max(1, sum(map(len, bars))),
    }


def _ends_on_tonic(tune: Tune) -> bool:
    """Whether the last note that is written is the tonic of the header's key, in whatever octave."""
    pitch = last_pitch(tune)
    return tune.key is not None and pitch is not None and pitch % 12 == tune.key.tonic


def _repeats_close(tune: Tune) -> bool:
    """Whether two or more parts are repeated, and each opens before it closes; the first need not open."""
    opened, closed = False, 0
    for number, bar in enumerate(tune.bars):
        if bar.opens and opened:
            return False
        opened = opened or bar.opens or number == 0
        if bar.closes:
            if not opened:
                return False
            opened, closed = False, closed + 1
    return closed >= 2 and not opened
