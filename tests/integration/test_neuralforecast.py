"""The recurrent models of neuralforecast, trained on the numbers of passengers that it ships."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

import seqkernels

from . import twins

neuralforecast = pytest.importorskip("neuralforecast")

from neuralforecast import models  # noqa: E402
from neuralforecast.losses.pytorch import DistributionLoss  # noqa: E402
from neuralforecast.models import dilated_rnn  # noqa: E402
from neuralforecast.tsdataset import TimeSeriesDataset, TimeSeriesLoader  # noqa: E402
from neuralforecast.utils import AirPassengersPanel  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # Lightning's, of what a model without a trainer lacks
]
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
SERIES = AirPassengersPanel[["unique_id", "ds", "y"]]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
H, INPUT = 12, 36
FEW_WINDOWS = 8  # the table of tolerances is for sums of some hundred terms; by default 128 windows are drawn
# The model, its arguments, and the layers that fuse changes.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "LSTM": ("LSTM", {}, {"LSTM": 1}),
    "LSTM-recurrent": ("LSTM", {"recurrent": True}, {"LSTM": 1}),
    "GRU": ("GRU", {}, {"GRU": 1}),
    "RNN": ("RNN", {}, {"RNN": 1}),
    "DilatedRNN": ("DilatedRNN", {}, {"LSTM": 4}),
    "DilatedRNN-GRU": ("DilatedRNN", {"cell_type": "GRU"}, {"GRU": 4}),
    "DeepAR": ("DeepAR", {}, {"LSTM": 1}),
}


def make(name: str, **more: Any) -> Any:
    kind, arguments, _ = CASES[name]
    if kind == "DeepAR":  # whose default is one object, which keeps tensors of the model that used it last
        more["loss"] = DistributionLoss("StudentT", level=[80, 90], return_params=False)
        more["trajectory_samples"] = 5  # of a forecast
    return getattr(models, kind)(h=H, input_size=INPUT, **QUIET, **arguments, **more)


def run(model: Any, batch: twins.Batch) -> tuple[list[Tensor], Tensor]:
    """Its own training step, with the windows that it draws; the output of the network is watched."""
    outputs: list[Tensor] = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output))
    loss = model.training_step(batch, 0)
    hook.remove()
    return outputs, loss


def batch() -> twins.Batch:
    dataset, *_ = TimeSeriesDataset.from_df(SERIES)
    return next(iter(TimeSeriesLoader(dataset, batch_size=32)))


def infer(model: Any, batch: twins.Batch) -> Any:
    windows = batch["temporal"][:, :1, -INPUT:].transpose(1, 2).repeat(64, 1, 1)
    return model({"insample_y": windows, **dict.fromkeys(("futr_exog", "hist_exog", "stat_exog"))})


def model_of(name: str, **more: Any) -> twins.Model:
    kind, arguments, fused = CASES[name]
    return twins.Model(
        package="neuralforecast",
        title=twins.title(kind, **arguments),
        build=lambda: make(name, **more),
        batch=batch,
        run=run,
        infer=infer,
        fused=fused,
    )


@pytest.mark.parametrize("name", CASES)
def test_results(name: str) -> None:
    model = model_of(name, windows_batch_size=FEW_WINDOWS)
    twins.assert_same_results(model)
    twins.assert_undone(model)


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    """Its own training, then forecasts; NeuralForecast copies the models that it is given."""

    def train(fused: bool) -> list[float]:
        model = make(name, max_steps=3, precision="64-true", windows_batch_size=FEW_WINDOWS)
        if fused:
            seqkernels.fuse(model, backend="native")
        forecast = neuralforecast.NeuralForecast(models=[model], freq="ME")
        forecast.fit(SERIES)
        (trained,) = forecast.models
        assert bool(twins.changed(trained)) == fused
        losses = [loss for _, loss in trained.train_trajectories]
        return losses + forecast.predict().iloc[:, -1].tolist()

    twins.assert_same_losses(train)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [("ResLSTM", dilated_rnn.ResLSTMCell), ("AttentiveLSTM", dilated_rnn.LSTMCell)],
)
def test_cells_of_its_own_stay(cell: str, kind: type) -> None:
    twins.assert_unchanged(models.DilatedRNN(h=H, input_size=INPUT, cell_type=cell, **QUIET), kind)


@pytest.mark.parametrize("name", CASES)
def test_row(name: str, row: Callable[[twins.Model], None]) -> None:
    row(model_of(name))
