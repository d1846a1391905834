"""How the members of a team share a step on the CPU (csrc/cpu/plan-inl.h)."""

from __future__ import annotations

import itertools

import pytest

from tests import kernels

pytestmark = pytest.mark.skipif(bool(kernels.MISSING), reason=kernels.MISSING)

MEMBERS, BATCHES, SIZES = (1, 2, 3, 4, 8, 16), (1, 2, 7, 16, 64, 500), (1, 16, 100, 512, 2048)


@pytest.mark.parametrize("members", MEMBERS)
def test_the_choice_is_the_best_but_for_2_percent(members: int) -> None:
    for batch, hidden in itertools.product(BATCHES, SIZES):
        (batch_parts, unit_parts, cycles), *all_splits = kernels.splits(members, batch, hidden)
        assert 1 <= batch_parts * unit_parts <= members
        assert (batch_parts, unit_parts, cycles) in all_splits
        assert cycles * 0.98 <= min(c for _, _, c in all_splits)


def test_one_member_splits_nothing() -> None:
    for batch, hidden in itertools.product(BATCHES, SIZES):
        assert kernels.splits(1, batch, hidden)[0][:2] == (1, 1)


@pytest.mark.parametrize("members", MEMBERS[1:])
def test_one_sequence_is_split_by_units(members: int) -> None:
    """Where they are enough to pay for a barrier a step; else it is left to one member."""
    assert kernels.splits(members, 1, 2048)[0][:2] == (1, members)
    assert kernels.splits(members, 1, 16)[0][:2] == (1, 1)


@pytest.mark.parametrize("members", MEMBERS[1:])
def test_many_sequences_are_split_by_themselves(members: int) -> None:
    """They need no barrier."""
    assert kernels.splits(members, 500, 100)[0][:2] == (members, 1)


def test_weights_beyond_l2_are_shared() -> None:
    """With many sequences and W_hh of 16 MB, members that read a part of it each are faster."""
    assert kernels.splits(4, 64, 1024)[0][1] > 1
