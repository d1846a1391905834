"""What was learned, as a picture: F1 by epoch and by type of entity, next to the baseline."""

from __future__ import annotations

from pathlib import Path

from examples.common import plot
from examples.common.train import History

from .spans import Score


def draw(path: Path, histories: dict[str, History], scores: dict[str, dict[str, Score]]) -> Path:
    """Left, F1 on held-out sentences after each epoch; right, F1 of each type in the end.

    Args:
        histories: Of each model.
        scores: Of each model and, first, of the baseline.
    """
    figure, (left, right) = plot.new(1, 2)
    baseline, *_ = scores
    colours = dict(zip(scores, (plot.COLOURS[-1], *plot.COLOURS), strict=False))
    left.axhline(scores[baseline]["all"].f1, color=colours[baseline], linestyle="--", label=baseline)
    for name, history in histories.items():
        epochs = range(1, len(history.epochs) + 1)
        f1 = [epoch["F1"] for epoch in history.epochs]
        left.plot(epochs, f1, marker=".", label=name, color=colours[name])
    left.set(title="Held-out sentences", xlabel="epoch", ylabel="F1 of whole entities", ylim=(0, 1.02))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()

    types = sorted({type for own in scores.values() for type in own if type != "all"})
    width = 0.8 / len(scores)
    for n, (name, own) in enumerate(scores.items()):
        places = [i + (n - (len(scores) - 1) / 2) * width for i in range(len(types))]
        heights = [own[type].f1 if type in own else 0.0 for type in types]
        right.bar(places, heights, width, label=name, color=colours[name])
    right.set(title="By type of entity", ylabel="F1", ylim=(0, 1.02))
    right.set_xticks(range(len(types)), types)
    right.grid(False, axis="x")
    return plot.save(figure, path)
