"""An actor and a critic of TorchRL that share an LSTMModule, with the losses of PPO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from seqkernels.integrations import torchrl

from . import twins

theirs = pytest.importorskip("torchrl.modules")

from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule, TensorDictSequential  # noqa: E402
from torchrl.objectives import ClipPPOLoss  # noqa: E402

pytestmark = pytest.mark.integration
OBSERVED, HIDDEN, ACTIONS, BATCH, STEPS = 8, 128, 4, 8, 64


class ActorCritic(nn.Module):
    """Two heads on one LSTM, and PPO's losses of them."""

    def __init__(self) -> None:
        super().__init__()
        lstm = theirs.LSTMModule(OBSERVED, HIDDEN, in_key="observation", out_key="features")
        scores = TensorDictModule(nn.Linear(HIDDEN, ACTIONS), in_keys=["features"], out_keys=["logits"])
        self.actor = theirs.ProbabilisticActor(
            TensorDictSequential(lstm, scores),
            in_keys=["logits"],
            distribution_class=torch.distributions.Categorical,
            return_log_prob=True,
        )
        self.critic = TensorDictSequential(lstm, theirs.ValueOperator(nn.Linear(HIDDEN, 1), ["features"]))


def run(model: ActorCritic, batch: twins.Batch) -> tuple[list[Tensor], Tensor]:
    data = TensorDict(batch, [BATCH, STEPS])
    with theirs.set_recurrent_mode(True):
        losses = ClipPPOLoss(model.actor, model.critic, functional=False)(data)
    parts = [losses[name] for name in ("loss_objective", "loss_critic", "loss_entropy")]
    return parts, sum(parts)  # type: ignore[return-value]


def batch() -> twins.Batch:
    """Rows in which episodes start, as collectors of TorchRL bring them."""
    state = (BATCH, STEPS, 1, HIDDEN)
    is_init = torch.rand(BATCH, STEPS, 1) < 0.05
    return {
        "observation": torch.randn(BATCH, STEPS, OBSERVED),
        "is_init": is_init,
        "recurrent_state_h": torch.zeros(state),
        "recurrent_state_c": torch.zeros(state),
        "action": torch.randint(ACTIONS, (BATCH, STEPS)),
        "action_log_prob": -torch.rand(BATCH, STEPS),
        "advantage": torch.randn(BATCH, STEPS, 1),
        "value_target": torch.randn(BATCH, STEPS, 1),
    }


def model_of(states: str) -> twins.Model:
    return twins.Model(
        package="torchrl",
        title=f"`LSTMModule`, two heads, `ClipPPOLoss`; `states={states!r}`",
        build=ActorCritic,
        batch=batch,
        run=run,
        infer=lambda model, batch: run(model, batch)[0],
        fused={"LSTM": 1},
        fuse=functools.partial(torchrl.fuse, backend="native", states=states),
    )


@pytest.mark.parametrize("states", torchrl.STATES)
def test_results(states: str) -> None:
    twins.assert_same_results(model_of(states))
    twins.assert_undone(model_of(states), torchrl.unfuse)


def test_training() -> None:
    def train(fused: bool) -> Iterator[float]:
        model = twins.made(model_of("ends"), fused).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        data = twins.cast(twins.seeded(batch), torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            _, loss = run(model, data)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield loss.item()

    twins.assert_same_losses(train)


@pytest.mark.parametrize("states", torchrl.STATES)
def test_row(states: str, row: Callable[[twins.Model], None]) -> None:
    row(model_of(states))
