"""Checkpoints: one safetensors file, its tensors by name and everything else as JSON in its header.

One file is either there or not, never half written; nothing in it is executed by reading it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import distributed, results
from .errors import InputError

__all__ = ["load", "load_data", "load_optimizer", "optimizer_tensors", "save", "understood"]

Tensors = dict[str, dict[str, Tensor]]


def save(path: Path, tensors: Tensors, data: dict[str, Any]) -> None:
    """Replace the file, in one go; of several processes, the first does.

    Args:
        tensors: Groups of named tensors, such as `{"model": model.state_dict()}`.
        data: What JSON can hold.

    Raises:
        InputError: The file cannot be written.
    """
    if distributed.rank() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {f"{group}/{name}": t.contiguous() for group, own in tensors.items() for name, t in own.items()}
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        save_file(flat, unfinished, metadata={"data": json.dumps(data, ensure_ascii=False)})
    except SafetensorError as error:
        raise InputError(path, None, "a checkpoint that can be written", str(error)) from None
    os.replace(unfinished, path)
    # The medians of several seeds, if there are any, are no longer those of what is in the folder.
    (path.parent / results.SUMMARY).unlink(missing_ok=True)


def load(path: Path, device: torch.device | str = "cpu", *groups: str) -> tuple[Tensors, dict[str, Any]]:
    """What `save` was given, or only some groups of the tensors.

    Raises:
        InputError: There is no such file, or `save` did not write it.
    """
    if not path.is_file():
        raise InputError(path, None, "the checkpoint of a training (run `train` first)", "no such file")
    tensors: Tensors = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            data = json.loads((file.metadata() or {})["data"])
            for key in file.keys():  # noqa: SIM118 - a safe_open is not a dict
                group, _, name = key.partition("/")
                if not groups or group in groups:
                    tensors.setdefault(group, {})[name] = file.get_tensor(key)
    except (SafetensorError, KeyError, ValueError):
        raise InputError(path, None, "a checkpoint of this program", "a file of another kind") from None
    return tensors, data


def load_data(path: Path) -> dict[str, Any]:
    """What `save` was given beside the tensors, which are not read; raises like `load`."""
    return load(path, "cpu", "")[1]  # a group that nothing is in


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """What is read from a checkpoint in here, and turns out to be missing or of another kind, makes an
    InputError: the file is another program's."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise InputError(path, None, "a checkpoint of this program", "one of another") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state: `{"0/exp_avg": ..., "0/step": ...}`, parameters by their number."""
    state = optimizer.state_dict()["state"]
    return {f"{n}/{name}": torch.as_tensor(t) for n, own in state.items() for name, t in own.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; rates and the like stay as the optimizer was made."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
