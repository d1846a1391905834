"""What an n-gram model and a recurrent one cost and can do: perplexity, memory, agreement at a distance."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common import checkpoint, plot, results
from ..common.text import UNK, Vocabulary
from .data import Part, Probe, stream, tokenize
from .model import TruncatedBackpropagation, log_probabilities, perplexity
from .ngram import NGram

__all__ = ["Model", "agreement", "compare", "costs", "draw", "log_probability", "memory"]

Model = NGram | nn.Module  # counts, or a RecurrentLM
LAST = (4, 8, 12, 16, math.inf)  # distances are taken together in ranges up to each of these
RANGES = ("1–4", "5–8", "9–12", "13–16", "17+")
AGREE = "agree "  # and a range: the name of a column


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
    found = defaultdict(list)
    for probe in probes:
        before = opening + vocabulary.ids(tokenize(probe.prefix, level))
        right, wrong = (
            log_probability(model, before, vocabulary.ids(tokenize(f" {form} ", level)))
            for form in (probe.right, probe.wrong)
        )
        range_ = next(n for n, last in enumerate(LAST) if probe.distance <= last)
        found[range_].append(0.5 * ((right > wrong) + (right >= wrong)))
    return {RANGES[n]: sum(own) / len(own) for n, own in sorted(found.items())}


def compare(
    models: Mapping[str, Model], lines: list[list[str]], probes: list[Probe], config: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """All models on the same text and the same probes; `config` is that of their training.

    Returns:
        A row for each model. `perplexity` is over all tokens, those that are unknown counted as one word,
        <UNK>; `known words` is over those that are not unknown, and is there if the text has both; `kB` is
        what has to be stored; then agreement by distance, if there are probes.
    """
    vocabulary, level = Vocabulary.from_json(config["vocabulary"]), config["level"]
    ids = stream(vocabulary, lines)
    known = ids[1:] != vocabulary.index[UNK]
    rows: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        log_p = log_probabilities(model, ids)
        rows[name] = {"perplexity": perplexity(log_p)}
        if known.any() and not known.all():
            rows[name]["known words"] = perplexity(log_p[known])
        rows[name]["kB"] = memory(model) / 1000
        if probes:
            found = agreement(model, probes, vocabulary, level, config["opening"])
            rows[name] |= {AGREE + distance: value for distance, value in found.items()}
    return rows


def costs(model: nn.Module, part: Part, epochs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What training takes: tokens per second, median over epochs, and the memory that a step keeps for its
    backward pass, parameters not counted.

    Args:
        part: Of the text, as in training.
        epochs: The metrics of each.
    """
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = TruncatedBackpropagation()(model.train(), part._replace(first=True))
    del loss
    model.eval()
    speed = statistics.median(epoch["tokens/s"] for epoch in epochs)
    return {"tokens/s": speed, "kB for backward": sum(kept.values()) / 1000}


def draw(folders: Sequence[Path], cells: Sequence[str], path: Path) -> Path:
    """Perplexity against memory, losses of training, agreement by distance; n-grams in shades of grey.

    Args:
        folders: What `train` left for each seed; lines are medians, bands and bars from lowest to highest.
        cells: Of the networks.
    """
    tables = [results.read(folder, "train")[1] for folder in folders]
    networks = [cell.upper() for cell in cells]
    counted = [name for name in tables[0] if name not in networks]
    colours = {name: str(0.8 - 0.7 * n / len(counted)) for n, name in enumerate(counted)}
    colours |= dict(zip(networks, plot.COLOURS, strict=False))
    ranges = [name for name in tables[0][networks[0]] if name.startswith(AGREE)]
    figure, axes = plot.new(1, 3 if ranges else 2)

    for n, name in enumerate(tables[0]):
        kb, *values = tables[0][name]["kB"], *sorted(table[name]["perplexity"] for table in tables)
        middle = statistics.median(values)
        bars = [[middle - values[0]], [values[-1] - middle]]
        mark = "s" if name in networks else "o"
        axes[0].errorbar(kb, middle, yerr=bars, fmt=mark, color=colours[name], capsize=2)
        # By turns to the right and to the left, for two cells of one size are in nearly one place.
        place = {"xytext": (6, 4)} if n % 2 == 0 else {"xytext": (-6, -9), "ha": "right"}
        axes[0].annotate(name, (kb, middle), textcoords="offset points", fontsize=8, **place)
    axes[0].set(title="Perplexity and memory", xlabel="kB to store", ylabel="perplexity", xscale="log")
    axes[0].margins(x=0.2)
    axes[0].xaxis.set_minor_formatter("")  # powers of ten alone have room for their labels

    late: list[float] = []
    for cell, name in zip(cells, networks, strict=True):
        saved = (checkpoint.load_data(folder / f"{cell}.safetensors") for folder in folders)
        curves = [plot.smooth(data["history"]["losses"], 20) for data in saved]
        plot.band(axes[1], range(1, len(curves[0]) + 1), curves, color=colours[name], label=name)
        late += [loss for curve in curves for loss in curve[len(curve) // 10 :]]
    axes[1].set(title="Training", xlabel="step", ylabel="loss (nats per token)")
    axes[1].set_ylim(min(late) - 0.02, max(late) + 0.02)  # what the first steps learn is the same for all
    axes[1].legend()

    if ranges:
        for name in tables[0]:
            curves = [[table[name][column] for column in ranges] for table in tables]
            style = {"marker": "s"} if name in networks else {"marker": "o", "linestyle": "--"}
            plot.band(axes[2], range(len(ranges)), curves, color=colours[name], label=name, **style)
        axes[2].axhline(0.5, color="black", lw=0.8, ls=":")
        axes[2].set_xticks(range(len(ranges)), [name.removeprefix(AGREE) for name in ranges])
        axes[2].set(title="Agreement at a distance", xlabel="words from noun to verb", ylim=(0, 1.03))
        axes[2].set(ylabel="right form preferred")
        axes[2].legend(loc="lower left", fontsize=8)
    return plot.save(figure, path)
