"""Real models of real packages, imported and run where this folder or `-m integration` asks for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import page, twins

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew", action="store_true", help="write what is measured into docs/guide/")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing these packages takes the better part of a minute, so nobody does by the way."""
    if re.search(r"(?<!not )\bintegration\b", config.option.markexpr):
        return None
    asked = [Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args]
    return None if any(path == HERE or HERE in path.parents for path in asked) else True


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[list[twins.Row]]:
    """What was measured, of all tests."""
    found: list[twins.Row] = []
    yield found
    if request.config.getoption("renew"):
        page.renew(found)


@pytest.fixture
def row(rows: list[twins.Row], capsys: pytest.CaptureFixture[str]) -> Callable[[twins.Model], None]:
    """Checks what fuse leaves alone in a model, measures, and prints a line."""

    def measure(model: twins.Model) -> None:
        rows.append(twins.row(model))
        with capsys.disabled():
            print(f"\n{page.line(rows[-1])}")

    return measure
