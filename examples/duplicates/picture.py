"""What was learned, as a picture: accuracy by epoch, and the similarities that the threshold parts."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from examples.common import plot
from examples.common.train import History


def draw(
    path: Path, histories: dict[str, History], similarities: dict[str, Tensor], duplicate: Tensor
) -> Path:
    """Left, accuracy on validation pairs after each epoch; then, for each model, how similar duplicates and
    other pairs are in the end, with the threshold between them.

    Args:
        histories: Of each model.
        similarities: Of each model, [N].
        duplicate: bool [N].
    """
    figure, axes = plot.new(1, 1 + len(histories), width=5 * (1 + len(histories)))
    for name, history in histories.items():
        epochs = range(1, len(history.epochs) + 1)
        axes[0].plot(epochs, [epoch["accuracy"] for epoch in history.epochs], marker=".", label=name)
    axes[0].set(title="Validation pairs", xlabel="epoch", ylabel="accuracy", ylim=(0.45, 1.02))
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend()
    for own, (name, similarity) in zip(axes[1:], similarities.items(), strict=True):
        parts = [similarity[duplicate].tolist(), similarity[~duplicate].tolist()]
        colours = [plot.COLOURS[2], plot.COLOURS[3]]
        own.hist(parts, bins=40, stacked=True, label=["duplicates", "others"], color=colours)
        own.axvline(histories[name].epochs[-1]["threshold"], color="black", linestyle="--", label="threshold")
        own.set(title=name, xlabel="cosine similarity", ylabel="pairs")
        own.legend(loc="upper left")
    return plot.save(figure, path)
