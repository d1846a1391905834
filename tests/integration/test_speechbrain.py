"""SpeechBrain: CRDNN with its RNN wrappers, and its attentional decoder, which runs Cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from . import packages, twins

packages.torchaudio()
speechbrain = pytest.importorskip("speechbrain")

from speechbrain.lobes.models.CRDNN import CRDNN  # noqa: E402
from speechbrain.nnet import RNN  # noqa: E402

pytestmark = pytest.mark.integration
FEATURES, TIME, BATCH, CLASSES, WORDS = 40, 64, 4, 30, 12
SMALL = {
    "cnn_channels": [16, 16],
    "rnn_layers": 2,
    "rnn_neurons": 128,
    "dnn_blocks": 1,
    "dnn_neurons": 64,
    "projection_dim": 64,
}


class Recognizer(nn.Module):
    """An encoder and a layer that scores classes in each frame, as recipes put them together."""

    def __init__(self, rnn: str) -> None:
        super().__init__()
        self.encoder = CRDNN(input_size=FEATURES, rnn_class=getattr(RNN, rnn), **SMALL)
        self.scores = speechbrain.nnet.linear.Linear(n_neurons=CLASSES, input_size=SMALL["dnn_neurons"])

    def forward(self, features: Tensor) -> Tensor:
        return self.scores(self.encoder(features)).log_softmax(-1)


class Decoder(nn.Module):
    """An encoder that reads sequences of different lengths, and a decoder that attends to it."""

    def __init__(self, rnn: str) -> None:
        super().__init__()
        kind = getattr(RNN, rnn.upper())
        self.encoder = kind(hidden_size=64, input_size=FEATURES, num_layers=2, bidirectional=True)
        self.decoder = RNN.AttentionalRNNDecoder(rnn, "content", 64, 32, 2, 2 * 64, FEATURES)
        self.scores = speechbrain.nnet.linear.Linear(n_neurons=CLASSES, input_size=64)

    def forward(self, features: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        encoded, _ = self.encoder(features, lengths=lengths)
        return self.scores(self.decoder(words, encoded, lengths)[0]).log_softmax(-1)


def batch() -> twins.Batch:
    return {
        "features": torch.randn(BATCH, TIME, FEATURES),
        "lengths": torch.tensor([1.0, 0.75, 0.5, 0.25]),  # of the longest, as SpeechBrain has them
        "words": torch.randn(BATCH, WORDS, FEATURES),
        "classes": torch.randint(CLASSES, (BATCH, TIME)),
    }


def run_recognizer(model: Any, batch: twins.Batch) -> tuple[Tensor, Tensor]:
    scores = model(batch["features"])
    return scores, speechbrain.nnet.losses.nll_loss(scores, batch["classes"], batch["lengths"])


def run_decoder(model: Any, batch: twins.Batch) -> tuple[Tensor, Tensor]:
    scores = model(batch["features"], batch["words"], batch["lengths"])
    targets = batch["classes"][:, :WORDS]
    return scores, speechbrain.nnet.losses.nll_loss(scores, targets, batch["lengths"])


CASES = {
    **{
        f"CRDNN-{rnn}": (rnn, f"`CRDNN(rnn_class={rnn})`", Recognizer, run_recognizer)
        for rnn in ("LSTM", "GRU", "RNN")
    },
    **{
        f"decoder-{rnn}": (rnn, f"`{rnn.upper()}`, `AttentionalRNNDecoder('{rnn}')`", Decoder, run_decoder)
        for rnn in ("lstm", "gru", "rnn")
    },
}


def model_of(name: str) -> twins.Model:
    rnn, title, kind, run = CASES[name]
    layer = rnn.upper()
    fused = {layer: 1} if kind is Recognizer else {layer: 1, f"{layer}Cell": 2}
    return twins.Model(
        package="speechbrain",
        title=title,
        build=lambda: kind(rnn),
        batch=batch,
        run=run,
        infer=lambda model, batch: run(model, batch)[0],
        fused=fused,
    )


@pytest.mark.parametrize("name", CASES)
def test_results(name: str) -> None:
    twins.assert_same_results(model_of(name))
    twins.assert_undone(model_of(name))


class Brain(speechbrain.Brain):  # type: ignore[misc]
    """The loss of this file in SpeechBrain's training."""

    run: Any = None

    def compute_forward(self, batch: twins.Batch, stage: Any) -> Any:
        return self.run(self.modules["model"], batch)

    def compute_objectives(self, predictions: Any, batch: twins.Batch, stage: Any) -> Tensor:
        return predictions[1]


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    """SpeechBrain's own steps, which clip gradients."""
    _, _, _, run = CASES[name]

    def train(fused: bool) -> list[float]:
        with twins.default_dtype(torch.float64):
            model = twins.made(model_of(name), fused).double()
            brain = Brain(
                {"model": model}, lambda p: torch.optim.Adadelta(p, lr=1.0), run_opts={"device": "cpu"}
            )
            brain.run = run
            brain.on_fit_start()
            brain.modules.train()
            data = twins.cast(twins.seeded(batch), torch.float64)
            return [brain.fit_batch(data).item() for _ in range(3)]

    twins.assert_same_losses(train)


@pytest.mark.parametrize("rnn", ["LiGRU", "SLiGRU", "QuasiRNN"])
def test_cells_of_its_own_stay(rnn: str) -> None:
    kind = getattr(RNN, rnn)
    module = kind(hidden_size=8, input_shape=(BATCH, TIME, FEATURES))
    twins.assert_unchanged(nn.Sequential(module), kind)


@pytest.mark.parametrize("name", CASES)
def test_row(name: str, row: Callable[[twins.Model], None]) -> None:
    row(model_of(name))
