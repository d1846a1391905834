"""One style for all pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import distributed

__all__ = ["COLOURS", "new", "save"]

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


def save(figure: Any, path: Path) -> Path:
    """Write the PNG, at the size that docs/gallery.md shows it; under torchrun, one process writes."""
    from matplotlib import pyplot

    if distributed.rank() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
