"""Models on the same tunes, as a table and as a picture; a tune as a piano roll."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common import plot
from ..common.text import Vocabulary
from ..language_model.model import log_probabilities, perplexity
from .abc import parse
from .data import TUNE, encode, stream
from .keys import Key
from .measure import measure
from .score import Bar, Tune, check, notes
from .writer import Model, write

__all__ = ["compare", "draw", "draw_tune", "samples"]

Rows = dict[str, dict[str, float]]


def samples(model: Model, config: Mapping[str, Any], count: int, seed: int) -> list[str]:
    """Tunes that a model writes from their headers on, each as after a tune of the training."""
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    end = vocabulary.index[TUNE]
    written = write(model, config["opening"], count, end=end, seed=seed)
    return ["".join(vocabulary.words(own)) for own in written]


def compare(
    models: Mapping[str, Model], texts: Sequence[str], config: Mapping[str, Any], count: int, seed: int
) -> Rows:
    """Each model's perplexity on tunes, and what `count` tunes of its own are like; last, those tunes."""
    ids = stream(encode(Vocabulary.from_json(config["vocabulary"]), texts))
    rows: Rows = {}
    for name, model in models.items():
        p = perplexity(log_probabilities(model, ids))
        rows[name] = {"perplexity": p, **measure(samples(model, config, count, seed))}
    return {**rows, "the tunes": measure(texts)}


def draw(rows: Rows, losses: list[float], epochs: Rows, network: str, text: str, path: Path) -> Path:
    """The losses of training, the share of valid bars by epoch beside that of the counts, and a tune."""
    figure, axes = plot.new(2, 2, width=13, height=7.5)
    grid = axes[0, 0].get_gridspec()
    for axis in axes[1]:
        axis.remove()
    axes[0, 0].plot(losses, color=plot.COLOURS[0])
    axes[0, 0].set(title="Training", xlabel="step", ylabel="loss (nats per character)")

    shares = axes[0, 1]
    numbers = range(1, len(epochs) + 1)
    shares.plot(numbers, [own["valid bars"] for own in epochs.values()], "o-", label=network)
    for shade, (name, row) in enumerate(rows.items()):
        if name not in (network, "the tunes"):
            shares.axhline(row["valid bars"], color=str(0.6 - 0.2 * shade), ls="--", label=name)
    shares.axhline(rows["the tunes"]["valid bars"], color="black", lw=0.8, ls=":", label="held-out tunes")
    shares.set(title="Bars of sampled tunes that are valid", xlabel="epoch", ylim=(0, 1.03))
    shares.xaxis.get_major_locator().set_params(integer=True)
    shares.legend(loc="lower right")

    tune = parse(text)
    roll = figure.add_subplot(grid[1, :])
    _roll(roll, tune, range(min(len(tune.bars), 24)))
    _title(roll, f"A tune by the {network}: {_about(tune)}")
    return plot.save(figure, path)


def draw_tune(tune: Tune, title: str, path: Path, bars: int = 8) -> Path:
    """A tune as it is written, `bars` bars in a row; those that are not valid are shaded."""
    starts = range(0, max(1, len(tune.bars)), bars)
    figure, axes = plot.new(len(starts), 1, width=12, height=2.6 * len(starts) + 0.4, squeeze=False)
    for axis, start in zip(axes[:, 0], starts, strict=True):
        _roll(axis, tune, range(start, min(start + bars, len(tune.bars))))
    _title(axes[0, 0], f"{title}: {_about(tune)}")
    return plot.save(figure, path)


def _title(axes: Any, text: str) -> None:
    """A title with words of the user, in which a dollar sign is one and begins no formula."""
    axes.set_title(text, parse_math=False)


def _about(tune: Tune) -> str:
    said = [tune.fields.get("R", ""), tune.meter.name if tune.meter else "", tune.fields.get("K", "")]
    return ", ".join(own for own in said if own) or "no header"


def _roll(axes: Any, tune: Tune, bars: range) -> None:
    """Pitch over time: the tonic in a colour of its own, bar lines with repeat signs and numbers of bars."""
    wrong = check(tune)
    everything = [pitch for bar in tune.bars for event in bar.events for pitch in event.pitches]
    now = 0.0
    for number in bars:
        bar = tune.bars[number]
        after = now + float(bar.length)
        if wrong[number] is not None:
            axes.axvspan(now, after, color=plot.COLOURS[1], alpha=0.15, lw=0)
        axes.axvline(now, color="0.3", lw=1.5 if bar.first else 0.6)
        axes.text(now, 1, f" {number + 1}{_signs(bar)}", transform=axes.get_xaxis_transform(), fontsize=7)
        now = after
    axes.axvline(now, color="0.3", lw=0.6)
    for note in notes(tune, bars):
        if note.pitch is not None:
            tonic = tune.key is not None and note.pitch % 12 == tune.key.tonic
            span = (float(note.onset), 0.92 * float(note.duration))
            axes.broken_barh([span], (note.pitch - 0.4, 0.8), color=plot.COLOURS[2 if tonic else 0], zorder=2)
    used = sorted(set(everything))
    axes.set_yticks(used, [_name(pitch, tune.key) for pitch in used], fontsize=7)
    axes.set(xticks=[], xlim=(0, max(now, 0.01)), ylabel="pitch")


def _signs(bar: Bar) -> str:
    return ("  |:" if bar.opens else "") + ("  :|" if bar.closes else "")


def _name(pitch: int, key: Key | None) -> str:
    """The name of a MIDI number, with octave: 60 is C4."""
    flats = key is not None and key.fifths < 0
    names = "C Db D Eb E F Gb G Ab A Bb B" if flats else "C C# D D# E F F# G G# A A# B"
    return f"{names.split()[pitch % 12]}{pitch // 12 - 1}"
