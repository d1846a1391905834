"""Several processes on one training, as torchrun starts them; with a single one, all of this does nothing.

Every process goes through the same global batches and computes its part of each. What all need to know, such
as the number of tokens in the global batch, is summed up; gradients are averaged by DistributedDataParallel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

__all__ = ["barrier", "gather", "rank", "session", "shard", "total", "world_size"]

Item = TypeVar("Item")


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _running() else 1


def barrier() -> None:
    """Wait for the others."""
    if _running():
        dist.barrier()


def shard(batch: Sequence[Item]) -> Sequence[Item]:
    """This process's part of a global batch: contiguous, in order, sizes differing by at most one."""
    first, last = (len(batch) * n // world_size() for n in (rank(), rank() + 1))
    return batch[first:last]


def total(values: Tensor) -> Tensor:
    """The sum over all processes, elementwise; no gradient flows through it."""
    values = values.detach().clone()
    if _running():
        dist.all_reduce(values)
    return values


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in order, for losses that compare every row with every other.

    Gradients flow back to the process that a row is from, summed over all processes.

    Args:
        rows: [B, ...]; B may differ between processes, the other sizes may not.

    Returns:
        [sum of B, ...], the same in every process.
    """
    if not _running():
        return rows
    sizes = total(torch.eye(world_size(), dtype=torch.int64, device=rows.device)[rank()] * len(rows)).tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded = torch.cat([rows, padded[len(rows) :]])
    return torch.cat([part[:size] for part, size in zip(all_gather(padded), sizes, strict=True)])


@contextmanager
def session(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started (gloo between CPUs, nccl between GPUs) for a while.

    Args:
        device: A kind of device; "cuda" becomes this process's own GPU.

    Yields:
        The device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device == torch.device("cuda"):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
