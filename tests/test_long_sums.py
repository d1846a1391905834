"""Gradients of weights are sums over all rows: how their rounding grows with T·B."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import seqkernels

from .conftest import LAYERS, error_of

MOST = 10 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("seq_len", "batch"), [(64, 512), (2048, 16)])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_weights_round_little(name: str, seq_len: int, batch: int) -> None:
    """A few eps, where one float32 sum over all 2^15 rows is off by some 45."""
    plain = getattr(nn, name)(8, 16)
    x = torch.rand(seq_len, batch, 8)
    ours, right = seqkernels.fuse(copy.deepcopy(plain), backend="native"), plain.double()
    for module in (ours, right):
        module(x.to(module.weight_hh_l0.dtype))[0].mean().backward()
    for (weight, own), expected in zip(ours.named_parameters(), right.parameters(), strict=True):
        assert error_of(own.grad, expected.grad) <= MOST, weight
