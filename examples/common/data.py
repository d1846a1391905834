"""From files to batches: reading lines, splitting, batches of similar length, the same in all processes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

from . import distributed
from .errors import InputError

__all__ = ["Batches", "InputError", "read_lines", "replace_text", "split", "write_generated"]

Item = TypeVar("Item")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without their ends: item n is line n + 1.

    Raises:
        InputError: There is no such file, it is not UTF-8, or nothing but white space is in it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            path, None, "a file that can be read", (error.strerror or str(error)).lower()
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(path, line, "UTF-8 text", f"byte 0x{data[error.start]:02x}") from None
    if not text.strip():
        raise InputError(path, None, "text", "an empty file")
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def replace_text(path: Path, text: str) -> None:
    """Put a text into a file, in one go: it is there whole, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def write_generated(path: Path, text: str) -> Path:
    """Put generated data into a file, to be read like anyone's; under torchrun, one process writes."""
    if distributed.rank() == 0:
        replace_text(path, text)
    distributed.barrier()
    return path


def split(items: Sequence[Item], held_out: float, seed: int) -> tuple[list[Item], list[Item]]:
    """All but a fraction `held_out` of the items, and that fraction: at least one item each, drawn by `seed`.

    Raises:
        ValueError: There are fewer than two items.
    """
    if len(items) < 2:
        raise ValueError(f"{len(items)} items cannot be split in two")
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    count = min(max(round(held_out * len(items)), 1), len(items) - 1)
    return [items[i] for i in sorted(order[count:])], [items[i] for i in sorted(order[:count])]


class Batches(Generic[Item]):
    """Items in batches of similar length, in another order every epoch, shared between the processes.

    Sorting by length within pools of `pool` batches saves most of the padding and leaves the batches random.
    The sizes of batches differ by at most one, so none is too small to be shared between processes.

    Args:
        items: What batches are made of.
        batch_size: The items of all processes' parts together.
        length: The length of an item; without it, the order is random throughout.
        seed: Decides, with the epoch, about the order.

    Raises:
        ValueError: There are fewer items, or `batch_size` is smaller, than there are processes.

    Example:
        >>> batches = Batches(["a", "bb", "cc", "d"], 2, length=len, seed=3)
        >>> batches(epoch=0)
        [['cc', 'bb'], ['a', 'd']]
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        *,
        length: Callable[[Item], int] | None = None,
        seed: int = 0,
        pool: int = 50,
    ) -> None:
        world = distributed.world_size()
        if min(len(items), batch_size) < world:
            raise ValueError(
                f"batches of {batch_size} from {len(items)} items cannot be shared by {world} processes"
            )
        self.items, self.batch_size, self.length, self.seed, self.pool = items, batch_size, length, seed, pool

    def __len__(self) -> int:
        """Batches in an epoch."""
        most = len(self.items) // distributed.world_size()  # so that every process has an item of every batch
        return min(-(-len(self.items) // self.batch_size), most)

    def indices(self, epoch: int) -> list[list[int]]:
        """The indices of the items of all batches of an epoch, in full: the same in every process."""
        generator = random.Random(f"{self.seed} {epoch}")
        order = list(range(len(self.items)))
        generator.shuffle(order)
        count = len(self)
        edges = [n * len(order) // count for n in range(count + 1)]
        if self.length is not None:
            for first in range(0, count, self.pool):
                pool = slice(edges[first], edges[min(first + self.pool, count)])
                order[pool] = sorted(order[pool], key=lambda i: self.length(self.items[i]))  # type: ignore[misc]
        batches = [order[start:end] for start, end in pairwise(edges)]
        generator.shuffle(batches)
        return batches

    def __call__(self, epoch: int) -> list[list[Item]]:
        """This process's part of every batch of an epoch."""
        return [[self.items[i] for i in distributed.shard(batch)] for batch in self.indices(epoch)]
