"""The tasks, the gradient by step against formulas, and the lesson itself in small."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.common import checkpoint, results
from examples.common.layers import SHARED_CELLS
from examples.common.train import History, Loss
from examples.gradients import model, tasks
from examples.gradients.__main__ import draw_seeds, main
from examples.gradients.model import VARIANTS, Network, gradient_norms, trial_loss
from examples.gradients.runs import Run, trained
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
    """Over 50 steps a GRU learns to add and a tanh RNN nothing; six layers learn it over 10 steps with skip
    connections and not without."""
    options = ["train", "--epochs", "3"]
    assert main([*options, "--lengths", "50", "--models", "gru", "tanh"]) == 0
    rows = results.read(OUT, "evaluate")[1]
    assert rows["GRU"]["adding 50"] < 0.3
    assert rows["tanh RNN"]["adding 50"] > 0.8
    assert (OUT / "gradients.png").stat().st_size > 0
    capsys.readouterr()
    assert main(["predict", "0.1 0.3* 0.9 0.2 0.4 0.8 0.5* 0.6 0.7 0.3"]) == 0
    assert capsys.readouterr().out.count("adding") == 2
    assert main([*options, "--lengths", "10", "--models", "deep", "deep-concat", "--out", "deep"]) == 0
    rows = results.read(Path("deep"), "evaluate")[1]
    assert rows["6 layers, concatenating"]["adding 10"] < 0.5
    assert rows["6 layers"]["adding 10"] > 0.8


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
    arguments = [*SMALL, "--tasks", "adding", "copy", "--models", "gru", "identity", "deep-concat"]
    assert main([*arguments, "--out", "one"]) == 0
    two_processes(main, [*arguments, "--out", "two"])
    paths = trained(Path("one"))
    # GRU and identity on two tasks, the latter on one in three ways of clipping; and the deep one
    assert len(paths) == len(trained(Path("two"))) == 7
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
        _, saved = checkpoint.load(folder / "copy-4-gru-before-none.safetensors")
        assert saved["config"]["model"] == "gru-before"
        losses[folder] = saved["history"]["losses"]
    assert losses[OUT] == losses[Path("whole")]
    assert losses[OUT] != checkpoint.load(OUT / "copy-4-gru-none.safetensors")[1]["history"]["losses"]

    forms = []

    def building(run: Run, *arguments: Any) -> tuple[tasks.Task, Network]:
        task, network = build(run, *arguments)
        forms.append(network.recurrent.layers[0].reset_after)
        return task, network

    build = Run.build
    monkeypatch.setattr(Run, "build", building)
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
    arguments = [*SMALL, "--models", "identity", "--clip", "0", "--clip-value", "0"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "diverged" in printed
    assert "inf" in printed
    assert main([*arguments, "--resume"]) == 0
    assert "diverged" not in capsys.readouterr().out


def test_ways_of_clipping() -> None:
    """The same gradient at the first step, another step; what a limit of by-value clipping is, is known."""
    assert main([*SMALL, "--models", "identity", "gru", "--clip", "0.01", "--clip-value", "0.002"]) == 0
    found = {run.clipping: path for path, run in trained(OUT).items() if run.model == "identity"}
    assert found.keys() == {"norm", "value", "none"}
    ended = {way: checkpoint.load(path) for way, path in found.items()}
    norms = {way: data["history"]["norms"] for way, (_, data) in ended.items()}
    assert norms["norm"][0] == norms["value"][0] == norms["none"][0]
    assert len({own[-1] for own in norms.values()}) == 3
    assert {way: data["config"]["limit"] for way, (_, data) in ended.items()} == {
        "norm": 0.01,
        "value": 0.002,
        "none": 0.0,
    }
    table = results.read(OUT, "clipping")[1]
    assert len(table) == 3
    assert not any("GRU" in row for row in table)


def test_several_seeds_in_one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    folders = {seed: Path(f"seed-{seed}") for seed in (3, 4)}
    for seed, folder in folders.items():
        assert main([*SMALL, "--models", "lstm", "--seed", str(seed), "--out", str(folder)]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("examples.gradients.__main__.draw", lambda found, path: drawn.append(found))
        draw_seeds(folders, OUT)
    assert [result.run.seed for result in drawn[0]] == [3, 4]
    assert draw_seeds(folders, OUT).stat().st_size > 0


def test_checkpoints_of_another_program(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(OUT / "gru.safetensors", {"model": {"a": torch.ones(1)}}, {"config": {"task": "adding"}})
    for command in (["evaluate"], ["predict", "abd"]):
        assert main(command) == 2
        assert "gru.safetensors: expected a checkpoint of this program, found one of another" in (
            capsys.readouterr().err
        )


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
