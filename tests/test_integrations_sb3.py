"""RecurrentPPO of sb3-contrib, the real one, fused and as it is."""

from __future__ import annotations

import copy
import doctest
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import seqkernels
from seqkernels.integrations import _package, sb3
from tests.conftest import assert_close

sb3_contrib = pytest.importorskip("sb3_contrib")
gymnasium = pytest.importorskip("gymnasium")

from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy  # noqa: E402
from sb3_contrib.common.recurrent.type_aliases import RNNStates  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

METHOD = "_process_sequence"
BOX = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
IMAGE = gymnasium.spaces.Box(0, 255, (1, 36, 36), np.uint8)
BOTH = gymnasium.spaces.Dict({"a": BOX, "b": gymnasium.spaces.Box(-1, 1, (2,), np.float32)})


class Noise(gymnasium.Env):  # type: ignore[misc, type-arg]
    """Random observations, in episodes of 1 to 5 steps; each action is rewarded by what was seen."""

    def __init__(self, observation_space: Any = BOX, action_space: Any = None) -> None:
        self.observation_space = observation_space
        self.action_space = action_space or gymnasium.spaces.Discrete(2)

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(5))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._observe(), float(np.sum(action)), self.left < 0, False, {}


# The arguments of a policy, by what is special about it.
POLICIES: dict[str, dict[str, Any]] = {
    "mlp": {},
    "layers": {"n_lstm_layers": 2},
    "no-bias": {"lstm_kwargs": {"bias": False}},
    "shared-lstm": {"shared_lstm": True, "enable_critic_lstm": False},
    "no-critic-lstm": {"enable_critic_lstm": False},
    "two-extractors": {"share_features_extractor": False},
    "continuous": {"action_space": gymnasium.spaces.Box(-1, 1, (2,), np.float32)},
    "cnn": {"observation_space": IMAGE, "features_extractor_kwargs": {"features_dim": 8}},
    "multi-input": {"observation_space": BOTH},
}
CLASSES = {"cnn": "CnnLstmPolicy", "multi-input": "MultiInputLstmPolicy"}


def make(kind: str = "mlp", **options: Any) -> Any:
    """A RecurrentPPO with one of POLICIES, small."""
    arguments = {"lstm_hidden_size": 5, "net_arch": [4], **POLICIES.get(kind, {})}
    spaces = [arguments.pop(name, None) for name in ("observation_space", "action_space")]
    env = make_vec_env(lambda: Noise(spaces[0] or BOX, spaces[1]), 3, seed=0)
    options = {"n_steps": 16, "batch_size": 24, "n_epochs": 2, "seed": 0, "device": "cpu"} | options
    return sb3_contrib.RecurrentPPO(
        CLASSES.get(kind, "MlpLstmPolicy"), env, policy_kwargs=arguments, **options
    )


def rollout(policy: Any, steps: int = 7, sequences: int = 3) -> tuple[Any, Tensor, RNNStates, Tensor]:
    """Random arguments of `evaluate_actions`; episodes start at first steps and inside."""
    rows = steps * sequences
    policy.observation_space.seed(1), policy.action_space.seed(1)
    seen = [policy.observation_space.sample() for _ in range(rows)]
    if isinstance(seen[0], dict):
        observations: Any = {k: torch.as_tensor(np.stack([o[k] for o in seen])) for k in seen[0]}
    else:
        observations = torch.as_tensor(np.stack(seen))
    actions = torch.as_tensor(np.stack([policy.action_space.sample() for _ in range(rows)]))
    lstm = policy.lstm_actor
    states = [torch.randn(lstm.num_layers, sequences, lstm.hidden_size) for _ in range(4)]
    starts = (torch.rand(sequences, steps) < 0.3).float()
    starts[0, 0], starts[1, 0], starts[2, steps // 2] = 1, 0, 1
    return observations, actions, RNNStates(tuple(states[:2]), tuple(states[2:])), starts.flatten()


def losses_and_gradients(policy: Any, arguments: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    policy.zero_grad()
    results = policy.evaluate_actions(*arguments)
    sum(result.square().mean() for result in results).backward()
    return list(results), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("kind", POLICIES)
def test_losses_and_gradients(kind: str) -> None:
    policy = make(kind).policy
    arguments = rollout(policy)
    expected = losses_and_gradients(policy, arguments)
    grads = {name: grad.clone() for name, grad in expected[1].items()}
    assert any(name.startswith("lstm_actor") for name in grads)
    sb3.fuse(policy, backend="native")
    found, own_grads = losses_and_gradients(policy, arguments)
    assert_close(found, expected[0])
    assert_close(own_grads, grads)


@given(
    steps=st.integers(1, 6),
    sequences=st.integers(1, 4),
    layers=st.integers(1, 2),
    data=st.data(),
)
def test_sequences(steps: int, sequences: int, layers: int, data: st.DataObject) -> None:
    """Outputs, states and gradients, for any starts."""
    flags = st.lists(st.booleans(), min_size=steps * sequences, max_size=steps * sequences)
    starts = torch.tensor(data.draw(flags), dtype=torch.float64)
    lstm = seqkernels.FusedLSTM(2, 3, layers).double()
    kind = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(steps * sequences, 2, **kind)
    states = tuple(torch.randn(layers, sequences, 3, **kind) for _ in range(2))
    results = []
    for run in (RecurrentActorCriticPolicy._process_sequence, sb3._run_sequences):
        output, final = run(x, states, starts, lstm)
        loss = sum((n + 1) * t.square().sum() for n, t in enumerate((output, *final)))
        inputs = [x, *states, *lstm.parameters()]
        results.append([output, *final, *torch.autograd.grad(loss, inputs, allow_unused=True)])
    theirs, ours = results
    for expected, found in zip(theirs, ours, strict=True):
        # What nothing depends on has no gradient in one of them and zeros in the other.
        assert_close(*(torch.zeros(1) if t is None or not t.any() else t for t in (found, expected)))


@pytest.mark.parametrize("kind", ["mlp", "shared-lstm", "no-critic-lstm", "multi-input"])
def test_training(kind: str) -> None:
    """The same rollout gives the same losses and parameters."""
    model, fused = make(kind, ent_coef=0.1), sb3.fuse(make(kind, ent_coef=0.1), "native")
    model.learn(48)
    fused.learn(48)  # so that it has a logger, and its own rollout was collected on kernels
    fused.set_parameters(
        copy.deepcopy(model.get_parameters())
    )  # an optimizer would share its state's tensors
    fused.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    assert model.rollout_buffer.episode_starts[1:].any()
    for m in (model, fused):
        np.random.seed(1)  # noqa: NPY002, which sb3-contrib draws batches with
        m.train()
    for name in ("loss", "value_loss", "policy_gradient_loss", "entropy_loss"):
        expected = model.logger.name_to_value[f"train/{name}"]
        assert fused.logger.name_to_value[f"train/{name}"] == pytest.approx(expected, rel=1e-4), name
    for (name, p), q in zip(model.policy.named_parameters(), fused.policy.parameters(), strict=True):
        assert torch.allclose(q, p, atol=1e-4), name


@pytest.mark.parametrize("kind", ["mlp", "shared-lstm", "no-critic-lstm", "cnn", "multi-input"])
def test_steps_and_predictions(kind: str) -> None:
    """What collecting and `predict` compute, step by step, at episodes' starts and inside."""
    model = make(kind)
    fused = sb3.fuse(copy.deepcopy(model.policy), "native")
    observations, _, states, _ = rollout(model.policy, steps=1)
    for starts in (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), torch.ones(3)):
        results = []
        for policy in (model.policy, fused):
            with torch.no_grad():
                action, value, log_prob, new = policy(observations, states, starts, deterministic=True)
                last = policy.predict_values(observations, states.vf, starts)
            results.append([action, value, log_prob, new.pi[0], new.pi[1], new.vf[0], new.vf[1], last])
        assert_close(results[1], results[0], torch.float32)
    is_dict = isinstance(observations, dict)
    arrays = {k: v.numpy() for k, v in observations.items()} if is_dict else observations.numpy()
    state = tuple(s.numpy() for s in states.pi)
    (action, expected), (own_action, found) = (
        policy.predict(arrays, state, np.array([True, False, False]), True)
        for policy in (model.policy, fused)
    )
    assert (action == own_action).all()
    assert_close([torch.as_tensor(s) for s in found], [torch.as_tensor(s) for s in expected])


def calls_of(policy: Any) -> list[int]:
    """The steps of each call of the actor's LSTM in `evaluate_actions`."""
    steps: list[int] = []
    hook = policy.lstm_actor.register_forward_pre_hook(lambda module, args: steps.append(len(args[0])))
    policy.evaluate_actions(*rollout(policy))
    hook.remove()
    return steps


def test_whole_sequences_in_one_call() -> None:
    policy = make().policy
    assert calls_of(policy) == [1] * 7
    assert calls_of(sb3.fuse(policy)) == [7]
    assert calls_of(sb3.unfuse(policy)) == [1] * 7


def test_learning_runs_on_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting and training, with the function that loops over time out of reach."""

    def loop(*args: Any) -> None:
        raise AssertionError("sb3-contrib's own function ran")

    model = sb3.fuse(make(), "native")
    monkeypatch.setattr(RecurrentActorCriticPolicy, METHOD, staticmethod(loop))
    before = [p.clone() for p in model.policy.lstm_actor.parameters()]
    model.learn(48)
    assert not all(map(torch.equal, before, model.policy.lstm_actor.parameters()))


# ---------------------------------------------------------------- what stays


def test_objects_stay() -> None:
    model = make()
    policy = model.policy
    parameters, keys = list(policy.parameters()), list(policy.state_dict())
    assert sb3.fuse(model) is model
    assert model.policy is policy
    assert all(a is b for a, b in zip(policy.parameters(), parameters, strict=True))
    assert list(policy.state_dict()) == keys
    held = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in parameters}
    assert type(policy.lstm_actor) is type(policy.lstm_critic) is seqkernels.FusedLSTM


def test_undo_restores() -> None:
    model = make()
    arguments = rollout(model.policy)
    attributes = {m: dict(vars(m)) for m in model.policy.modules()}
    expected, grads = losses_and_gradients(model.policy, arguments)
    grads = {name: grad.clone() for name, grad in grads.items()}
    assert sb3.unfuse(sb3.fuse(sb3.fuse(model))) is model
    assert sb3.unfuse(model) is model  # again, which does nothing
    assert METHOD not in vars(model.policy)
    assert type(model.policy.lstm_actor) is type(model.policy.lstm_critic) is nn.LSTM
    for module, before in attributes.items():
        assert vars(module).keys() == before.keys()
    found, own_grads = losses_and_gradients(model.policy, arguments)
    assert all(map(torch.equal, found, expected))
    assert all(torch.equal(own_grads[name], grads[name]) for name in grads)


def test_unfuse_leaves_others_alone() -> None:
    """A policy that this adapter has not fused, though seqkernels.fuse has."""
    policy = seqkernels.fuse(make().policy)
    sb3.unfuse(policy)
    assert type(policy.lstm_actor) is seqkernels.FusedLSTM


def test_unfused_by_seqkernels_still_runs() -> None:
    """As sb3-contrib has it, to the bit."""
    policy = make().policy
    arguments = rollout(policy)
    expected = policy.evaluate_actions(*arguments)
    seqkernels.unfuse(sb3.fuse(policy))
    assert type(policy.lstm_actor) is nn.LSTM
    assert all(map(torch.equal, policy.evaluate_actions(*arguments), expected))
    sb3.unfuse(policy)
    assert METHOD not in vars(policy)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_copies_are_fused(clone: Callable[[Any], Any]) -> None:
    policy = sb3.fuse(make().policy, "native")
    other = clone(policy)
    arguments = rollout(policy)
    assert calls_of(other) == [7]
    assert all(map(torch.equal, other.evaluate_actions(*arguments), policy.evaluate_actions(*arguments)))
    sb3.unfuse(other)
    assert type(policy.lstm_actor) is seqkernels.FusedLSTM


# ---------------------------------------------------------------- checkpoints


def answers(model: Any) -> Any:
    observation = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    return model.predict(observation, deterministic=True)[1][0]


def test_saved_while_fused(tmp_path: Path) -> None:
    """What is saved has nothing of ours in it, and is loaded where seqkernels cannot be imported."""
    model = sb3.fuse(make())
    model.learn(48)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pt")
    np.save(tmp_path / "expected.npy", answers(model))
    code = """
import sys
sys.modules["seqkernels"] = None
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
observation = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
expected = np.load("expected.npy")
assert np.abs(expected).max() > 1e-2
model = RecurrentPPO.load("model.zip")
policy = torch.load("policy.pt", weights_only=False)["state_dict"]
for name, tensor in model.policy.state_dict().items():
    assert torch.equal(tensor, policy[name]), name
state = model.predict(observation, deterministic=True)[1][0]
assert np.abs(state - expected).max() < 1e-5, np.abs(state - expected).max()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_saved_as_it_is_and_loaded_into_a_fused_one(tmp_path: Path) -> None:
    model = make()
    model.learn(48)
    model.save(tmp_path / "model.zip")
    fused = sb3.fuse(make(seed=1))
    assert np.abs(answers(fused) - answers(model)).max() > 1e-2
    fused.set_parameters(tmp_path / "model.zip")
    assert type(fused.policy.lstm_actor) is seqkernels.FusedLSTM
    assert calls_of(fused.policy) == [7]
    assert np.abs(answers(fused) - answers(model)).max() < 1e-5
    ours, theirs = (m.policy.optimizer.state_dict()["state"] for m in (fused, model))
    assert_close(
        {str(n): s["exp_avg"] for n, s in ours.items()}, {str(n): s["exp_avg"] for n, s in theirs.items()}
    )
    loaded = sb3_contrib.RecurrentPPO.load(tmp_path / "model.zip", env=make().env)
    sb3.fuse(loaded, "native").learn(48)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "make_model",
    [
        lambda: None,
        lambda: nn.LSTM(2, 3),
        lambda: PPO("MlpPolicy", make().env, device="cpu"),
        lambda: sb3_contrib.RecurrentPPO("MlpLstmPolicy", make().env, device="cpu", _init_setup_model=False),
    ],
    ids=["None", "LSTM", "PPO", "no policy yet"],
)
@pytest.mark.parametrize("direction", [sb3.fuse, sb3.unfuse])
def test_no_such_model(make_model: Callable[[], Any], direction: Callable[[Any], Any]) -> None:
    model = make_model()
    with pytest.raises(
        TypeError, match=f"must be a RecurrentPPO of sb3-contrib.*; got {type(model).__name__}"
    ):
        direction(model)


def unchanged(policy: Any) -> bool:
    return METHOD not in vars(policy) and type(policy.lstm_actor) is nn.LSTM


def test_backend_of_a_second_fuse() -> None:
    policy = sb3.fuse(make().policy, "reference")
    assert policy.lstm_actor.backend == policy.lstm_critic.backend == "reference"
    assert sb3.fuse(policy).lstm_actor.backend == policy.lstm_critic.backend == "auto"


def test_unknown_backend() -> None:
    policy = make().policy
    with pytest.raises(ValueError, match="backend must be one of"):
        sb3.fuse(policy, "fast")
    assert unchanged(policy)


def test_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make().policy
    monkeypatch.setattr(_package.metadata, "version", lambda distribution: "99.0.1")
    with pytest.raises(
        RuntimeError, match=r"sb3-contrib, and knows those of 2.6 to 2.9; 99.0.1 is installed"
    ):
        sb3.fuse(policy)
    assert unchanged(policy)


def test_installed_version_is_known() -> None:
    _package.check_version("sb3-contrib", sb3.OLDEST, sb3.NEWEST)


UNKNOWN = "computes something else"


def ignores_starts(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
    return RecurrentActorCriticPolicy.theirs(features, lstm_states, torch.zeros_like(episode_starts), lstm)


def another_h(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
    output, (h, c) = RecurrentActorCriticPolicy.theirs(features, lstm_states, episode_starts, lstm)
    return output, (h + 1, c)


def another_c(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
    output, (h, c) = RecurrentActorCriticPolicy.theirs(features, lstm_states, episode_starts, lstm)
    return output, (h, c + 1)


def takes_more(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any, mask: Any = None) -> Any:
    return RecurrentActorCriticPolicy.theirs(features, lstm_states, episode_starts, lstm)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (ignores_starts, UNKNOWN),
        (another_h, UNKNOWN),
        (another_c, UNKNOWN),
        (takes_more, r"takes \(features, .*, mask\)"),
        (None, "has no _process_sequence"),
    ],
)
def test_unknown_function(function: Any, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that computes something else is refused, whatever its number."""
    policy = make().policy
    theirs = RecurrentActorCriticPolicy._process_sequence
    monkeypatch.setattr(RecurrentActorCriticPolicy, "theirs", staticmethod(theirs), raising=False)
    if function is None:
        monkeypatch.delattr(RecurrentActorCriticPolicy, METHOD)
    else:
        monkeypatch.setattr(RecurrentActorCriticPolicy, METHOD, staticmethod(function))
    with pytest.raises(RuntimeError, match=error):
        sb3.fuse(policy)
    assert unchanged(policy)


class OwnSequences(RecurrentActorCriticPolicy):
    @staticmethod
    def _process_sequence(*args: Any) -> Any:
        return RecurrentActorCriticPolicy._process_sequence(*args)


class OwnForward(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return torch.lstm(input, hx, list(self.parameters()), True, 1, 0.0, False, False, False)


def test_own_sequences() -> None:
    model = sb3_contrib.RecurrentPPO(OwnSequences, make().env, device="cpu")
    with pytest.raises(ValueError, match="OwnSequences has a _process_sequence of its own"):
        sb3.fuse(model)
    assert unchanged(model.policy)
    policy = make().policy
    policy.__dict__[METHOD] = own = RecurrentActorCriticPolicy._process_sequence.__get__
    with pytest.raises(ValueError, match="of its own"):
        sb3.fuse(policy)
    assert sb3.unfuse(policy).__dict__[METHOD] is own


@pytest.mark.parametrize("name", ["lstm_actor", "lstm_critic"])
@pytest.mark.parametrize(
    ("lstm", "error"),
    [
        (nn.LSTM(3, 5, bidirectional=True), "must be an LSTM of one direction, time first"),
        (nn.LSTM(3, 5, batch_first=True), "must be an LSTM of one direction, time first"),
        (nn.GRU(3, 5), "must be an LSTM of one direction, time first"),
        (OwnForward(3, 5), "cannot be fused: the forward of OwnForward computes by itself"),
    ],
    ids=["bidirectional", "batch_first", "GRU", "own forward"],
)
def test_lstms_that_cannot_be_fused(lstm: Any, error: str, name: str) -> None:
    policy = make().policy
    setattr(policy, name, lstm)
    with pytest.raises(ValueError, match=f"policy.{name} {error}"):
        sb3.fuse(policy)
    assert METHOD not in vars(policy)
    assert not any(isinstance(m, seqkernels.FusedLSTM) for m in policy.modules())


def test_random_numbers_stay() -> None:
    policy = make().policy
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sb3.fuse(policy)
    assert torch.equal(torch.rand(1), expected)


def test_docstrings() -> None:
    result = doctest.testmod(sb3, extraglobs={"torch": torch, "seqkernels": seqkernels})
    assert result.attempted > 0
    assert result.failed == 0


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "seqkernels")
    model = make()
    report = sb3.fuse(model, report=True)
    paths = ["policy.lstm_actor", "policy.lstm_critic"]
    assert report.changed == dict.fromkeys(paths, ("LSTM", "FusedLSTM"))
    assert sb3.fuse(model.policy, report=True).already == dict.fromkeys(
        ["lstm_actor", "lstm_critic"], "FusedLSTM"
    )
    assert list(sb3.unfuse(model, report=True).changed) == paths
    assert not sb3.unfuse(model, report=True).changed
    assert [record.getMessage() for record in caplog.records] == [
        "fused 2 of 2 recurrent layers: policy.lstm_actor (LSTM), policy.lstm_critic (LSTM)",
        "fused 0 of 2 recurrent layers, 2 were already",
        "unfused 2 of 2 recurrent layers: policy.lstm_actor (FusedLSTM), policy.lstm_critic (FusedLSTM)",
        "unfused nothing: there is no recurrent layer",
    ]
    for function in (sb3.fuse, sb3.unfuse):
        with pytest.raises(TypeError, match="report must be True or False"):
            function(model, report=1)
