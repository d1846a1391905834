"""What was learned, as a picture: F1 by epoch and by type of entity, next to the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from examples.common import checkpoint, plot, results


def draw(folders: Mapping[int, Path], out: Path) -> Path:
    """Left, F1 on held-out sentences after each epoch; right, F1 of each type in the end. Both are over all
    seeds the median and from the lowest to the highest.

    Args:
        folders: What `train` left for each seed.
        out: Where the picture goes.
    """
    figure, (left, right) = plot.new(1, 2)
    rows = results.sum_up(folders, "train").spreads()
    baseline, *models = rows
    colours = dict(zip(rows, (plot.COLOURS[-1], *plot.COLOURS), strict=False))
    level = rows[baseline]["F1"]
    left.axhline(level.median, color=colours[baseline], linestyle="--", label=baseline)
    left.axhspan(level.low, level.high, color=colours[baseline], alpha=0.2, linewidth=0)
    for name in models:
        saved = [checkpoint.load_data(own / f"{name}.safetensors") for own in folders.values()]
        curves = [[epoch["F1"] for epoch in own["history"]["epochs"]] for own in saved]
        epochs = range(1, len(curves[0]) + 1)
        plot.band(left, epochs, curves, color=colours[name], label=name, marker=".")
    left.set(title="Held-out sentences", xlabel="epoch", ylabel="F1 of whole entities", ylim=(0, 1.02))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()

    types = [column for column in rows[baseline] if column.startswith("F1 ")]
    width = 0.8 / len(rows)
    for n, (name, own) in enumerate(rows.items()):
        places = [i + (n - (len(rows) - 1) / 2) * width for i in range(len(types))]
        medians = [own[type].median for type in types]
        reach = [[own[t].median - own[t].low for t in types], [own[t].high - own[t].median for t in types]]
        right.bar(places, medians, width, yerr=reach, label=name, color=colours[name], ecolor="#777777")
    right.set(title="By type of entity", ylabel="F1", ylim=(0, 1.02))
    right.set_xticks(range(len(types)), [type.removeprefix("F1 ") for type in types])
    right.grid(False, axis="x")
    return plot.save(figure, out / "ner.png")
