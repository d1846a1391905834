"""What `fuse` and `unfuse` say of what they did: a report to print, and lines of Python's logging."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Change", "FusionReport", "LeftAlone", "told"]

logger = logging.getLogger("seqkernels")
# A line of the log names so many layers; the report names all.
NAMED_IN_A_LINE = 8
_warned: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()


class Change(NamedTuple):
    """The names of a layer's class, before and after."""

    before: str
    after: str


class LeftAlone(NamedTuple):
    """The name of a layer's class, and why it stays what it is."""

    kind: str
    reason: str


@dataclass(frozen=True)
class FusionReport:
    """What `fuse` or `unfuse` did with the recurrent layers and cells of a model; `print` it.

    Layers are named by their path in the model, the model itself by "", and one that has several paths by the
    first of them.

    Attributes:
        action: "fuse" or "unfuse".
        changed: Of each layer that became one of another class, the names of both.
        already: Of each that was what it should become, the name of its class.
        left_alone: Of each that stays what it is, the name of its class, and why.
        notes: What is to be known beside, such as of layers inside of what torch.compile returned.
    """

    action: str
    changed: dict[str, Change] = field(default_factory=dict)
    already: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, LeftAlone] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """How many of how many."""
        total = len(self.changed) + len(self.already) + len(self.left_alone)
        if not total:
            return f"{self.action}d nothing: there is no recurrent layer"
        text = f"{self.action}d {len(self.changed)} of {total} recurrent layer{'s' if total > 1 else ''}"
        return text + (f", {len(self.already)} {self._was} already" if self.already else "")

    @property
    def _was(self) -> str:
        was = "was" if len(self.already) == 1 else "were"
        return was if self.action == "fuse" else f"{was} torch.nn's"

    def __str__(self) -> str:
        lines = [self.headline]
        lines += [f"  {_shown(path)}: {before} -> {after}" for path, (before, after) in self.changed.items()]
        if self.already:
            lines.append("fused already" if self.action == "fuse" else "torch.nn's already")
            lines += [f"  {_shown(path)}: {kind}" for path, kind in self.already.items()]
        if self.left_alone:
            lines.append("left alone")
            lines += [
                f"  {_shown(path)}: {left.kind}, because {left.reason}"
                for path, left in self.left_alone.items()
            ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _shown(path: str) -> str:
    return path or "the model itself"


def told(
    report: FusionReport, left_alone: Iterable[tuple[type, LeftAlone]] = (), where: str = "seqkernels"
) -> FusionReport:
    """Log a report: what changed at level INFO, and at WARNING what was left alone.

    Args:
        report: What was done.
        left_alone: Layers that were left alone, with their classes. Of each class, a reason is logged once in
            a process.
        where: The module whose function did it.

    Returns:
        `report`.
    """
    if logger.isEnabledFor(logging.INFO):
        named = [f"{_shown(path)} ({change.before})" for path, change in report.changed.items()]
        names = ", ".join(named[:NAMED_IN_A_LINE])
        more = f" and {len(named) - NAMED_IN_A_LINE} more" if len(named) > NAMED_IN_A_LINE else ""
        logger.info("%s%s%s%s", report.headline, ": " if names else "", names, more, stacklevel=3)
        for note in report.notes:
            logger.info("%s", note, stacklevel=3)
    for cls, (kind, reason) in left_alone:
        said = _warned.setdefault(cls, set())
        if reason not in said:
            said.add(reason)
            logger.warning("%s.%s leaves %s alone: %s", where, report.action, kind, reason, stacklevel=3)
    return report
