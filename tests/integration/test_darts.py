"""RNNModel and BlockRNNModel of darts, which make their networks when they first see a series."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import seqkernels

from . import twins

pytest.importorskip("darts")

import pytorch_lightning
from darts import TimeSeries, models
from darts.utils.data.torch_datasets.utils import TorchTrainingBatch

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # Lightning's, of what a model without a trainer lacks
]
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
PERIOD, INPUT, HORIZON, BATCH = 12, 36, 12, 32
BLOCK = {"output_chunk_length": HORIZON}
STEPWISE = {"training_length": INPUT + HORIZON}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "RNNModel-RNN": ("RNNModel", {"model": "RNN"}),
    "RNNModel-LSTM": ("RNNModel", {"model": "LSTM", "n_rnn_layers": 2, "dropout": 0.1}),
    "RNNModel-GRU": ("RNNModel", {"model": "GRU"}),
    "BlockRNNModel-LSTM": ("BlockRNNModel", {"model": "LSTM"}),
    "BlockRNNModel-GRU": ("BlockRNNModel", {"model": "GRU", "n_rnn_layers": 2}),
}


class Losses(pytorch_lightning.Callback):  # type: ignore[misc]
    """What a trainer's steps returned, and the batch that the last one read."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batch: Any = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(outputs["loss"].item())
        self.batch = batch


def series(dtype: type = np.float64) -> Any:
    """A season and a trend; darts computes in its dtype."""
    t = np.arange(PERIOD * 12)
    return TimeSeries.from_values((np.sin(2 * np.pi * t / PERIOD) + t / 100).astype(dtype))


def make(name: str, callback: Any) -> Any:
    kind, arguments = CASES[name]
    trainer = {
        "accelerator": "cpu",
        "callbacks": [callback],
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    lengths = STEPWISE if kind == "RNNModel" else BLOCK
    return getattr(models, kind)(
        input_chunk_length=INPUT,
        hidden_dim=64,
        batch_size=BATCH,
        n_epochs=1,
        random_state=0,
        pl_trainer_kwargs=trainer,
        **lengths,
        **arguments,
    )


@functools.cache
def trained(name: str) -> tuple[nn.Module, Any]:
    """The network after one epoch, and a batch of it."""
    callback = Losses()
    model = make(name, callback).fit(series(np.float32))
    return model.model, callback.batch


def run(module: Any, batch: twins.Batch) -> tuple[list[Tensor], Tensor]:
    """Its own training step; the output of the network is watched."""
    outputs: list[Tensor] = []
    hook = module.rnn.register_forward_hook(lambda rnn, args, output: outputs.append(output[0]))
    loss = module.training_step(TorchTrainingBatch(**batch), 0)
    hook.remove()
    return outputs, loss


def model_of(name: str) -> twins.Model:
    kind, arguments = CASES[name]
    return twins.Model(
        package="darts",
        title=twins.title(kind, **arguments, hidden_dim=64),
        build=lambda: copy.deepcopy(trained(name)[0]).train(),
        batch=lambda: {n: getattr(trained(name)[1], n) for n in ("past_target", "future_target")},
        run=run,
        infer=lambda module, batch: module(TorchTrainingBatch(**batch).to_module_input()),
        fused={arguments["model"]: 1},
    )


@pytest.mark.parametrize("name", CASES)
def test_results(name: str) -> None:
    twins.assert_same_results(model_of(name))
    twins.assert_undone(model_of(name))


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    """An epoch, which makes the network; then fuse, another epoch, and forecasts."""

    def train(fused: bool) -> list[float]:
        callback = Losses()
        model = make(name, callback).fit(series())
        if fused:
            seqkernels.fuse(model.model, backend="native")
        model.fit(series(), epochs=1)
        assert bool(twins.changed(model.model)) == fused
        return callback.losses + model.predict(HORIZON).values()[:, 0].tolist()

    twins.assert_same_losses(train)


@pytest.mark.parametrize("name", CASES)
def test_row(name: str, row: Callable[[twins.Model], None]) -> None:
    row(model_of(name))
