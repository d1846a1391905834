"""What one length for all sentences costs: padding where it is too long, and words where it is too short."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import nn

from examples.common.contest import Trained
from examples.common.data import Batches

from .learn import Example, loss

TIMED = 20  # how many batches the speed is taken from


def choices(examples: Sequence[Example]) -> dict[str, int | None]:
    """The lengths that are compared, by name: None is that of each batch's longest sentence."""
    longest = max(len(example.ids) for example in examples)
    return {
        "none": None,
        "longest": longest,
        "twice-longest": 2 * longest,
        "half-longest": max(1, longest // 2),
    }


def shares(batches: Batches[Example], length: int | None) -> dict[str, float]:
    """Of what is read in the first epoch, the fraction that is padding; of all tokens, that which is cut.

    Args:
        batches: Those of all processes together.
        length: That of every sentence, or None for that of the longest of each batch.

    Example:
        >>> batches = Batches([Example([2, 3, 4, 5], [0, 0, 0, 0]), Example([2], [0])], 2)
        >>> shares(batches, None), shares(batches, 2)
        ({'padding': 0.375, 'cut': 0.0}, {'padding': 0.25, 'cut': 0.4})
    """
    places = real = tokens = 0
    for batch in batches.indices(epoch=0):
        sizes = [len(batches.items[i].ids) for i in batch]
        places += len(sizes) * (length or max(sizes))
        real += sum(min(size, length or size) for size in sizes)
        tokens += sum(sizes)
    return {"padding": 1 - real / places, "cut": 1 - real / tokens}


def speeds(
    models: Mapping[str, nn.Module], batches: Sequence[Sequence[Example]], rounds: int = 20
) -> dict[str, float]:
    """Real tokens per second, forward and backward, that each model reads in its best round.

    The models take turns, and the best round is the one that nothing else on the machine slowed down.
    """
    best = dict.fromkeys(models, 0.0)
    for _ in range(rounds):
        for name, model in models.items():
            tokens, start = 0, time.perf_counter()
            for batch in batches:
                part = loss(model, batch)
                part.sum.backward()
                tokens += part.tokens
            part.sum.item()  # which a GPU answers when it is done
            best[name] = max(best[name], tokens / (time.perf_counter() - start))
    return best


def rows(
    lengths: Mapping[str, int | None], trained: Mapping[str, Trained], batches: Batches[Example]
) -> dict[str, dict[str, float]]:
    """A row for each length: the speed, what is padded and cut, what was learned by the last epoch, and the
    length itself, if it is one."""
    speed = speeds({name: own.model for name, own in trained.items()}, batches(0)[:TIMED])
    made: dict[str, dict[str, float]] = {}
    for name, length in lengths.items():
        last = {column: trained[name].history.epochs[-1][column] for column in ("loss", "F1")}
        own = {} if length is None else {"N": length}
        made[name] = {"tokens/s": speed[name], **shares(batches, length), **last, **own}
    return made
