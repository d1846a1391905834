"""RecurrentPPO of sb3-contrib, which learns to balance a pole that it sees without its velocities."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import seqkernels
from seqkernels.integrations import sb3
from tests.conftest import TOLERANCES

from . import twins

sb3_contrib = pytest.importorskip("sb3_contrib")
gymnasium = pytest.importorskip("gymnasium")

from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

pytestmark = pytest.mark.integration
ENVIRONMENTS, STEPS, BATCH = 4, 128, 128


class Positions(gymnasium.ObservationWrapper):  # type: ignore[misc, type-arg]
    """CartPole without its velocities."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        space = self.env.observation_space
        self.observation_space = gymnasium.spaces.Box(space.low[::2], space.high[::2])

    def observation(self, observation: Any) -> Any:
        return observation[::2]


def make(**options: Any) -> Any:
    options = {"n_steps": STEPS, "batch_size": BATCH} | options
    env = make_vec_env(Positions, ENVIRONMENTS, seed=0)
    return sb3_contrib.RecurrentPPO("MlpLstmPolicy", env, seed=0, device="cpu", **options)


@functools.cache
def rollout() -> Any:
    """What a model has seen and done, in batches as its training reads them."""
    model = make(n_epochs=1).learn(ENVIRONMENTS * STEPS)
    np.random.seed(0)  # noqa: NPY002, which it draws batches with
    return next(iter(model.rollout_buffer.get(BATCH)))


def run(policy: Any, seen: Any) -> tuple[list[Tensor], Tensor]:
    """The loss of its `train`, on its first batch."""
    mask = seen.mask > 1e-8
    values, log_prob, entropy = policy.evaluate_actions(
        seen.observations, seen.actions.long().flatten(), seen.lstm_states, seen.episode_starts
    )
    ratio = (log_prob - seen.old_log_prob).exp()
    gained = torch.min(seen.advantages * ratio, seen.advantages * ratio.clamp(0.8, 1.2))
    loss = -gained[mask].mean() + 0.5 * (seen.returns - values.flatten()).square()[mask].mean()
    return [values, log_prob, entropy], loss


def model_of(adapter: bool) -> twins.Model:
    fuse = sb3.fuse if adapter else seqkernels.fuse
    return twins.Model(
        package="sb3-contrib",
        title=f"`RecurrentPPO('MlpLstmPolicy')`, {'`sb3.fuse`' if adapter else '`seqkernels.fuse` alone'}",
        build=lambda: make().policy,
        batch=rollout,
        run=run,
        infer=lambda policy, seen: run(policy, seen)[0],
        fused={"LSTM": 2},  # the actor's and the critic's
        fuse=functools.partial(fuse, backend="native"),
    )


def learned(change: Callable[[Any], Any]) -> np.ndarray:
    """The losses of three updates of a learning whose policy was changed before."""
    model = make(n_steps=24, batch_size=48, n_epochs=1, policy_kwargs={"lstm_hidden_size": 32})
    change(model.policy)
    found = []
    np.random.seed(0)  # noqa: NPY002, which it draws batches with
    for _ in range(3):
        model.learn(ENVIRONMENTS * 24, reset_num_timesteps=False, log_interval=None)
        found.append([model.logger.name_to_value[f"train/{name}"] for name in ("loss", "value_loss")])
    return np.array(found)


def moved(policy: Any) -> None:
    """Every weight by up to one eps of itself."""
    with torch.no_grad():
        for p in policy.parameters():
            p *= 1 + (2 * torch.rand_like(p) - 1) * torch.finfo(p.dtype).eps


@pytest.mark.parametrize("adapter", [True, False])
def test_learning(adapter: bool) -> None:
    """Rollouts and updates from the same seed give the same losses.

    It computes in float32 alone, and each update starts from what the one before made of rounding. A learning
    whose first weights are off by up to one eps, as if each had been rounded once more, says how much that
    becomes; ours may be off by the larger of this and of what the table of tolerances grants one layer.
    """
    expected = learned(lambda policy: None)
    rounding = np.abs(learned(moved) - expected)
    found = np.abs(learned(model_of(adapter).fuse) - expected)
    assert expected.shape == (3, 2)
    assert len(np.unique(expected)) == expected.size
    layer = TOLERANCES[torch.float32] * np.abs(expected)
    assert (found <= np.maximum(layer, twins.OTHER_ORDER * rounding)).all(), (found, rounding, expected)


@pytest.mark.parametrize("adapter", [True, False])
def test_row(adapter: bool, row: Callable[[twins.Model], None]) -> None:
    row(model_of(adapter))
