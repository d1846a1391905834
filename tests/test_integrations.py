"""What all adapters have in common: packages that are not there, or in a version that nobody knows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from seqkernels.integrations import _package, sb3, torchrl

ADAPTERS = {
    "sb3": (sb3, "sb3_contrib.common.recurrent.policies", "sb3-contrib"),
    "torchrl": (torchrl, "torchrl.modules", "torchrl"),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("direction", ["fuse", "unfuse"])
def test_missing_package(name: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, module, distribution = ADAPTERS[name]
    monkeypatch.setitem(sys.modules, module, None)  # which makes an import of it fail
    with pytest.raises(ImportError, match=f"pip install {distribution}"):
        getattr(adapter, direction)(torch.nn.LSTM(1, 1))


def test_what_a_package_lacks_is_not_blamed_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(module: str) -> Any:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(_package.importlib, "import_module", lacking)
    with pytest.raises(ModuleNotFoundError, match="No module named 'numpy'"):
        _package.load("torchrl.modules", "torchrl")


def test_importing_seqkernels_imports_no_package() -> None:
    packages = "{'sb3_contrib', 'stable_baselines3', 'gymnasium', 'torchrl', 'tensordict'}"
    code = f"import seqkernels, sys; print({packages} & sys.modules.keys() or 'none')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "none"


@pytest.mark.parametrize(
    "version",
    ["1.2.0", "1.4", "1.4.9.post1", "1.1.9", "1.5.0", "2.2.0", "0.3.0", "1.10.0", "1", "1.2rc1", "a.b"],
)
def test_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_package.metadata, "version", lambda distribution: version)
    if version in ("1.2.0", "1.4", "1.4.9.post1"):
        _package.check_version("some", (1, 2), (1, 4))
        return
    with pytest.raises(RuntimeError, match=rf"knows those of 1.2 to 1.4; {version} is installed"):
        _package.check_version("some", (1, 2), (1, 4))


@pytest.mark.parametrize(
    ("function", "known"),
    [(lambda a, b: 0, True), (lambda b, a: 0, False), (lambda a: 0, False), (lambda a, b, c: 0, False)],
)
def test_signatures(function: Callable[..., int], known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_package.metadata, "version", lambda distribution: "1.2")
    if known:
        _package.check_signature(function, ("a", "b"), "some")
        return
    with pytest.raises(RuntimeError, match=r"of some 1.2 takes \(.*\), where this adapter knows \(a, b\)"):
        _package.check_signature(function, ("a", "b"), "some")
