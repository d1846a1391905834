"""The exchange between blocks is right in every interleaving, and what must not be left out cannot be."""

from __future__ import annotations

import pytest

from tests.exchange_model import PUBLISHER, RESETTER, Explorer, Protocol

SIZES = [(2, 9), (3, 5)]  # blocks, iterations: all states in a few seconds

WRONG = {
    "no fence": Protocol(fences_before_barrier=()),
    "a fence of those who publish alone": Protocol(fences_before_barrier=(PUBLISHER,)),
    "three slots": Protocol(slots=3),
    "two slots": Protocol(slots=2, resets=1),
    "what comes next is reset": Protocol(resets=1),
    "what is being read is reset": Protocol(resets=3),
}


@pytest.mark.parametrize(("members", "steps"), SIZES)
@pytest.mark.parametrize("share", [0, 1])
def test_every_interleaving_is_right(members: int, steps: int, share: int) -> None:
    wrong, states = Explorer(Protocol(share=share), members, steps).explore()
    assert not wrong
    assert states > 1000


@pytest.mark.parametrize(("members", "steps"), SIZES)
def test_a_fence_right_after_the_reset_is_as_right(members: int, steps: int) -> None:
    early = Protocol(fences_before_barrier=(), fences_after_reset=(PUBLISHER, RESETTER))
    assert not Explorer(early, members, steps).explore()[0]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    assert any(Explorer(WRONG[name], members, steps).explore()[0] for members, steps in SIZES)
