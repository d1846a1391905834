"""What happens to states between steps: resets, lengths, recurrent dropout, zoneout; and cell states.

The ops against the reference, which test_reference_loop.py holds to a loop of its own.
"""

from __future__ import annotations

import pytest
import torch

from .conftest import paired
from .problems import CELLS, OPTIONS, RATES, Problem

EACH = [(name,) for name in (*OPTIONS, "zoneout_h_rate", "zoneout_c_rate")]
TOGETHER = [OPTIONS, ("lengths", "reset_mask", "recurrent_mask", *RATES), ("reset_mask", "zoneout_h")]


@paired("cell asked", CELLS, [*EACH, *TOGETHER])
def test_against_the_reference(
    cell: str, asked: tuple[str, ...], dtype: torch.dtype, target: torch.device
) -> None:
    if cell.startswith("rnn") and "zoneout_h_rate" in asked:
        pytest.skip("gradients of these are those of the reference")
    Problem(cell, 7, 5, 9, 19, 2, dtype=dtype, device=target, asked=asked).check()
