"""What the adapters have in common: an optional package, in a version that they know."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib import metadata
from typing import Any

__all__ = ["check_signature", "check_version", "load"]

Series = tuple[int, int]  # major and minor version


def load(module: str, distribution: str) -> Any:
    """The module of an optional package.

    Raises:
        ImportError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # something that the package itself needs
        raise ImportError(
            f"this adapter needs {distribution}, which is not installed: pip install {distribution}",
            name=error.name,
        ) from error


def check_version(distribution: str, oldest: Series, newest: Series) -> None:
    """An error unless the installed version belongs to a series of `oldest` to `newest`.

    Raises:
        RuntimeError: Another version, in which what an adapter replaces may be something else.
    """
    version = metadata.version(distribution)
    parts = version.split(".")
    known = len(parts) > 1 and parts[0].isdecimal() and parts[1].isdecimal()
    if not known or not oldest <= (int(parts[0]), int(parts[1])) <= newest:
        first, last = (".".join(map(str, series)) for series in (oldest, newest))
        raise RuntimeError(
            f"this adapter replaces private functions of {distribution}, and knows those of {first} to "
            f"{last}; {version} is installed, and nothing has changed"
        )


def check_signature(function: Callable[..., Any], parameters: tuple[str, ...], distribution: str) -> None:
    """An error unless the function has exactly these parameters.

    Raises:
        RuntimeError: Others.
    """
    found = tuple(inspect.signature(function).parameters)
    if found != parameters:
        there, known = ", ".join(found), ", ".join(parameters)
        raise RuntimeError(
            f"{function.__name__} of {distribution} {metadata.version(distribution)} takes ({there}), where "
            f"this adapter knows ({known}); nothing has changed"
        )
