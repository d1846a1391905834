"""What the memory task says where the packages that it needs are not installed."""

from __future__ import annotations

import sys

import pytest

from examples.memory_task.__main__ import main


@pytest.mark.parametrize("missing", ["sb3_contrib", "gymnasium"])
def test_missing_package_is_one_line(
    missing: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("learn", "environment"):
        monkeypatch.delitem(sys.modules, f"examples.memory_task.{name}", raising=False)
        monkeypatch.delattr(sys.modules["examples.memory_task"], name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    for command in (["train"], ["evaluate"], ["predict", "1"], []):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "pip install -r requirements-integrations.txt" in error
        assert error.count("\n") == 1
