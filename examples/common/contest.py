"""Several models that learn from the same batches, one after the other, each with a checkpoint of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from . import checkpoint, cli, distributed, terminal
from .errors import InputError
from .train import History, Loss, Metrics, check_config, fit

__all__ = ["Build", "Trained", "check_resume", "load_each", "train_each"]

Config = dict[str, Any]
Build = Callable[[Config, str], nn.Module]  # a new model, from its configuration and the backend


class Trained(NamedTuple):
    """A model, what it was made from, and what it went through."""

    model: nn.Module
    config: Config
    history: History


def check_resume(options: argparse.Namespace, configs: Mapping[str, Config]) -> None:
    """With `options.resume`, refuse what cannot be gone on from. To be called before anything is written to
    `options.out`, so that a training that is refused leaves what is there as it was.

    Args:
        configs: As for `train_each`, or as much of each as is known yet.

    Raises:
        InputError: Nothing to resume, or the checkpoint of another model.
    """
    paths = {name: options.out / f"{name}.safetensors" for name in configs}
    if not options.resume:
        return
    if not any(path.exists() for path in paths.values()):
        raise InputError(options.out, None, "checkpoints to go on from", "none")
    for name, path in paths.items():
        if path.exists():
            check_config(path, checkpoint.load_data(path), {"seed": options.seed, **configs[name]})


def train_each(
    options: argparse.Namespace,
    build: Build,
    configs: Mapping[str, Config],
    loss: Callable[[Any, Any], Loss] | Mapping[str, Callable[[Any, Any], Loss]],
    batches: Callable[[int], Iterable[Any]],
    evaluate: Callable[[nn.Module], Metrics],
    changes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Trained]:
    """Train a model for each configuration, all from the same seed.

    With `options.resume`, those that have a checkpoint go on from it. Without, checkpoints of an earlier
    training are removed first: of one that is interrupted, none may be taken for those of this one.

    Args:
        options: Those of `cli.CommandLine.training`.
        build: Makes the models.
        configs: By name; a checkpoint NAME.safetensors goes to `options.out`.
        loss, batches: As for `train.fit`; the loss may be one for each name.
        evaluate: The metrics of a model, after each epoch.
        changes: Of the recipe, for some of the models.

    Raises:
        InputError: Nothing to resume, or the checkpoint of another model.
    """
    trained: dict[str, Trained] = {}
    paths = {name: options.out / f"{name}.safetensors" for name in configs}
    check_resume(options, configs)
    if not options.resume and distributed.rank() == 0:
        for path in filter(Path.is_file, paths.values()):
            path.unlink()
    for name, config in configs.items():
        terminal.console().print(name, style="bold")
        torch.manual_seed(options.seed)
        model = build(config, options.backend).to(options.device)
        history = fit(
            model,
            loss[name] if isinstance(loss, Mapping) else loss,
            batches,
            cli.recipe(options, **changes.get(name, {})),
            evaluate=partial(evaluate, model),
            path=paths[name],
            config={"seed": options.seed, **config},
            resume=options.resume and paths[name].exists(),
        )
        trained[name] = Trained(model, config, history)
    return trained


def load_each(options: argparse.Namespace, build: Build, names: Iterable[str]) -> dict[str, Trained]:
    """What `train_each` left in `options.out`, ready for use.

    Raises:
        InputError: A checkpoint is not there, or not of these models.
    """
    trained: dict[str, Trained] = {}
    for name in names:
        path = options.out / f"{name}.safetensors"
        tensors, data = checkpoint.load(path, options.device, "model")
        with checkpoint.understood(path):
            model = build(data["config"], "fused").to(options.device).eval()
            model.load_state_dict(tensors["model"])
            trained[name] = Trained(model, data["config"], History(**data["history"]))
    return trained
