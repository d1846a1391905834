"""One style for all pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from . import distributed

__all__ = ["COLOURS", "band", "new", "save", "smooth"]

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#555555",
    "#000000",
)  # told apart by everyone


def new(
    rows: int = 1, columns: int = 1, *, width: float = 0.0, height: float = 0.0, **kwargs: Any
) -> tuple[Any, Any]:
    """A figure and its axes, as `pyplot.subplots` gives them, drawn without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {
            "axes.prop_cycle": matplotlib.cycler(color=COLOURS),  # type: ignore[attr-defined]
            "axes.grid": True,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )
    size = (width or 5.5 * columns, height or 3.6 * rows)
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **kwargs)


def band(
    axes: Any, x: Sequence[float], curves: Sequence[Sequence[float]], *, color: str, label: str, **style: Any
) -> None:
    """The median of curves as a line, and from the lowest to the highest as a band, as far as all of them go.

    Args:
        x: [N].
        curves: Of each seed; what is beyond N is left out.
    """
    columns = [sorted(values) for values in zip(*(curve[: len(x)] for curve in curves), strict=False)]
    x = x[: len(columns)]
    axes.plot(x, [statistics.median(values) for values in columns], color=color, label=label, **style)
    if len(curves) > 1:
        low, high = ([values[n] for values in columns] for n in (0, -1))
        axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Means of the last `window` values, or of as many as there are.

    Example:
        >>> smooth([4.0, 2.0, 6.0], 2)
        [4.0, 3.0, 4.0]
    """
    sums = [0.0, *accumulate(values)]
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]


def save(figure: Any, path: Path) -> Path:
    """Write the PNG, at the size that docs/gallery.md shows it; under torchrun, one process writes."""
    from matplotlib import pyplot

    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
