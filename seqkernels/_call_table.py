"""The table of what a program called: which kernel ran each recurrent layer, and why nothing faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ._calls import Calls, Layer, Row
from .dispatch import name_of

__all__ = ["table"]

HEADER = ("layer", "calls", "input", "forward", "share", "ran")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def table(calls: Calls) -> str:
    """Lines of a table, then what is to be known of it.

    Args:
        calls: What was recorded.
    """
    names = _names(list(calls.layers.values()))
    if not calls.rows:
        return "\n".join(["no recurrent layer was called", *_notes(calls, names)])
    spent = sum(row.seconds for row in calls.rows)
    called = {row.layer: None for row in calls.rows}
    heading = (
        f"{_count(len(called), 'recurrent layer')}, {_count(calls.total, 'call')}, forward "
        f"{_duration(spent)} of {_duration(calls.seconds)} ({_share(spent, calls.seconds)})"
    )
    rows = [
        (
            names[row.layer],
            str(row.calls),
            _input(row),
            _duration(row.seconds),
            _share(row.seconds, calls.seconds),
            _ran(row),
        )
        for row in calls.rows
    ]
    lines = [heading, "", *_aligned([HEADER, *rows], right={1, 3, 4})]
    reasons: dict[tuple[str, ...], dict[str, None]] = {}
    for row in calls.rows:
        if row.explanation.reasons and not row.fuse_helps:
            reasons.setdefault(tuple(row.explanation.reasons), {})[names[row.layer]] = None
    for found, layers in reasons.items():
        lines += ["", f"{', '.join(layers)}: not faster because of", *(f"  - {reason}" for reason in found)]
    if notes := _notes(calls, names):
        lines += ["", *notes]
    helped = {names[row.layer]: None for row in calls.rows if row.fuse_helps}
    if helped:
        seconds = sum(row.seconds for row in calls.rows if row.fuse_helps)
        lines += [
            "",
            f"seqkernels.fuse(model), before it runs, gives kernels to {', '.join(helped)}: "
            f"{_share(seconds, calls.seconds)} of the time",
        ]
    return "\n".join(lines)


def _names(layers: Sequence[Layer]) -> dict[Layer, str]:
    """Paths, as far as they tell layers apart; else with the class of the model, or with sizes too."""
    short = {layer: layer.path or layer.shown for layer in layers}
    longer = {layer: f"{layer.root}.{layer.path}" if layer.path else layer.shown for layer in layers}
    taken, still = list(short.values()), list(longer.values())
    return {
        layer: short[layer]
        if taken.count(short[layer]) == 1
        else longer[layer]
        if still.count(longer[layer]) == 1
        else f"{longer[layer]} {layer.shown}"
        for layer in layers
    }


def _ran(row: Row) -> str:
    kernel = row.explanation.kernel
    if row.ran == "itself" or row.explanation.backend == "none":
        return kernel
    if row.ran == "torch.nn":
        return f"torch.nn; once fused: {kernel}"
    return kernel


def _input(row: Row) -> str:
    """Sizes, with ranges where calls differ, dtype and device."""
    pairs = zip(row.least or (), row.most, strict=True)
    sizes = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in pairs)
    packed = "packed " if row.packed else ""
    return f"{packed}[{sizes or '...'}] {name_of(row.dtype)} {row.device}"


def _notes(calls: Calls, names: dict[Layer, str]) -> list[str]:
    unseen: dict[str, list[str]] = {}
    for layer in calls.layers.values():
        if not layer.calls:
            shown = names[layer] if names[layer] == layer.shown else f"{names[layer]} ({layer.shown})"
            unseen.setdefault(layer.inside, []).append(shown)
    notes = []
    if layers := unseen.pop("", None):
        notes.append(f"not called, or not as a module: {', '.join(layers)}")
    for what, layers in unseen.items():
        notes.append(f"inside of what {what} has compiled, where no call is seen: {', '.join(layers)}")
    if calls.traced:
        kinds = sorted(set(calls.traced))
        notes.append(
            f"torch.compile made {_count(len(calls.traced), 'call')} of {', '.join(kinds)} part of graphs, "
            "where no call is seen"
        )
    if calls.forks:
        forked = "1 process was" if calls.forks == 1 else f"{calls.forks} processes were"
        notes.append(f"{forked} forked, as for the workers of a DataLoader; calls in them are not seen")
    return notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    """Three digits: "1.93 s", "15.2 ms"."""
    scale, unit = next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])
    value = seconds / scale
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "-"


def _aligned(rows: Iterable[Sequence[str]], right: set[int]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
