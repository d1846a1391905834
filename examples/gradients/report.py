"""The picture: how far gradients reach, where they explode, and what each network has learned."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..common import plot
from ..common.results import Rows
from .model import VARIANTS
from .runs import CLIPPING, Result

__all__ = ["clipping_table", "draw", "loss_table"]

HIGHEST = 1.2  # loss / chance that is drawn; what is above has learned nothing either
LARGEST = 1e12  # norm of a gradient, and loss, that are drawn
SMOOTHED = 25  # training steps that a point of a curve is the mean of


def loss_table(results: Sequence[Result]) -> Rows:
    """The loss of each network at each length."""
    usual = [r for r in _ordered(results) if r.run.clipping == _usual(results)]
    columns = dict.fromkeys(f"{r.run.task} {r.run.length}" for r in sorted(usual, key=_place))
    rows: dict[str, dict[str, float]] = {r.run.variant.label: dict.fromkeys(columns, -1.0) for r in usual}
    for r in usual:
        rows[r.run.variant.label][f"{r.run.task} {r.run.length}"] = r.loss
    return {label: {name: v for name, v in row.items() if v >= 0} for label, row in rows.items()}


def clipping_table(results: Sequence[Result]) -> Rows:
    """The trainings that were repeated with other ways of clipping: their losses and gradients."""
    return {
        f"{r.run.variant.label}, {r.run.task} {r.run.length}, clipped {CLIPPING[r.run.clipping]}": {
            "loss / chance": r.loss,
            "largest norm": max(r.norms),
            "median norm": statistics.median(r.norms),
        }
        for r in _repeated(results)
        if r.norms
    }


def draw(results: Sequence[Result], path: Path) -> Path:
    """Gradients by time step before and after training, losses by length; exploding gradients, what clipping
    makes of them, depth. All of the first task; each line a median over seeds, its band from the lowest to
    the highest."""
    figure, axes = plot.new(2, 3)
    results = [r for r in _ordered(results) if r.run.task == results[0].run.task]
    usual = [r for r in results if r.run.clipping == _usual(results)]
    shallow = [r for r in usual if r.run.variant.depth == 1]
    longest = [r for r in shallow if r.run.length == max(s.run.length for s in shallow)]
    repeated = _repeated(results)
    _reach(axes[0, 0], longest, lambda r: r.before, "Gradients before training")
    _reach(axes[0, 1], longest, lambda r: r.after, "Gradients after training")
    _by_length(axes[0, 2], shallow)
    _exploding(axes[1, 0], repeated)
    _clipped(axes[1, 1], repeated)
    _depth(axes[1, 2], [r for r in usual if r.run.variant.depth > 1])
    for unused in (ax for ax in axes.flat if not ax.has_data()):
        unused.set_axis_off()
    return plot.save(figure, path)


def _place(result: Result) -> tuple[str, int]:
    return result.run.task, result.run.length


def _ordered(results: Iterable[Result]) -> list[Result]:
    """As VARIANTS and CLIPPING are."""
    models, ways = list(VARIANTS), list(CLIPPING)
    return sorted(
        results, key=lambda r: (models.index(r.run.model), r.run.length, ways.index(r.run.clipping))
    )


def _usual(results: Sequence[Result]) -> str:
    """How most trainings clip: by norm, unless none does."""
    return "norm" if any(r.run.clipping == "norm" for r in results) else "none"


def _repeated(results: Sequence[Result]) -> list[Result]:
    """The trainings that there are with several ways of clipping."""
    again = {(r.run.task, r.run.length, r.run.model) for r in results if r.run.clipping != _usual(results)}
    return [r for r in _ordered(results) if (r.run.task, r.run.length, r.run.model) in again]


def _groups(results: Sequence[Result], by: Callable[[Result], str]) -> dict[str, list[Result]]:
    """The same training from all seeds."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(by(result), []).append(result)
    return groups


def _style(result: Result) -> dict[str, Any]:
    """The same colour for the same model, everywhere."""
    colour = plot.COLOURS[list(VARIANTS).index(result.run.model)]
    return {"label": result.run.variant.label, "color": colour}


def _reach(ax: Any, results: Sequence[Result], when: Callable[[Result], Any], title: str) -> None:
    for own in _groups(results, lambda r: r.run.model).values():
        norms = [n for n in map(when, own) if n is not None]
        if norms:
            relative = [(n / n[-1]).clamp(min=1e-12).tolist() for n in norms]
            plot.band(ax, range(len(norms[0]), 0, -1), relative, **_style(own[0]))
    if results:
        ax.invert_xaxis()
        run = results[0].run
        ax.set(title=f"{title} ({run.task} {run.length})", xlabel="steps before the end", yscale="log")
        ax.set(ylabel="norm of dL/ds, relative to the end")
        ax.legend(fontsize=8)


def _by_length(ax: Any, results: Sequence[Result]) -> None:
    for own in _groups(results, lambda r: r.run.model).values():
        lengths = sorted({r.run.length for r in own})
        seeds = _groups(own, lambda r: str(r.run.seed)).values()
        curves = [[min(r.loss, HIGHEST) for r in sorted(seed, key=_place)] for seed in seeds]
        plot.band(ax, lengths, curves, marker="o", **_style(own[0]))
    if results:
        ax.axhline(1, color="black", lw=0.8, ls=":")
        title = f"Who learns it ({results[0].run.task})"
        ax.set(title=title, xlabel="steps to remember", ylabel="final loss / chance", ylim=(-0.03, 1.23))
        ax.legend(fontsize=8)


def _exploding(ax: Any, results: Sequence[Result]) -> None:
    """The norm of the whole gradient at each training step, before it is clipped."""
    steps = max((len(r.norms) for r in results), default=0)
    for way, own in _groups(results, lambda r: r.run.clipping).items():
        largest = [[max(r.norms[max(0, n - SMOOTHED) : n + 1]) for n in range(len(r.norms))] for r in own]
        curves = [_to_the_end(norms, steps, LARGEST) for norms in largest]
        plot.band(ax, range(steps), curves, color=_colour(way), label=f"clipped {CLIPPING[way]}")
    if results:
        run = results[0].run
        title = f"Exploding gradients ({run.variant.label}, {run.task} {run.length})"
        ax.set(title=title, xlabel="training step", yscale="log", ylim=(1, LARGEST))
        ax.set(ylabel=f"gradient's norm before clipping\n(largest of {SMOOTHED} steps)")
        ax.legend(fontsize=8)


def _clipped(ax: Any, results: Sequence[Result]) -> None:
    """Losses with each way of clipping."""
    for way, own in _groups(results, lambda r: r.run.clipping).items():
        label = f"clipped {CLIPPING[way]}" + (f", {own[0].run.limit:g}" if own[0].run.limit else "")
        _training(ax, own, label=label, color=_colour(way))
    if results:
        ax.set(title="What clipping makes of it", yscale="log", ylim=(0.01, 100))
        ax.legend(fontsize=8)


def _colour(way: str) -> str:
    return dict(zip(CLIPPING, (plot.COLOURS[2], plot.COLOURS[4], plot.COLOURS[1]), strict=True))[way]


def _to_the_end(curve: Sequence[float], steps: int, top: float) -> list[float]:
    """A curve of as many steps; one that is shorter is of a training that diverged, and stays at the top."""
    return [min(value, top) for value in curve] + [top] * (steps - len(curve))


def _depth(ax: Any, results: Sequence[Result]) -> None:
    """Losses of deep stacks in training."""
    for own in _groups(results, lambda r: r.run.model).values():
        _training(ax, own, **_style(own[0]))
    if results:
        run = results[0].run
        ax.set(title=f"Depth and skip connections ({run.task} {run.length})", ylim=(0, 2))
        ax.legend(fontsize=8)


def _training(ax: Any, results: Sequence[Result], **style: Any) -> None:
    """The loss by training step."""
    steps = max(len(r.losses) for r in results)
    curves = [_to_the_end(plot.smooth(r.losses, SMOOTHED), steps, LARGEST) for r in results]
    plot.band(ax, range(1, steps + 1), curves, **style)
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set(xlabel="training step", ylabel="loss / chance")
