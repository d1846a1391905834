"""A cue is shown, some steps of nothing pass, and then it is to be named."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

__all__ = ["Recall", "observations"]


def observations(cue: int, delay: int, cues: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What is seen in one episode, [delay + 2, cues + 1]: the cue, one-hot; `delay` times nothing; the sign
    that asks for the cue, in the last column.

    Example:
        >>> observations(1, 1, 2)
        array([[0., 1., 0.],
               [0., 0., 0.],
               [0., 0., 1.]], dtype=float32)
    """
    seen = np.zeros((delay + 2, cues + 1), dtype=np.float32)
    seen[0, cue] = seen[-1, cues] = 1
    return seen


class Recall(gymnasium.Env[Any, Any]):
    """One episode is one cue. The action at the sign is rewarded with 1 if it is the cue; no other counts.

    Args:
        cues: How many there are; who guesses has a reward of 1 / cues.
        delay: The longest one; each episode has one from half of it on, at random.
    """

    def __init__(self, cues: int, delay: int) -> None:
        self.cues, self.delay = cues, delay
        self.observation_space = spaces.Box(0, 1, (cues + 1,), np.float32)
        self.action_space = spaces.Discrete(cues)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(self.cues))
        delay = int(self.np_random.integers(self.delay // 2, self.delay + 1))
        self.seen, self.step_of_episode = observations(self.cue, delay, self.cues), 0
        return self.seen[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.step_of_episode == len(self.seen) - 1:  # this action answers the sign
            return np.zeros_like(self.seen[0]), float(action == self.cue), True, False, {}
        self.step_of_episode += 1
        return self.seen[self.step_of_episode], 0.0, False, False, {}
