"""Rounds of collecting and training by sb3-contrib's RecurrentPPO, timed, and resumable after each.

Every round starts with new episodes, and with random numbers made from the seed and the round. So a
checkpoint needs no state of environments or generators, and what is resumed goes on as if it had never
stopped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from seqkernels.integrations import sb3

from ..common import checkpoint, terminal
from ..common.errors import InputError
from ..common.train import Diverged
from .environment import Recall, observations

__all__ = ["Recipe", "answers", "build", "load", "train"]

Round = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """The task, the network and how it learns.

    Args:
        cues, delay: As for `Recall`.
        hidden: Units of the actor's LSTM, and of the critic's.
        envs, steps: Environments, and steps of each in a round.
        batch: Steps in a training step, of all sequences together.
        passes: How often a round's steps are trained on.
        rate: Learning rate of Adam.
        seed: The same seed gives the same training.
    """

    cues: int
    delay: int
    hidden: int
    envs: int
    steps: int
    batch: int
    passes: int
    rate: float
    seed: int


class _Watch(BaseCallback):
    """The rewards of the episodes that ended in a round, and how long it took to collect its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []
        self.start = self.collected = 0.0

    def _on_rollout_start(self) -> None:
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        self.rewards += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        self.collected = time.perf_counter()


def build(recipe: Recipe, backend: str, device: torch.device | str = "cpu") -> RecurrentPPO:
    """The model before training; "fused" or "torch"."""
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(partial(Recall, recipe.cues, recipe.delay), recipe.envs),
        n_steps=recipe.steps,
        batch_size=recipe.batch,
        n_epochs=recipe.passes,
        learning_rate=recipe.rate,
        ent_coef=0.01,
        policy_kwargs={"lstm_hidden_size": recipe.hidden, "net_arch": []},
        seed=recipe.seed,
        device=device,
    )
    return sb3.fuse(model) if backend == "fused" else model


def train(model: RecurrentPPO, recipe: Recipe, rounds: int, path: Path, resume: bool = False) -> list[Round]:
    """Train in place, with a checkpoint after each round.

    Args:
        model: As `build` made it.
        recipe: What it was made from.
        rounds: In all, those before a `resume` included.
        path: Of the checkpoint.
        resume: Go on from it.

    Returns:
        Of each round: the part of its episodes with the right answer, steps per second of collecting and of
        training, and its seconds.

    Raises:
        InputError: `resume` without a checkpoint, or with that of another recipe.
    """
    history: list[Round] = []
    if resume:
        found, *_ = read(path)
        if found != recipe:
            raise InputError(path, None, f"a training with {recipe}", f"one with {found}")
        _, history = load(model, path)
    count = recipe.envs * recipe.steps
    console = terminal.console()
    for n in range(len(history), rounds):
        model.set_random_seed(random.Random(f"{recipe.seed} {n}").getrandbits(31))
        watch = _Watch()
        with _numbers():
            model.learn(count, callback=watch)
        if not all(bool(p.isfinite().all()) for p in model.policy.parameters()):
            raise Diverged(f"the network's parameters are no longer numbers after round {n + 1}")
        end = time.perf_counter()
        history.append(
            {
                "right": float(np.mean(watch.rewards)) if watch.rewards else float("nan"),
                "collect steps/s": count / (watch.collected - watch.start),
                "train steps/s": count * recipe.passes / (end - watch.collected),
                "seconds": end - watch.start,
            }
        )
        shown = "  ".join(f"{name} {terminal.number(value)}" for name, value in history[-1].items())
        console.print(f"round {n + 1}/{rounds}  {shown}")
        optimizer = checkpoint.optimizer_tensors(model.policy.optimizer)
        tensors = {"model": model.policy.state_dict(), "optimizer": optimizer}
        checkpoint.save(path, tensors, {"recipe": asdict(recipe), "history": history})
    return history


def load(model: RecurrentPPO, path: Path) -> tuple[Recipe, list[Round]]:
    """Put a model into a checkpoint's state; its recipe and history."""
    recipe, history, tensors = read(path)
    model.policy.load_state_dict(tensors["model"])
    checkpoint.load_optimizer(model.policy.optimizer, tensors.get("optimizer", {}))
    return recipe, history


def read(path: Path) -> tuple[Recipe, list[Round], checkpoint.Tensors]:
    """A checkpoint."""
    tensors, data = checkpoint.load(path)
    with checkpoint.understood(path):
        return Recipe(**data["recipe"]), data["history"], tensors


@contextmanager
def _numbers() -> Iterator[None]:
    """Where a distribution is asked for of what is infinite or NaN, the training has diverged."""
    try:
        yield
    except ValueError as error:
        if "found invalid values" not in str(error):
            raise
        raise Diverged("the network's answers are no longer numbers") from None


@torch.no_grad()
def answers(model: RecurrentPPO, delay: int, cues: Sequence[int]) -> torch.Tensor:
    """The probability of each answer after a delay, for each cue shown: [len(cues), cues there are]."""
    policy: Any = model.policy
    kinds, lstm = policy.action_space.n, policy.lstm_actor
    seen = np.stack([observations(cue, delay, kinds) for cue in cues])  # [N, T, I]
    zeros = torch.zeros(lstm.num_layers, len(cues), lstm.hidden_size, device=model.device)
    starts = torch.zeros(seen.shape[:2], device=model.device)
    starts[:, 0] = 1
    policy.set_training_mode(False)
    flat = torch.as_tensor(seen, device=model.device).flatten(0, 1)
    with _numbers():
        distribution, _ = policy.get_distribution(flat, (zeros, zeros), starts.flatten())
    return distribution.distribution.probs.view(len(cues), -1, kinds)[:, -1].cpu()
