"""Private names of torch: each in one file, and nothing is lost but time where torch has moved one."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqkernels import _dynamo, _torch_compat

PACKAGE = Path(_torch_compat.__file__).parent
# Of torch.nn's recurrent layers; attributes of an object, so that no import gives them away.
PRIVATE_OF_MODULES = {
    "_all_weights",
    "_flat_weight_refs",
    "_flat_weights",
    "_flat_weights_names",
    "_init_flat_weights",
    "_parameters",
    "_slow_forward",
    "_update_flat_weights",
}

# Hides names of torch from the package, one in each of as many forked processes, and says what became of it
# there. (Torch itself goes on using them.)
DRIVER = """
import json, operator, os, sys, warnings
import torch

def close(a, b):
    return all(torch.allclose(s, t, atol=1e-5) for s, t in zip(flat(a), flat(b), strict=True))

def flat(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    return [t for v in value or () for t in flat(v)]

def work(compiles, freezes):
    import seqkernels
    torch.manual_seed(0)
    for name in ("LSTM", "GRU", "RNN"):
        theirs = getattr(torch.nn, name)(5, 6, 2, bidirectional=True)
        ours = getattr(seqkernels, "Fused" + name)(5, 6, 2, bidirectional=True)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(4, 3, 5, requires_grad=True)
        grads = [torch.autograd.grad(m(x)[0].sin().sum(), [x, *m.parameters()]) for m in (ours, theirs)]
        assert close(ours(x), theirs(x)) and close(*grads), name
        packed = torch.nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]])
        assert close(ours(packed), theirs(packed)), name
        with torch.no_grad():
            assert close(ours(x), theirs(x)), name
            if freezes:
                assert close(seqkernels.freeze(ours)(x), theirs(x)), name
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(x)[0].dtype == theirs(x)[0].dtype, name
        rows = torch.vmap(lambda row: ours(row)[0], in_dims=1, out_dims=1)(x)
        assert close(rows, theirs(x)[0]), name
        if compiles:
            assert close(torch.compile(ours, backend="eager")(x), theirs(x)), name
    op = torch.ops.seqkernels.gru
    weights = [torch.randn(18, 5), torch.randn(18, 6, requires_grad=True)]
    assert op(x.detach(), torch.zeros(1, 3, 6), weights)[0].requires_grad

def without(path):
    find = operator.attrgetter

    def find_others(name):
        if name == path:
            raise AttributeError(name)
        return find(name)

    operator.attrgetter = find_others
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import seqkernels._torch_compat as compat

        operator.attrgetter = find
        freezes = "frozen" not in compat.LOSSES[path]
        work(path == "_guards.CompileContext", freezes)
    return [str(w.message) for w in caught if "this torch" in str(w.message)]

for path in map(str.strip, sys.stdin):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            said = {"said": without(path)}
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        print("answer", answer.read() or '{"error": "died"}', flush=True)
    os.wait()
"""


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[[str], dict[str, Any]]]:
    """What became of the package without a name."""
    command = [sys.executable, "-W", "ignore", "-c", DRIVER]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=PACKAGE.parent, **pipes) as driver:

        def ask(path: str) -> dict[str, Any]:
            print(path, file=driver.stdin, flush=True)
            answer = next(line for line in driver.stdout if line.startswith("answer "))
            return dict(json.loads(answer.removeprefix("answer ")))

        yield ask


@pytest.mark.parametrize("path", _torch_compat.LOSSES)
def test_without(path: str, ask: Callable[[str], dict[str, Any]]) -> None:
    """The same results, and one warning that names what is gone and what is lost."""
    answer = ask(path)
    assert "error" not in answer, answer
    (said,) = answer["said"]
    assert f"no torch.{path} " in said
    assert _torch_compat.LOSSES[path] in said


def test_all_that_is_looked_up_is_listed() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py"))
    assert set(re.findall(r'\blook_up\(\s*"([\w.]+)"', text)) == set(_torch_compat.LOSSES)


def test_dynamo_that_works_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.variables import builder

    wrap_module = builder.VariableBuilder.wrap_module
    monkeypatch.setattr(builder, "config", object())
    with pytest.warns(UserWarning, match="it breaks the graph at fused layers"):
        _dynamo._prepare_dynamo()
    assert builder.VariableBuilder.wrap_module is wrap_module


def private_names(path: Path) -> list[str]:
    """What a file names that is private in torch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        from_torch = isinstance(node, ast.ImportFrom) and re.match(r"torch\b", node.module or "")
        if isinstance(node, ast.ImportFrom) and from_torch and not node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"{node.module}: {part}" for part in parts if part.startswith("_")]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
            found += [name for name in names if "._" in name]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            text = ast.unparse(node)
            if text.split(".")[0] in ("torch", "forward_ad", "profiler") or node.attr in PRIVATE_OF_MODULES:
                found.append(text)
        elif isinstance(node, ast.FunctionDef) and node.name in PRIVATE_OF_MODULES:
            found.append(node.name)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_two_files_name_what_is_private(path: Path) -> None:
    found = private_names(path)
    assert bool(found) == (path.name in ("_torch_compat.py", "_dynamo.py")), found


def test_no_tricks() -> None:
    """No code of torch's runs with other globals, and no import is watched."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.glob("*.py"))
    assert not re.search(r"FunctionType\(|meta_path|__code__\.replace", text)
