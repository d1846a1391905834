"""AWD-LSTM of fastai, whose WeightDropout puts other weights into its LSTMs by name before each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqkernels

from . import twins

text = pytest.importorskip("fastai.text.all")

pytestmark = pytest.mark.integration
VOCABULARY, BATCH, STEPS = 400, 16, 72
CONFIG = text.awd_lstm_lm_config | {"emb_sz": 100, "n_hid": 256}


def run(model: Any, batch: twins.Batch) -> tuple[list[Tensor], Tensor]:
    """Two pieces of a text, one after the other: the model keeps its state."""
    model.reset()
    outputs = [model(tokens)[0] for tokens in batch["tokens"]]
    loss = sum(
        nn.functional.cross_entropy(o.flatten(0, 1), t.flatten())
        for o, t in zip(outputs, batch["targets"], strict=True)
    )
    return outputs, loss


def batch() -> twins.Batch:
    return {n: list(torch.randint(VOCABULARY, (2, BATCH, STEPS))) for n in ("tokens", "targets")}


MODEL = twins.Model(
    package="fastai",
    title="`get_language_model(AWD_LSTM)`, `emb_sz=100, n_hid=256`",
    build=lambda: text.get_language_model(text.AWD_LSTM, VOCABULARY, config=CONFIG),
    batch=batch,
    run=run,
    infer=lambda model, batch: run(model, batch)[0],
    fused={"LSTM": 3},
    left={text.WeightDropout: "it sets the weight by name before each call, and the fused layer reads it"},
)


def test_results() -> None:
    twins.assert_same_results(MODEL)
    twins.assert_undone(MODEL)


def test_the_dropped_weights_are_those_that_run() -> None:
    """A fused layer must not go on with the weights that it had when it was made."""
    model = twins.made(MODEL, fused=True)
    dropout = model[0].rnns[0]
    assert isinstance(dropout.module, seqkernels.FusedLSTM)
    x = torch.randn(2, 5, 100)
    torch.manual_seed(1)
    output, _ = dropout(x)
    assert (dropout.module.weight_hh_l0 == 0).float().mean() > 0.1
    again, _ = dropout(x)
    assert not torch.equal(output, again)
    output.square().sum().backward()
    assert dropout.weight_hh_l0_raw.grad.any()


def test_training(tmp_path: Any) -> None:
    """fastai's learner with its callbacks, which reset the state and regularise the activations."""

    def train(fused: bool) -> list[float]:
        tokens = torch.randint(VOCABULARY, (4, 4 * 24 * BATCH // 4))
        loaders = [text.LMDataLoader(list(tokens), bs=BATCH, seq_len=24, num_workers=0) for _ in range(2)]
        dls = text.DataLoaders(*loaders, path=tmp_path)
        dls.vocab = [str(n) for n in range(VOCABULARY)]
        learner = text.language_model_learner(dls, text.AWD_LSTM, config=CONFIG, pretrained=False)
        learner.model.double()
        if fused:
            seqkernels.fuse(learner.model, backend="native")
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(1, 1e-2)
        return [*map(float, learner.recorder.losses), *learner.recorder.final_record]

    twins.assert_same_losses(train)


def test_row(row: Callable[[twins.Model], None]) -> None:
    row(MODEL)
