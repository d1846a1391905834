"""The mutants fit the kernels' source as it is; `make mutants` builds them and looks for them."""

from __future__ import annotations

import shutil
from pathlib import Path

from .mutants import EVERYWHERE, MUTANTS
from .mutate import with_mutants
from .tree import ROOT


def test_every_mutant_has_one_place(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    with_mutants(tmp_path / "csrc")
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_every_mutant_is_looked_for_somewhere() -> None:
    words = {*EVERYWHERE, *(dtype for dtypes in EVERYWHERE.values() for dtype in dtypes)}
    for mutant in MUTANTS:
        assert mutant.where, mutant.name
        assert set(mutant.only.split()) <= words, mutant.name
