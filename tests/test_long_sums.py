"""Gradients of weights are sums over all rows: how their rounding grows with T·B."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import seqkernels

from .conftest import LAYERS, error_of

ROWS = 64 * 512
TIMES = 4  # the same numbers in another order: as large an error, and a few times that in the worst element


@pytest.mark.xfail(strict=True, reason="products over T·B rows keep one float32 sum per element")
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_weights_round_as_torch_does(name: str) -> None:
    """torch.nn's error stays at a few eps; ours grows with the square root of the rows, here to some 45."""
    plain = getattr(nn, name)(8, 16)
    x = torch.rand(64, ROWS // 64, 8)
    modules = {
        "right": copy.deepcopy(plain).double(),
        "ours": seqkernels.fuse(copy.deepcopy(plain), backend="native"),
        "theirs": plain,
    }
    for module in modules.values():
        module(x.to(module.weight_hh_l0.dtype))[0].mean().backward()
    for weight in ("weight_ih_l0", "weight_hh_l0"):
        right, ours, theirs = (getattr(module, weight).grad for module in modules.values())
        assert error_of(ours, right) <= TIMES * error_of(theirs, right)
