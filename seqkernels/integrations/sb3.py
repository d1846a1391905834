"""RecurrentPPO of sb3-contrib on fused kernels, whole sequences at a time.

A recurrent policy of sb3-contrib runs its LSTMs step by step, in Python, for every batch in which an episode
starts. Training batches are cut so that every sequence begins with an episode, so that is nearly all of them.
Here the state that starts an episode is set to zeros before the sequence, or inside it by `reset_mask`, and
one call of a fused LSTM runs all steps.

    >>> from sb3_contrib import RecurrentPPO                      # doctest: +SKIP
    >>> model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1")      # doctest: +SKIP
    >>> seqkernels.integrations.sb3.fuse(model).learn(10_000)     # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from .. import fusion
from .._options import check_bool
from ..fusion_report import FusionReport, told
from ..modules import FusedLSTM
from ..subclasses import why_not_fused
from . import _package

__all__ = ["NEWEST", "OLDEST", "fuse", "unfuse"]

Model = TypeVar("Model")

PACKAGE = "sb3-contrib"
# The series of versions whose policies this adapter is tested with.
OLDEST, NEWEST = (2, 6), (2, 9)
# The method that runs an LSTM over a batch of sequences, and its parameters.
METHOD = "_process_sequence"
PARAMETERS = ("features", "lstm_states", "episode_starts", "lstm")


@overload
def fuse(model: Model, backend: str = "auto", *, report: Literal[False] = False) -> Model: ...
@overload
def fuse(model: Any, backend: str = "auto", *, report: Literal[True]) -> FusionReport: ...
@overload
def fuse(model: Model, backend: str = "auto", *, report: bool) -> Model | FusionReport: ...
def fuse(model: Any, backend: str = "auto", *, report: bool = False) -> Any:
    """Make a recurrent model of sb3-contrib run its LSTMs over whole sequences on fused kernels, in place.

    Collecting, training and `predict` compute what they did, to rounding, for policies of any kind
    (`MlpLstmPolicy`, `CnnLstmPolicy`, `MultiInputLstmPolicy`, `shared_lstm`, `enable_critic_lstm`).
    Parameters and optimizer stay the objects that they are, `state_dict` has the same keys, and what
    `model.save` writes can be loaded where seqkernels is not installed. A model that is loaded is not fused:
    fuse it again. Copies of the policy are fused, and `model.set_parameters` leaves it so. With dropout
    between LSTM layers (`lstm_kwargs`), other random numbers are drawn.

    Args:
        model: A `RecurrentPPO`, or the policy of one, a `RecurrentActorCriticPolicy`.
        backend: As for `seqkernels.FusedLSTM`.
        report: Whether to return what was done, as `seqkernels.fuse` does, which also logs it.

    Returns:
        `model`; with `report=True` a `seqkernels.FusionReport`. If the model is fused already, it takes over
        the `backend`.

    Raises:
        ImportError: sb3-contrib is not installed.
        RuntimeError: Its version is one that this adapter does not know, or the function that it replaces
            computes something else; nothing has changed then.
        TypeError: `model` is no such model, or `report` no bool.
        ValueError: An unknown `backend`, or a policy that cannot be fused: its class computes sequences in
            its own way, or its LSTMs do, or they are bidirectional or `batch_first`.

    Example:
        >>> from sb3_contrib import RecurrentPPO
        >>> from seqkernels.integrations import sb3
        >>> model = sb3.fuse(RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, batch_size=16))
        >>> type(model.policy.lstm_actor).__name__
        'FusedLSTM'
        >>> _ = model.learn(16)
    """
    check_bool("report", report)
    policy = _policy_of(model)
    _package.check_version(PACKAGE, OLDEST, NEWEST)
    _check_replaced(policy)
    lstms = _lstms_of(policy)
    for name, lstm in lstms.items():
        if not isinstance(lstm, torch.nn.LSTM) or lstm.bidirectional or lstm.batch_first:
            raise ValueError(f"policy.{name} must be an LSTM of one direction, time first, not {lstm}")
        if not isinstance(lstm, FusedLSTM) and (reason := why_not_fused(lstm)):
            raise ValueError(f"policy.{name} cannot be fused: {reason}")
    named = _named_modules(model, policy)
    done, left_alone = fusion.fuse_modules(named, backend)
    policy.__dict__[METHOD] = _run_sequences
    told(done, left_alone, __name__)
    return done if report else model


@overload
def unfuse(model: Model, *, report: Literal[False] = False) -> Model: ...
@overload
def unfuse(model: Any, *, report: Literal[True]) -> FusionReport: ...
@overload
def unfuse(model: Model, *, report: bool) -> Model | FusionReport: ...
def unfuse(model: Any, *, report: bool = False) -> Any:
    """Make a model run as sb3-contrib has it, on torch.nn's LSTMs: undoes `fuse`, in place.

    A model that is not fused stays as it is. What was done is logged, and returned with `report=True`, as by
    `seqkernels.unfuse`.

    Raises:
        ImportError: sb3-contrib is not installed.
        TypeError: `model` is no model of sb3-contrib with a recurrent policy, or `report` no bool.

    Example:
        >>> from sb3_contrib import RecurrentPPO
        >>> from seqkernels.integrations import sb3
        >>> model = sb3.fuse(RecurrentPPO("MlpLstmPolicy", "CartPole-v1"))
        >>> type(sb3.unfuse(model).policy.lstm_actor).__name__
        'LSTM'
    """
    check_bool("report", report)
    policy = _policy_of(model)
    is_fused = vars(policy).get(METHOD) is _run_sequences
    if is_fused:
        del policy.__dict__[METHOD]
    done, left_alone = fusion.unfuse_modules(_named_modules(model, policy) if is_fused else ())
    told(done, left_alone, __name__)
    return done if report else model


def _recurrent_policy() -> Any:
    """The class that all recurrent policies derive from."""
    return _package.load("sb3_contrib.common.recurrent.policies", PACKAGE).RecurrentActorCriticPolicy


def _policy_of(model: Any) -> Any:
    """The recurrent policy that `model` has or is."""
    recurrent = _recurrent_policy()
    policy = model if isinstance(model, recurrent) else getattr(model, "policy", None)
    if not isinstance(policy, recurrent):
        of = "" if policy is None else f" with a {type(policy).__name__}"
        raise TypeError(
            "model must be a RecurrentPPO of sb3-contrib, or its policy, a RecurrentActorCriticPolicy; "
            f"got {type(model).__name__}{of}"
        )
    return policy


def _lstms_of(policy: Any) -> dict[str, torch.nn.Module]:
    """Those that the policy has, by name: a critic need not have one of its own."""
    named = {name: getattr(policy, name) for name in ("lstm_actor", "lstm_critic")}
    return {name: lstm for name, lstm in named.items() if lstm is not None}


def _named_modules(model: Any, policy: Any) -> list[tuple[str, torch.nn.Module]]:
    """The policy's LSTMs, and what is inside of them, by their paths in `model`."""
    seen: set[torch.nn.Module] = set()
    start = "" if model is policy else "policy."
    return [
        pair for name, lstm in _lstms_of(policy).items() for pair in lstm.named_modules(seen, start + name)
    ]


def _check_replaced(policy: Any) -> None:
    """An error unless the function that is replaced is the known one, and computes what replaces it."""
    theirs = getattr(_recurrent_policy(), METHOD, None)
    if theirs is None:
        raise RuntimeError(f"this version of {PACKAGE} has no {METHOD}; nothing has changed")
    if getattr(policy, METHOD) not in (theirs, _run_sequences):
        raise ValueError(f"{type(policy).__name__} has a {METHOD} of its own, which fuse would replace")
    _package.check_signature(theirs, PARAMETERS, PACKAGE)
    problem = _small_problem()
    with torch.no_grad():
        (output, states), (own_output, own_states) = theirs(*problem), _run_sequences(*problem)
    for found, expected in zip((own_output, *own_states), (output, *states), strict=True):
        if found.shape != expected.shape or not torch.allclose(found, expected):
            raise RuntimeError(
                f"{METHOD} of this version of {PACKAGE} computes something else than what would replace it; "
                "nothing has changed"
            )


def _small_problem() -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, FusedLSTM]:
    """Arguments for `_run_sequences`: two sequences of three steps, with starts at the first and inside."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # the caller's random numbers stay
        lstm = FusedLSTM(2, 2, backend="reference").double()
        states = torch.randn(1, 2, 2).double(), torch.randn(1, 2, 2).double()
        features, starts = torch.randn(6, 2).double(), torch.tensor([1.0, 0, 0, 0, 1, 0])
    return features, states, starts.double(), lstm


def _run_sequences(
    features: Tensor,  # [N * T, I], one sequence after another
    lstm_states: tuple[Tensor, Tensor],  # [L, N, H]
    episode_starts: Tensor,  # [N * T], not 0 where an episode starts
    lstm: torch.nn.LSTM,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run N sequences of T steps, with states of zeros before the steps at which episodes start.

    Returns:
        The output [N * T, H], and the states [L, N, H] after the last step.
    """
    if not isinstance(lstm, FusedLSTM):  # no longer: seqkernels.unfuse knows nothing of this policy
        return getattr(_recurrent_policy(), METHOD)(features, lstm_states, episode_starts, lstm)
    h, c = lstm_states
    sequences = h.size(1)
    x = features.reshape(sequences, -1, lstm.input_size).transpose(0, 1)  # [T, N, I]
    starts = episode_starts.reshape(sequences, -1).transpose(0, 1) != 0  # [T, N]
    goes_on = ~starts[0].view(1, sequences, 1)
    state = h * goes_on, c * goes_on
    if len(starts) > 1:
        output, state = lstm(x, state, reset_mask=starts)
    else:
        output, state = lstm(x, state)
    return output.transpose(0, 1).flatten(0, 1), state
