"""Demucs of denoiser, which cleans speech, in batches and as it comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TOLERANCES, error_of

from . import twins

demucs = pytest.importorskip("denoiser.demucs")

pytestmark = pytest.mark.integration
RATE = 16_000


def run(model: nn.Module, batch: twins.Batch) -> tuple[Tensor, Tensor]:
    """Its Solver's default loss; the spectral one calls torch.stft in a way that torch no longer allows."""
    estimate = model(batch["noisy"])
    return estimate, nn.functional.l1_loss(batch["clean"], estimate)


def batch() -> twins.Batch:
    """Two half seconds of speech's frequencies, and noise."""
    time = torch.arange(RATE // 2) / RATE
    clean = torch.stack([(2 * torch.pi * f * time).sin() for f in (150.0, 240.0)]).unsqueeze(1)
    return {"noisy": clean + 0.1 * torch.randn_like(clean), "clean": clean}


def model_of(causal: bool) -> twins.Model:
    return twins.Model(
        package="denoiser",
        title=twins.title("Demucs", hidden=16, causal=causal),
        build=lambda: demucs.Demucs(hidden=16, causal=causal, sample_rate=RATE),
        batch=batch,
        run=run,
        infer=lambda model, batch: model(batch["noisy"]),
        fused={"LSTM": 1},
    )


@pytest.mark.parametrize("causal", [True, False])
def test_results(causal: bool) -> None:
    twins.assert_same_results(model_of(causal))
    twins.assert_undone(model_of(causal))


def test_training() -> None:
    """With the loss and the optimizer of its Solver, which itself needs packages that it does not name."""

    def train(fused: bool) -> Iterator[float]:
        model = twins.made(model_of(True), fused).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, betas=(0.9, 0.999))
        data = twins.cast(twins.seeded(batch), torch.float64)
        for _ in range(3):
            _, loss = run(model, data)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()

    twins.assert_same_losses(train)


def test_streaming() -> None:
    """A frame at a time, the LSTM's state handed from call to call."""
    heard = []
    for fused in (False, True):
        streamer = demucs.DemucsStreamer(twins.made(model_of(True), fused).eval())
        noisy = twins.seeded(batch)["noisy"][0]
        with torch.no_grad():
            frames = [streamer.feed(part) for part in noisy.split(RATE // 50, 1)]
            heard.append(torch.cat([*frames, streamer.flush()], 1))
    assert heard[0].size(1) == RATE // 2
    assert heard[0].any()
    assert error_of(heard[1], heard[0]) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("causal", [True, False])
def test_row(causal: bool, row: Callable[[twins.Model], None]) -> None:
    row(model_of(causal))
