"""The memory task: the environment, training that resumes, and the lesson itself in small."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.common import checkpoint
from examples.memory_task import __main__ as program
from examples.memory_task import picture
from examples.memory_task.__main__ import main

OUT = Path("out/memory_task")
SMALL = ["--hidden", "8", "--envs", "2", "--steps", "16", "--batch", "16", "--passes", "1", "--delay", "3"]


gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("sb3_contrib")

from gymnasium.utils.env_checker import check_env  # noqa: E402

from examples.memory_task import environment, learn  # noqa: E402
from examples.memory_task.environment import Recall, observations  # noqa: E402


def small(**changes: Any) -> learn.Recipe:
    sizes = {"cues": 3, "delay": 4, "hidden": 8, "envs": 2, "steps": 16, "batch": 16, "passes": 1}
    return learn.Recipe(**{**sizes, "rate": 3e-3, "seed": 0, **changes})


# ---------------------------------------------------------------- environment


def test_docstrings() -> None:
    result = doctest.testmod(environment)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice that it gives about any environment
def test_is_an_environment() -> None:
    check_env(Recall(3, 4), skip_render_check=True)


@pytest.mark.parametrize("delay", [1, 6, 7])
def test_episodes(delay: int) -> None:
    """The cue at the start, then nothing, then the sign; a reward at the end for the cue alone."""
    env, delays, cues = Recall(3, delay), set(), set()
    for seed in range(60):
        seen, rewards, done = [env.reset(seed=seed)[0]], [], False
        answer = seed % 3
        while not done:
            observation, reward, done, truncated, _ = env.step(answer)
            assert not truncated
            rewards.append(reward)
            seen.append(observation)
        cue = int(seen[0].argmax())
        assert np.array_equal(np.stack(seen[:-1]), observations(cue, len(rewards) - 2, 3))
        assert rewards == [0.0] * (len(rewards) - 1) + [float(answer == cue)]
        delays.add(len(rewards) - 2)
        cues.add(cue)
    assert delays == set(range(delay // 2, delay + 1))
    assert cues == {0, 1, 2}


# ---------------------------------------------------------------- training


def trained(backend: str, out: Path = OUT) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    tensors, data = checkpoint.load(out / f"{backend}.safetensors")
    return tensors["model"], data["history"]


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing one takes longer than all the rest; one test does."""
    if "both_ways" not in request.node.name:
        monkeypatch.setattr(picture, "draw", lambda path, *args: path)


def test_both_ways_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--quick"]) == 0
    assert (OUT / "memory_task.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "chance" in printed
    assert printed.count("round 2/2") == 2
    (theirs, one), (fused, other) = trained("torch"), trained("fused")
    assert theirs.keys() == fused.keys()
    assert all(torch.allclose(theirs[key], fused[key], atol=1e-3) for key in theirs)
    assert [r["right"] for r in one] == [r["right"] for r in other]
    assert main(["evaluate"]) == 0
    assert main(["predict", "2", "0", "--delay", "5"]) == 0
    assert "sb3-contrib, fused  cue 2: " in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_resume_equals_uninterrupted(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", *SMALL, "--backend", backend]
    assert main([*options, "--rounds", "3", "--out", "whole"]) == 0
    assert main([*options, "--rounds", "1", "--out", "part"]) == 0
    capsys.readouterr()
    assert main([*options, "--rounds", "3", "--out", "part", "--resume"]) == 0
    assert "round 1/3" not in capsys.readouterr().out
    (whole, one), (part, other) = trained(backend, Path("whole")), trained(backend, Path("part"))
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    assert [r["right"] for r in one] == [r["right"] for r in other]
    assert not torch.equal(whole["action_net.weight"], learn.build(small(), backend).policy.action_net.weight)


def test_resume_after_one_of_the_two() -> None:
    """The other one starts then."""
    assert main(["train", *SMALL, "--rounds", "1", "--backend", "torch"]) == 0
    assert main(["train", *SMALL, "--rounds", "2", "--resume"]) == 0
    assert [len(trained(backend)[1]) for backend in program.BACKENDS] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["train", "--quick", "--resume", "--out", "nowhere"],
            "expected checkpoints to go on from, found none",
        ),
        (["train", *SMALL, "--resume", "--cues", "5"], "Recipe(cues=5"),
        (["evaluate", "--out", "nowhere"], "run `train` first"),
        (["predict", "1", "--out", "nowhere"], "run `train` first"),
        (["predict", "1", "4"], "expected one of 0 to 3, found 4"),
    ],
)
def test_errors_are_one_line(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "nowhere" not in arguments:
        assert main(["train", *SMALL, "--rounds", "1", "--backend", "torch"]) == 0
        capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert printed.count("\n") == 1


def test_trainings_of_different_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--rounds", "1", "--backend", "torch"]) == 0
    capsys.readouterr()
    assert main(["train", *SMALL, "--rounds", "1", "--backend", "fused", "--cues", "5"]) == 2
    assert "expected trainings that are alike" in capsys.readouterr().err


def test_checkpoint_of_another_program(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(OUT / "torch.safetensors", {}, {"config": {}, "history": {}})
    assert main(["evaluate"]) == 2
    assert "expected a checkpoint of this program, found one of another" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_answers_by_single_steps(backend: str) -> None:
    """Whole sequences give what the policy says when it is shown one step after another."""
    model = learn.build(small(), backend)
    policy: Any = model.policy
    found = learn.answers(model, 3, [2, 0])
    assert found.shape == (2, 3)
    for cue, probabilities in zip([2, 0], found, strict=True):
        state, start = (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)), torch.ones(1)
        for seen in torch.as_tensor(observations(cue, 3, 3)):
            distribution, state = policy.get_distribution(seen[None], state, start)
            start = torch.zeros(1)
        assert torch.allclose(distribution.distribution.probs[0], probabilities, atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_learns_to_remember(backend: str, tmp_path: Path) -> None:
    recipe = small(cues=2, delay=4, hidden=32, envs=8, steps=64, batch=128, passes=10)
    model = learn.build(recipe, backend)
    history = learn.train(model, recipe, 15, tmp_path / "model.safetensors")
    assert history[0]["right"] < 0.65  # chance is 1/2
    assert history[-1]["right"] > 0.9
    assert learn.answers(model, 4, [0, 1]).diagonal().min() > 0.8
