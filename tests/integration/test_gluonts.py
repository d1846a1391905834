"""DeepAR of GluonTS, trained by its estimator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import seqkernels

from . import twins

pytest.importorskip("gluonts.torch")

import lightning.pytorch
import pandas
from gluonts.dataset.common import ListDataset
from gluonts.torch import DeepAREstimator

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # Lightning's, of what a model without a trainer lacks
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
HORIZON, BATCH = 24, 32


class Losses(lightning.pytorch.Callback):  # type: ignore[misc]
    """What a trainer's steps returned."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(outputs["loss"].item())


class FusedEstimator(DeepAREstimator):  # type: ignore[misc]
    """What it trains is fused."""

    def create_lightning_module(self) -> Any:
        return seqkernels.fuse(super().create_lightning_module(), backend="native")


def estimator(kind: type = DeepAREstimator, **trainer: Any) -> Any:
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return kind(
        freq="h",
        prediction_length=HORIZON,
        batch_size=BATCH,
        num_batches_per_epoch=4,
        trainer_kwargs={"max_epochs": 1, **quiet, **trainer},
    )


def run(module: Any, batch: twins.Batch) -> tuple[list[Tensor], Tensor]:
    """Its own training step; the output of the network is watched."""
    outputs: list[Tensor] = []
    hook = module.model.rnn.register_forward_hook(lambda rnn, args, output: outputs.append(output[0]))
    loss = module.training_step(batch, 0)
    hook.remove()
    return outputs, loss


def batch() -> twins.Batch:
    """Numbers of the shapes that it says it takes."""
    shapes = estimator().create_lightning_module().inputs
    found = {
        name: torch.zeros(BATCH, *of.shape[1:], dtype=of.dtype)
        if of.dtype == torch.long
        else torch.rand(BATCH, *of.shape[1:])
        for name, of in shapes.items()
    }
    found["past_observed_values"] = torch.ones_like(found["past_observed_values"])
    return found | {
        "future_target": torch.rand(BATCH, HORIZON),
        "future_observed_values": torch.ones(BATCH, HORIZON),
    }


def infer(module: Any, batch: twins.Batch) -> Any:
    """The distributions of the next steps, from which its forecasts draw."""
    given = {name: batch[name] for name in module.inputs}
    return module.model.unroll_lagged_rnn(**given, future_target=batch["future_target"])[0]


MODEL = twins.Model(
    package="gluonts",
    title=twins.title("DeepAREstimator", freq="h", prediction_length=HORIZON),
    build=lambda: estimator().create_lightning_module(),
    batch=batch,
    run=run,
    infer=infer,
    fused={"LSTM": 1},
)


def test_results() -> None:
    twins.assert_same_results(MODEL)
    twins.assert_undone(MODEL)


def test_training(tmp_path: Path) -> None:
    """The estimator's own training, then forecasts, which draw samples step by step."""
    steps = np.arange(400)
    data = ListDataset(
        [
            {"start": pandas.Period("2024-01-01", "h"), "target": np.sin(steps / 24 * 2 * np.pi) + n}
            for n in range(4)
        ],
        freq="h",
    )

    def train(fused: bool) -> list[float]:
        np.random.seed(0)  # noqa: NPY002, which it draws windows with
        callback = Losses()
        kind = FusedEstimator if fused else DeepAREstimator
        made = estimator(kind, callbacks=[callback], precision="64-true", default_root_dir=tmp_path)
        predictor = made.train(data)
        assert bool(twins.changed(predictor.prediction_net)) == fused
        torch.manual_seed(1)
        forecasts = predictor.predict(data)
        return callback.losses + [float(value) for forecast in forecasts for value in forecast.mean]

    twins.assert_same_losses(train)


def test_row(row: Callable[[twins.Model], None]) -> None:
    row(MODEL)
