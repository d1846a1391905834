"""What was learned and how fast, as a picture: both ways to run the same training, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..common import plot

__all__ = ["NAMES", "draw"]

NAMES = {"torch": "sb3-contrib", "fused": "sb3-contrib, fused"}
SPEEDS = ("collect steps/s", "train steps/s")


def draw(
    path: Path,
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    per_round: int,
    chance: float,
    by_delay: Mapping[str, Mapping[int, float]],
    longest: int,
) -> Path:
    """Right answers by step, by second and by delay, and speeds.

    Args:
        path: Of the PNG.
        histories: Of each backend, the rounds of its training.
        per_round: Environment steps in a round.
        chance: The part of right answers of who guesses.
        by_delay: Of each backend, the probability of the right answer after each delay.
        longest: The longest delay in training.
    """
    figure, ((steps, seconds), (delays, speeds)) = plot.new(2, 2, width=11, height=7.5)
    for backend, rounds in histories.items():
        right = [r["right"] for r in rounds]
        steps.plot([per_round * (n + 1) for n in range(len(rounds))], right, **_style(backend))
        seconds.plot(list(accumulate(r["seconds"] for r in rounds)), right, **_style(backend))
        delays.plot(list(by_delay[backend]), list(by_delay[backend].values()), **_style(backend))
    steps.set(title="Training", xlabel="environment steps")
    seconds.set(title="Training", xlabel="seconds")
    delays.set(title="After training", xlabel="steps to remember")
    delays.axvspan(longest // 2, longest, color=plot.COLOURS[6], alpha=0.15, label="delays in training")
    for ax, what in ((steps, "right answers"), (seconds, "right answers"), (delays, "p(right answer)")):
        ax.axhline(chance, color="black", lw=0.8, ls=":", label="chance")
        ax.set(ylabel=what, ylim=(-0.03, 1.03))
        ax.legend(fontsize=8)
    _speeds(speeds, histories)
    return plot.save(figure, path)


def _style(backend: str) -> dict[str, Any]:
    """The fused training is dashed, for it may lie upon the other."""
    n = list(NAMES).index(backend)
    return {"label": NAMES[backend], "color": plot.COLOURS[n], "ls": ("-", "--")[n], "marker": "."}


def _speeds(ax: Any, histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    for n, (backend, rounds) in enumerate(histories.items()):
        medians = [median([r[name] for r in rounds]) for name in SPEEDS]
        places = [place + 0.4 * n for place in range(len(SPEEDS))]
        bars = ax.bar(
            places, medians, 0.36, color=plot.COLOURS[list(NAMES).index(backend)], label=NAMES[backend]
        )
        ax.bar_label(bars, [f"{value:,.0f}" for value in medians], fontsize=8)
    ax.set_xticks([place + 0.2 * (len(histories) - 1) for place in range(len(SPEEDS))], SPEEDS)
    ax.set(title="Speed (median of rounds)", ylabel="steps/s")
    ax.grid(axis="x", visible=False)
    ax.legend(fontsize=8)


def median(values: Sequence[float]) -> float:
    """The lower one of two in the middle."""
    return sorted(values)[(len(values) - 1) // 2]
