"""What an n-gram model and a recurrent one cost and can do: perplexity, memory, agreement at a distance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common import plot
from ..common.text import Vocabulary
from .data import Probe, stream, tokenize
from .model import perplexity
from .ngram import NGram

__all__ = ["Comparison", "Model", "agreement", "compare", "draw", "log_probability", "memory"]

Model = NGram | nn.Module  # counts, or a RecurrentLM
LAST = (4, 8, 12, 16, math.inf)  # distances are taken together in ranges up to each of these
RANGES = ("1–4", "5–8", "9–12", "13–16", "17+")


def memory(model: Model) -> int:
    """Bytes to store a model in: n-grams with their counts, 32 bits a number; or parameters."""
    tensors = model.tensors().values() if isinstance(model, NGram) else model.parameters()
    return sum(t.nbytes for t in tensors)


def log_probability(model: Model, before: list[int], tokens: list[int]) -> float:
    """log p(tokens | before); `before` is not empty."""
    if isinstance(model, NGram):
        ids = before + tokens
        return sum(math.log(model.probability(ids[:i], ids[i])) for i in range(len(before), len(ids)))
    device = next(model.parameters()).device
    with torch.inference_mode():
        scores, _ = model(torch.tensor((before + tokens)[:-1], device=device)[:, None])
    return float(scores[len(before) - 1 :, 0].gather(1, torch.tensor(tokens, device=device)[:, None]).sum())


def agreement(
    model: Model, probes: list[Probe], vocabulary: Vocabulary, level: str, opening: list[int]
) -> dict[str, float]:
    """How often the right form is more likely than the wrong one, by the distance of the word that tells.

    Args:
        opening: Text to read before each probe, ending with a line.

    Returns:
        A fraction for each range of distances, from near to far; two forms equally likely count half.
    """
    results = defaultdict(list)
    for probe in probes:
        before = opening + vocabulary.ids(tokenize(probe.prefix, level))
        right, wrong = (
            log_probability(model, before, vocabulary.ids(tokenize(f" {form} ", level)))
            for form in (probe.right, probe.wrong)
        )
        range_ = next(n for n, last in enumerate(LAST) if probe.distance <= last)
        results[range_].append(0.5 * ((right > wrong) + (right >= wrong)))
    return {RANGES[n]: sum(own) / len(own) for n, own in sorted(results.items())}


@dataclass
class Comparison:
    """What `compare` found out."""

    rows: dict[str, dict[str, float]]  # of each model: perplexity, memory, agreement near and far
    agreement: dict[str, dict[str, float]]  # of each model, by distance; empty without probes


def compare(
    models: Mapping[str, Model], lines: list[list[str]], probes: list[Probe], config: dict[str, Any]
) -> Comparison:
    """All models on the same text and the same probes; `config` is that of their training."""
    vocabulary, level = Vocabulary.from_json(config["vocabulary"]), config["level"]
    ids = stream(vocabulary, lines)
    made = Comparison({}, {})
    for name, model in models.items():
        p = model.perplexity(ids.tolist()) if isinstance(model, NGram) else perplexity(model, ids)
        made.rows[name] = {"perplexity": p, "kB": memory(model) / 1000}
        if probes:
            found = made.agreement[name] = agreement(model, probes, vocabulary, level, config["opening"])
            made.rows[name] |= {f"agree {distance}": value for distance, value in found.items()}
    return made


def draw(made: Comparison, losses: dict[str, list[float]], path: Path) -> Path:
    """Perplexity against memory, losses of training, agreement by distance; n-grams in shades of grey."""
    figure, axes = plot.new(1, 3 if made.agreement else 2)
    counted = [name for name in made.rows if name not in losses]
    colours = {name: str(0.8 - 0.7 * n / len(counted)) for n, name in enumerate(counted)}
    colours |= dict(zip(losses, plot.COLOURS, strict=False))

    x, y = ([made.rows[name][what] for name in counted] for what in ("kB", "perplexity"))
    axes[0].plot(x, y, "--", color="0.7", zorder=0)
    for name, row in made.rows.items():
        axes[0].plot(row["kB"], row["perplexity"], "s" if name in losses else "o", color=colours[name])
        place = (row["kB"], row["perplexity"])
        axes[0].annotate(name, place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes[0].set(title="Perplexity and memory", xlabel="kB to store", ylabel="perplexity", xscale="log")
    axes[0].margins(x=0.2)

    for name, own in losses.items():
        axes[1].plot(plot.smooth(own, 20), label=name, color=colours[name])
    axes[1].set(title="Training", xlabel="step", ylabel="loss (nats per token)")
    late = [loss for own in losses.values() for loss in plot.smooth(own, 20)[len(own) // 10 :]]
    axes[1].set_ylim(min(late) - 0.02, max(late) + 0.02)  # what the first steps learn is the same for all
    axes[1].legend()

    if made.agreement:
        for name, found in made.agreement.items():
            mark = "s-" if name in losses else "o--"
            axes[2].plot(list(found), list(found.values()), mark, label=name, color=colours[name])
        axes[2].axhline(0.5, color="black", lw=0.8, ls=":")
        axes[2].set(title="Agreement at a distance", xlabel="words from noun to verb", ylim=(0, 1.03))
        axes[2].set(ylabel="right form preferred")
        axes[2].legend(loc="lower left", fontsize=8)
    return plot.save(figure, path)
