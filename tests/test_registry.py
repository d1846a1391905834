"""One list of cells, from which all that is said of a cell is made; and what it takes to add one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from seqkernels import reference
from seqkernels.cells import CELLS
from tests import emulator, extra_cell

CSRC = emulator.CSRC


def test_every_cell_has_its_parts() -> None:
    assert list(emulator.registry()) == list(CELLS) == list(reference.STEPS)
    for name, cell in CELLS.items():
        assert cell.name == name
        forward = getattr(torch.ops.seqkernels, name).default._schema
        backward = getattr(torch.ops.seqkernels, f"_{name}_backward").default._schema
        assert ("c0" in str(forward)) == ("grad_c0" in str(backward)) == cell.has_cell_state
        assert ("gates" in str(forward)) == ("gates" in str(backward)) == (cell.saved > 0)


def test_schemas_are_as_they_were() -> None:
    """Programs that were exported, or compiled ahead of time, name the ops by these."""
    schema = torch.ops.seqkernels.lstm.default._schema
    assert str(schema) == (
        "seqkernels::lstm(Tensor x, Tensor h0, Tensor c0, Tensor[] weights, Tensor? batch_sizes=None, "
        "bool reverse=False, Tensor? lengths=None, Tensor? reset_mask=None, Tensor? recurrent_mask=None, "
        "Tensor? zoneout_h=None, float zoneout_h_rate=0., Tensor? zoneout_c=None, float zoneout_c_rate=0., "
        "bool return_cell_states=False, bool save_for_backward=True) -> "
        "(Tensor output, Tensor h_n, Tensor c_n, Tensor cell_states, Tensor gates, Tensor cells)"
    )


def test_no_other_list_of_cells() -> None:
    """No switch over cells, and no cell by its name, but in the registry and the cells' own files."""
    names = re.compile(r"\b(Lstm|Gru|RnnTanh|RnnRelu)\b|\"(lstm|gru|rnn_tanh|rnn_relu)\"")
    for path in [*CSRC.rglob("*.h"), *CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu*")]:
        if path.parent.name != "cells":
            found = names.findall(re.sub(r"//.*", "", path.read_text(encoding="utf-8")))
            assert not found, path


@pytest.mark.slow
def test_a_cell_is_added_by_its_equations_one_line_and_its_reference() -> None:
    added = [line for line in extra_cell.DIFF.read_text(encoding="utf-8").splitlines() if line[:3] == "+++"]
    assert added == ["+++ b/csrc/cells/mgu.h", "+++ b/csrc/cells/registry.h", "+++ b/seqkernels/reference.py"]
    extra_cell.build()
    assert extra_cell.TREE.run("-m", "tests.extra_cell.check").split() == ["right"]


def test_contributing_shows_that_diff() -> None:
    text = (Path(inspect.getfile(extra_cell)).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```diff\n{extra_cell.DIFF.read_text(encoding='utf-8').strip()}\n```" in text
