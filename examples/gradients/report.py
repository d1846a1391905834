"""The picture: how far gradients reach, and what each network has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common import plot
from .model import VARIANTS

__all__ = ["Result", "draw"]


@dataclass
class Result:
    """One training and what came of it."""

    task: str
    length: int
    model: str
    clip: float
    loss: (
        float  # on new trials, relative to chance: 1 is nothing learned, 0 everything; inf where it diverged
    )
    before: Tensor  # gradient norm at each step at the start of training, [T - 1]
    after: Tensor | None = None  # and at its end
    losses: list[float] = field(default_factory=list)  # in training, relative to chance
    norms: list[float] = field(default_factory=list)  # of the whole gradient at each training step

    @property
    def name(self) -> str:
        return (
            f"{self.task} {self.length}, {VARIANTS[self.model].label}{'' if self.clip else ', no clipping'}"
        )


def draw(results: Sequence[Result], path: Path) -> Path:
    """Gradients by time step before and after training, losses by length, clipping, depth."""
    figure, axes = plot.new(2, 3)
    clipped = [r for r in results if r.clip]
    shallow = [r for r in clipped if VARIANTS[r.model].depth == 1]
    task = shallow[0].task if shallow else ""
    longest = [
        r for r in shallow if r.task == task and r.length == max(s.length for s in shallow if s.task == task)
    ]
    _reach(axes[0, 0], longest, "before", "Gradients before training")
    _reach(axes[0, 1], longest, "after", "Gradients after training")
    _clipping(axes[0, 2], results)
    _by_length(axes[1, 0], [r for r in shallow if r.task == "adding"], "Adding problem")
    _by_length(axes[1, 1], [r for r in shallow if r.task == "copy"], "Copy task")
    _depth(axes[1, 2], [r for r in clipped if VARIANTS[r.model].depth > 1])
    for unused in (ax for ax in axes.flat if not ax.has_data()):
        unused.set_axis_off()
    return plot.save(figure, path)


def _style(result: Result) -> dict[str, Any]:
    """The same colour for the same model, everywhere."""
    return {"label": VARIANTS[result.model].label, "color": plot.COLOURS[list(VARIANTS).index(result.model)]}


def _reach(ax: Any, results: Sequence[Result], when: str, title: str) -> None:
    for result in results:
        norms = getattr(result, when)
        if norms is None:
            continue
        back = range(len(norms), 0, -1)  # steps between the state and the end
        ax.semilogy(back, (norms / norms[-1]).clamp(min=1e-12), **_style(result))
    if results:
        ax.invert_xaxis()
        ax.set(title=f"{title} ({results[0].task} {results[0].length})", xlabel="steps before the end")
        ax.set(ylabel="norm of dL/ds, relative to the end")
        ax.legend(fontsize=8)


def _by_length(ax: Any, results: Sequence[Result], title: str) -> None:
    for model in dict.fromkeys(result.model for result in results):
        own = sorted((r for r in results if r.model == model), key=lambda r: r.length)
        ax.plot([r.length for r in own], [min(r.loss, 1.2) for r in own], "o-", **_style(own[0]))
    if results:
        ax.axhline(1, color="black", lw=0.8, ls=":")
        ax.set(title=title, xlabel="steps to remember", ylabel="final loss / chance", ylim=(-0.03, 1.23))
        ax.legend(fontsize=8)


def _clipping(ax: Any, results: Sequence[Result]) -> None:
    """Losses of the model that clipping helped most, with and without."""
    pairs = [
        (with_, without)
        for without in results
        for with_ in results
        if not without.clip and with_.clip and without.norms and with_.norms
        if (with_.task, with_.length, with_.model) == (without.task, without.length, without.model)
    ]
    if not pairs:
        return
    pair = max(pairs, key=lambda both: both[1].loss - both[0].loss)
    for result, colour in zip(pair, (plot.COLOURS[2], plot.COLOURS[1]), strict=True):
        label = (
            f"clipped at {result.clip:g}"
            if result.clip
            else f"not clipped, largest norm {max(result.norms):.2g}"
        )
        _training(ax, result, label=label, color=colour)
    ax.set(title=f"Clipping ({pair[0].name})", yscale="log")
    ax.legend(fontsize=8)


def _depth(ax: Any, results: Sequence[Result]) -> None:
    """Losses of deep stacks in training."""
    for result in results:
        _training(ax, result, **_style(result))
    if results:
        ax.set(title=f"Depth and skip connections ({results[0].task} {results[0].length})", ylim=(0, 2))
        ax.legend(fontsize=8)


def _training(ax: Any, result: Result, **style: Any) -> None:
    """The loss by training step, each point the mean of a few."""
    size = max(1, len(result.losses) // 25)
    ends = range(size, len(result.losses) + 1, size)
    ax.plot(ends, [sum(result.losses[n - size : n]) / size for n in ends], **style)
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set(xlabel="training step", ylabel="loss / chance")
