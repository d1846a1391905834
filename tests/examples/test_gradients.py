"""The tasks, the gradient by step against formulas, and the lesson itself in small."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.common import checkpoint
from examples.common.layers import SHARED_CELLS
from examples.common.train import History, Loss
from examples.gradients import model, tasks
from examples.gradients.__main__ import build, main, measure, trained
from examples.gradients.model import VARIANTS, Network, gradient_norms, trial_loss
from examples.gradients.tasks import Adding, Copy, Stream, Trials
from tests.conftest import assert_close

OUT = Path("out/gradients")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- tasks


def test_docstrings() -> None:
    assert doctest.testmod(tasks).failed == doctest.testmod(model).failed == 0


@pytest.mark.parametrize("length", [2, 9])
def test_adding(length: int) -> None:
    inputs, targets = Adding(length).draw(50, generator())
    numbers, marks = inputs.unbind(2)
    assert inputs.shape == (length, 50, 2)
    for half in (marks[: length // 2], marks[length // 2 :]):
        assert torch.equal(half.sum(0), torch.ones(50))
    assert_close(targets, (numbers * marks).sum(0))


def test_copy() -> None:
    inputs, targets = Copy(7).draw(50, generator())
    ids = inputs.argmax(2)
    assert torch.equal(ids[:3], targets)
    assert (ids[3:9] == 4).all()  # six steps of nothing, then the sign, seven after the last symbol
    assert (ids[9] == 5).all()
    assert (ids[10:] == 4).all()
    assert len(ids) == 13


def test_chance_is_the_loss_without_memory() -> None:
    for task, answer in ((Adding(5), torch.ones(1, 1)), (Copy(5), torch.zeros(3, 4))):
        trials = task.draw(20_000, generator())
        answers = answer[:, None].expand(-1, 20_000, -1)
        assert task.loss(answers, trials.targets).mean().item() == pytest.approx(task.chance, rel=0.03)


def test_losses_by_hand() -> None:
    assert_close(
        Adding(5).loss(torch.tensor([[[1.0], [0.5]]]), torch.tensor([0.5, 0.0])), torch.tensor([0.25, 0.25])
    )
    answers = torch.zeros(3, 1, 4)
    answers[0, 0, 2] = torch.tensor(3.0).log()  # p = 3/6 of the first symbol, 1/4 of the others
    expected = torch.tensor([2.0, 4.0, 4.0]).log().mean()
    assert_close(Copy(5).loss(answers, torch.tensor([[2], [0], [1]])), expected[None])


def test_trials_written_by_hand() -> None:
    trial = Adding(4).read("0.3 0.5* 1 .25*")
    assert trial is not None
    assert_close(trial.inputs[:, 0], torch.tensor([[0.3, 0.0], [0.5, 1.0], [1.0, 0.0], [0.25, 1.0]]))
    assert_close(trial.targets, torch.tensor([0.75]))
    assert [Adding(4).read(text) for text in ("0.3 0.5*", "2* 0.1*", "abd", "")] == [None] * 4
    repeated = Copy(4).read("abd")
    assert repeated is not None
    assert repeated.targets.flatten().tolist() == [0, 1, 3]
    assert [Copy(4).read(text) for text in ("ab", "abx", "")] == [None] * 3


def test_epochs_are_new_and_repeatable() -> None:
    stream = Stream(Adding(6), 4, 3, seed=1)
    first, again, second = stream(0), stream(0), stream(1)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].inputs, second[0].inputs)
    assert not torch.equal(first[0].inputs, first[1].inputs)


# ---------------------------------------------------------------- gradients


def test_gradient_of_one_tanh_unit() -> None:
    """dL/dh_t = dL/dh_T times the product over later steps of w (1 - h^2)."""
    network = Network(VARIANTS["tanh"], Adding(5), 1).double()
    trials = Trials(*(t.double() for t in Adding(5).draw(1, generator())))
    layer = network.recurrent.layers[0]
    output, _ = layer(trials.inputs)
    slope = 2 * (network.head(output[-1]) - trials.targets) * network.head.weight[0, 0]
    factors = layer.weight_hh_l0[0, 0] * (1 - output[1:, 0, 0].square())
    expected = slope.abs().item() * factors.flip(0).cumprod(0).flip(0).abs()
    assert_close(gradient_norms(network, trials), expected)


@pytest.mark.parametrize("variant", ["gru", "gru-before", "lstm", "deep", "deep-residual", "deep-concat"])
@pytest.mark.parametrize("task", [Adding(4), Copy(2)], ids=["adding", "copy"])
def test_gradient_by_differences(variant: str, task: tasks.Task) -> None:
    """The loss changes with the state after the first step as its gradient says."""
    network = Network(VARIANTS[variant], task, 3).double()
    inputs, targets = task.draw(2, generator())
    inputs, targets = inputs.double(), targets if targets.dtype == torch.int64 else targets.double()
    _, state = network.recurrent(inputs[:1])
    states = (state,) if isinstance(state, Tensor) else state

    def loss(*states: Tensor) -> Tensor:
        output, _ = network.recurrent(inputs[1:], states if variant == "lstm" else states[0])
        return task.loss(network.head(output[-task.steps :]), targets).mean()

    squares = 0.0
    for n, own in enumerate(states):
        for index in range(own.numel()):
            step = torch.zeros_like(own)
            step.view(-1)[index] = 1e-6
            up, down = (loss(*states[:n], own + sign * step, *states[n + 1 :]).item() for sign in (1, -1))
            squares += ((up - down) / 2e-6) ** 2
    assert gradient_norms(network, Trials(inputs, targets))[0].item() == pytest.approx(squares**0.5, rel=1e-5)


def test_vanishing_before_training() -> None:
    """Over 60 steps the gradient of a tanh RNN is lost; that of an identity RNN is not."""
    task = Adding(60)
    trials = task.draw(20, generator())
    ratios = {}
    for variant in ("tanh", "identity"):
        norms = gradient_norms(Network(VARIANTS[variant], task, 32), trials)
        ratios[variant] = (norms[0] / norms[-1]).item()
    assert ratios["tanh"] < 1e-6
    assert 0.1 < ratios["identity"] < 10


@pytest.mark.parametrize("variant", [name for name, own in VARIANTS.items() if own.cell in SHARED_CELLS])
def test_backends_give_the_same(variant: str) -> None:
    task = Copy(6)
    fused, plain = (Network(VARIANTS[variant], task, 8, backend) for backend in ("fused", "torch"))
    plain.load_state_dict(fused.state_dict())
    assert isinstance(plain.recurrent.layers[0], nn.RNNBase)
    assert type(plain.recurrent.layers[0]) is not type(fused.recurrent.layers[0])
    trials = task.draw(4, generator())
    assert_close(trial_loss(fused, trials).sum, trial_loss(plain, trials).sum)
    assert_close(gradient_norms(fused, trials).float(), gradient_norms(plain, trials).float())


def test_reset_before_is_another_network() -> None:
    """With the parameters of a GRU, its answers are those of plain torch, and not the GRU's."""
    task = Copy(6)
    gru, before = (Network(VARIANTS[name], task, 8) for name in ("gru", "gru-before"))
    before.load_state_dict(gru.state_dict())
    inputs = task.draw(4, generator()).inputs
    answers = before(inputs)
    assert (answers - gru(inputs)).abs().max() > 1e-4
    before.recurrent.layers[0].backend = "reference"
    assert_close(answers, before(inputs))


# ---------------------------------------------------------------- the program


@pytest.mark.slow
def test_the_lesson(capsys: pytest.CaptureFixture[str]) -> None:
    """Over 10 steps a GRU and the identity learn to add, a tanh RNN hardly anything; with 6 layers it learns
    with skip connections and not without."""
    models = ["tanh", "identity", "gru", "deep", "deep-concat"]
    assert main(["train", "--tasks", "adding", "--lengths", "10", "--models", *models]) == 0
    loss = {r.model: r.loss for r in (measure(path, torch.device("cpu")) for path in trained(OUT)) if r.clip}
    assert min(loss["tanh"], loss["deep"]) > 0.7
    assert max(loss["identity"], loss["gru"], loss["deep-concat"]) < 0.15
    assert (OUT / "gradients.png").stat().st_size > 0
    capsys.readouterr()
    assert main(["predict", "0.1 0.3* 0.9 0.2 0.4 0.8 0.5* 0.6 0.7 0.3"]) == 0
    assert capsys.readouterr().out.count("adding") == 8  # 5, 3 of them also without clipping


SMALL = ["train", "--steps", "6", "--epochs", "2", "--lengths", "4", "--hidden", "8", "--batch", "6"]


def test_resume_goes_on_and_leaves_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--tasks", "copy", "--models", "lstm"]
    assert main([*arguments, "--out", "whole"]) == 0
    assert main([*arguments, "--epochs", "1"]) == 0
    assert main([*arguments, "--resume"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    assert "epoch" not in capsys.readouterr().out
    for path in trained(OUT):
        (whole, data), (part, resumed) = (checkpoint.load(f) for f in (Path("whole", path.name), path))
        assert data["history"]["losses"] == resumed["history"]["losses"]
        assert all(torch.equal(whole["model"][name], part["model"][name]) for name in whole["model"])


def test_two_processes_train_like_one(two_processes: Callable[..., None]) -> None:
    arguments = [*SMALL, "--models", "gru", "deep-concat"]
    assert main([*arguments, "--out", "one"]) == 0
    two_processes(main, [*arguments, "--out", "two"])
    paths = trained(Path("one"))
    assert (
        len(paths) == len(trained(Path("two"))) == 4
    )  # GRU: two tasks, one also without clipping; and the deep one
    for path in paths:
        one, two = (checkpoint.load(Path(folder, path.name))[1]["history"] for folder in ("one", "two"))
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


def test_reset_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is trained when asked for, its checkpoint knows it, and --resume goes on with the same network."""
    arguments = [*SMALL, "--tasks", "copy", "--models", "gru", "gru-before", "--clip", "0"]
    assert main([*arguments, "--out", "whole"]) == 0
    assert main([*arguments, "--epochs", "1"]) == 0
    assert main([*arguments, "--resume"]) == 0
    capsys.readouterr()
    losses = {}
    for folder in (Path("whole"), OUT):
        _, saved = checkpoint.load(folder / "copy-4-gru-before-0.0.safetensors")
        assert saved["config"]["model"] == "gru-before"
        losses[folder] = saved["history"]["losses"]
    assert losses[OUT] == losses[Path("whole")]
    assert losses[OUT] != checkpoint.load(OUT / "copy-4-gru-0.0.safetensors")[1]["history"]["losses"]

    forms = []

    def building(*arguments: Any) -> tuple[tasks.Task, Network]:
        task, network = build(*arguments)
        forms.append(network.recurrent.layers[0].reset_after)
        return task, network

    monkeypatch.setattr("examples.gradients.__main__.build", building)
    assert main(["predict", "abd"]) == 0
    assert "GRU, reset before" in capsys.readouterr().out
    assert sorted(forms) == [False, True]


def test_default_networks_train_on_both_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what torch.nn does not have is trained only when it is asked for."""
    trained_on = []

    def train(options: Any) -> History:
        """Train."""
        trained_on.append((options.backend, options.models))
        return History(epochs=[{"loss/chance": 1.0}])

    monkeypatch.setattr("examples.gradients.__main__.train", train)
    assert main(["train", "--backend", "both"]) == 0
    models = [name for name in VARIANTS if name != "gru-before"]
    assert trained_on == [("torch", models), ("fused", models)]


def test_divergence_is_a_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("examples.gradients.__main__.trial_loss", exploding)
    arguments = [*SMALL, "--tasks", "adding", "--models", "identity", "--clip", "0"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "diverged" in printed
    assert "inf" in printed


def exploding(network: nn.Module, trials: Trials) -> Loss:
    made = trial_loss(network, trials)
    return made._replace(sum=made.sum * float("inf")) if network.training else made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--lengths", "1"], "--lengths: expected 2 or more, found 1"),
        (
            ["train", "--models", "gru-before", "--backend", "torch"],
            "which torch.nn does not have, found torch",
        ),
        (["train", "--models", "tanh", "gru-before", "--backend", "both"], "expected fused for gru-before"),
        (["evaluate"], "run `train` first"),
        (["predict", "abd"], "run `train` first"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_wrong_trial(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--tasks", "copy", "--models", "gru"]) == 0
    assert main(["predict", "0.1* 0.2*"]) == 2
    assert "found '0.1* 0.2*'" in capsys.readouterr().err
    assert main(["predict", "abd"]) == 0
