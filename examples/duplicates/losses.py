"""How trainings with different losses went: in numbers, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.common import checkpoint, plot
from examples.common.train import History

from .loss import NEGATIVES

NAMES = {negatives: f"loss-{negatives}" for negatives in NEGATIVES}  # of the checkpoints
LEVELS = (0.9, 0.95)  # of accuracy, to count the epochs to


def summary(history: History) -> dict[str, float]:
    """The row of one training in the table that compares them.

    Returns:
        `first loss`, that of the first step; `last loss`, the mean of the last epoch; `steps to a tenth`,
        after how many the loss of a step is a tenth of the first; accuracy and one-shot accuracy on the
        validation pairs after the first and after the last epoch; and for each level, after how many epochs
        the accuracy reached it. What was not reached is missing.
    """
    first, last = history.epochs[0], history.epochs[-1]
    row = {"first loss": history.losses[0], "last loss": last["loss"]}
    row |= _first("steps to a tenth", [-loss for loss in history.losses], -history.losses[0] / 10)
    for name in ("accuracy", "one-shot"):
        row |= {f"{name}, epoch 1": first[name], name: last[name]} if name in first else {}
    for level in LEVELS:
        row |= _first(f"epochs to {level}", [epoch["accuracy"] for epoch in history.epochs], level)
    return row


def _first(name: str, values: Sequence[float], level: float) -> dict[str, float]:
    """The number, from 1 on, of the first value that is not below the level, if there is one."""
    return next(({name: float(n)} for n, value in enumerate(values, 1) if value >= level), {})


def histories(folder: Path) -> dict[str, History]:
    """What the trainings whose checkpoints are in a folder went through, by loss.

    Raises:
        InputError: A checkpoint is missing.
    """
    paths = {negatives: folder / f"{name}.safetensors" for negatives, name in NAMES.items()}
    return {negatives: History(**checkpoint.load_data(path)["history"]) for negatives, path in paths.items()}


def draw_seeds(folders: Mapping[int, Path], out: Path) -> Path:
    """The picture of several seeds' trainings: medians, and bands from the lowest to the highest."""
    return draw(out / "losses.png", [histories(folder) for folder in folders.values()])


def draw(path: Path, trained: Sequence[Mapping[str, History]]) -> Path:
    """Left, accuracy on the validation pairs by epoch; in the middle, each loss in its own terms by step;
    right, the same for all losses, how often a question's own example is not the nearest, by epoch.

    Args:
        trained: Of each seed, the histories by loss.
    """
    figure, (left, middle, right) = plot.new(1, 3, width=15)
    for color, negatives in zip(plot.COLOURS, NEGATIVES, strict=False):
        own = [histories[negatives] for histories in trained]
        epochs = range(1, len(own[0].epochs) + 1)
        label = {"label": negatives, "color": color}
        plot.band(left, epochs, [[e["accuracy"] for e in h.epochs] for h in own], **label)
        losses = [plot.smooth(history.losses, 5) for history in own]
        plot.band(middle, range(1, len(losses[0]) + 1), losses, **label)
        if all("one-shot" in h.epochs[0] for h in own):
            plot.band(right, epochs, [[1 - e["one-shot"] for e in h.epochs] for h in own], **label)
    left.set(title="Validation pairs", xlabel="epoch", ylabel="accuracy")
    middle.set(title="Training, each loss in its own terms", xlabel="step", ylabel="loss, mean of 5 steps")
    right.set(title="Validation: a negative is nearer", xlabel="epoch", ylabel="1 - one-shot accuracy")
    for axes in (left, middle, right):
        if axes.lines:
            axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    return plot.save(figure, path)
