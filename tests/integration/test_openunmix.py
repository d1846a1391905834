"""Open-Unmix, which separates sources of music."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from . import packages, twins

packages.torchaudio()
openunmix = pytest.importorskip("openunmix.model")

pytestmark = pytest.mark.integration
BINS, CHANNELS, FRAMES, BATCH = 513, 2, 100, 4


def run(model: nn.Module, batch: twins.Batch) -> tuple[Tensor, Tensor]:
    estimate = model(batch["mixture"])
    return estimate, nn.functional.mse_loss(estimate, batch["source"])


def batch() -> twins.Batch:
    return {name: torch.rand(BATCH, CHANNELS, BINS, FRAMES) for name in ("mixture", "source")}


MODEL = twins.Model(
    package="openunmix",
    title=twins.title("OpenUnmix", hidden_size=256),
    build=lambda: openunmix.OpenUnmix(BINS, CHANNELS, hidden_size=256),
    batch=batch,
    run=run,
    infer=lambda model, batch: model(batch["mixture"]),
    fused={"LSTM": 1},
)


def test_results() -> None:
    twins.assert_same_results(MODEL)
    twins.assert_undone(MODEL)


def test_training() -> None:
    """With the loss and the optimizer of its training script, whose package has none."""

    def train(fused: bool) -> Iterator[float]:
        model = twins.made(MODEL, fused).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
        data = twins.cast(twins.seeded(batch), torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            _, loss = run(model, data)
            loss.backward()
            optimizer.step()
            yield loss.item()

    twins.assert_same_losses(train)


def test_row(row: Callable[[twins.Model], None]) -> None:
    row(MODEL)
