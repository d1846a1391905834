"""`python -m seqkernels explain`: programs, what they call, how they end, and the table of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import seqkernels
from seqkernels import _C, __main__
from seqkernels._call_table import table
from seqkernels._calls import Calls, Enough
from seqkernels._explain_script import NOTHING_CALLED

from .conftest import assert_close

I, H = 5, 6
Explain = Callable[..., tuple[int, str]]


class Model(nn.Module):
    def __init__(self, layer: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.encoder = layer(I, H)
        self.head = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0])


X = torch.zeros(3, 2, I)


def recorded(function: Callable[[], Any]) -> Calls:
    calls = Calls()
    with calls.recorded():
        function()
    return calls


def counts(calls: Calls) -> dict[str, int]:
    """Calls of each layer by its path."""
    return {layer.path: layer.calls for layer in calls.layers.values()}


# ---------------------------------------------------------------- what is recorded


def test_rows() -> None:
    """One for each layer and explanation, with the range of sizes; nothing stays behind."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.fused = nn.LSTM(I, H), seqkernels.FusedGRU(H, H)
            self.cell, self.unused = nn.RNNCell(H, H), nn.GRU(I, H)
            self.frozen = seqkernels.freeze(seqkernels.FusedGRU(H, H))

        def forward(self, x: Tensor) -> None:
            y, _ = self.plain(input=x)
            y, _ = self.fused(y, hx=None)
            for step in y:
                self.cell(step)
            with torch.no_grad():
                self.frozen(y)

    model, generator = Several(), torch.get_rng_state()

    def run() -> None:
        model(torch.zeros(3, 2, I))
        model(torch.zeros(7, 2, I))
        model.fused.backend = "reference"
        with torch.inference_mode():
            model(torch.zeros(3, 1, I))

    calls = recorded(run)
    assert torch.equal(generator, torch.get_rng_state())
    assert not torch_module._global_forward_hooks
    assert not torch_module._global_forward_pre_hooks
    found = [(r.layer.path, r.calls, r.ran, r.explanation.backend, r.least, r.most) for r in calls.rows]
    assert found == [
        ("plain", 3, "torch.nn", "native", (3, 1, I), (7, 2, I)),
        ("fused", 2, "", "native", (3, 2, H), (7, 2, H)),
        ("cell", 13, "torch.nn", "native", (1, H), (2, H)),
        ("frozen", 3, "", "frozen", (3, 1, H), (7, 2, H)),
        ("fused", 1, "", "reference", (3, 1, H), (3, 1, H)),
    ]
    assert calls.total == 22
    assert 0 < sum(row.seconds for row in calls.rows) < calls.seconds
    assert calls.rows[1].explanation == seqkernels.explain(seqkernels.FusedGRU(H, H), torch.zeros(3, 2, H))
    lines = table(calls).splitlines()
    assert lines[0].startswith("4 recurrent layers, 22 calls, forward ")
    (row,) = [line for line in lines if line.startswith("plain ")]
    assert re.fullmatch(
        rf"plain +3  \[3-7, 1-2, {I}\] float32 cpu +[\d.]+ (s|ms|µs) +[\d.]+ %  "
        rf"torch\.nn; once fused: cpu/{_C.cpu_isa()} lstm",
        row,
    )
    assert "  - backend='reference' (asked for)" in lines
    assert f"not called, or not as a module: unused (GRU({I}, {H}))" in lines
    assert lines[-1].startswith("seqkernels.fuse(model), before it runs, gives kernels to plain, cell: ")


def test_fused_models_need_no_advice() -> None:
    model = seqkernels.fuse(Model())
    assert "seqkernels.fuse" not in table(recorded(lambda: model(X)))


def test_names() -> None:
    """Models of one class are one; paths that several have tell their classes; a layer alone its sizes."""

    class Critic(Model):
        pass

    calls = recorded(lambda: [Model()(X), Critic()(X), Model()(X), nn.GRU(I, H)(X), nn.GRU(I, 7)(X)])
    text = table(calls)
    for name, number in (("Model.encoder", 2), ("Critic.encoder", 1), ("GRU(5, 6)", 1), ("GRU(5, 7)", 1)):
        assert re.search(rf"^{re.escape(name)} +{number}  ", text, re.MULTILINE), text
    wide = Model()
    wide.encoder = nn.GRU(I, H)
    text = table(recorded(lambda: [Model()(X), wide(X)]))
    assert "Model.encoder LSTM(5, 6) " in text
    assert "Model.encoder GRU(5, 6) " in text


def test_layers_that_come_later() -> None:
    model = nn.Sequential()

    def run() -> None:
        model(X)
        model.append(nn.GRU(I, H))
        model(X)

    assert counts(recorded(run)) == {"0": 1}


def test_after_an_error_that_was_caught() -> None:
    """A call that raises is none, and the next one has its name."""
    model = Model()

    def run() -> None:
        with pytest.raises(RuntimeError):
            model(torch.zeros(3, 2, I + 1))
        other(X)
        model(X)

    other = nn.Sequential(nn.GRU(I, H))
    assert counts(recorded(run)) == {"encoder": 1, "0": 1}


def test_what_computes_by_itself() -> None:
    class Own(nn.GRU):
        def forward(self, x: Tensor) -> Tensor:
            return x

    calls = recorded(lambda: Own(I, H)(X))
    (row,) = calls.rows
    assert (row.ran, row.fuse_helps) == ("itself", False)
    assert "  - the forward of Own computes by itself, without super().forward" in table(calls)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize")
def test_quantized() -> None:
    model = torch.ao.quantization.quantize_dynamic(Model())
    (row,) = recorded(lambda: model(X)).rows
    assert (row.layer.shown, row.ran) == (f"DynamicQuantizedLSTM({I}, {H})", "itself")
    assert "for quantization" in row.explanation.reasons[0]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_inside_of_torch_jit() -> None:
    model = torch.jit.script(Model())
    text = table(recorded(lambda: model(X)))
    assert "inside of what torch.jit has compiled, where no call is seen: encoder (LSTM)" in text


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_inside_of_torch_compile() -> None:
    """Graphs stay whole; of what runs between them, every call is seen."""

    class Plain(Model):  # with a forward of its own, for Dynamo gives up on the function, not on the model
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(x)[0])

    torch.compiler.reset()
    fused, plain = Model(seqkernels.FusedLSTM), Plain()
    expected = fused(X)
    compiled, broken = (
        torch.compile(fused, backend="eager", fullgraph=True),
        torch.compile(plain, backend="eager"),
    )

    def run() -> None:
        for _ in range(2):
            assert_close(compiled(X), expected)
            broken(X)

    calls = recorded(run)
    assert calls.traced == ["FusedLSTM"]
    seen = {layer.shown: layer.calls for layer in calls.layers.values()}
    assert seen == {f"FusedLSTM({I}, {H})": 0, f"LSTM({I}, {H})": 2}
    text = table(calls)
    assert "inside of what torch.compile has compiled, where no call is seen: " in text
    assert "torch.compile made 1 call of FusedLSTM part of graphs, where no call is seen" in text
    torch.compiler.reset()


def test_threads() -> None:
    models = [Model(), nn.Sequential(nn.GRU(I, H))]

    def run() -> None:
        threads = [threading.Thread(target=lambda m=m: [m(X) for _ in range(20)]) for m in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert counts(recorded(run)) == {"encoder": 20, "0": 20}


def test_limit() -> None:
    calls, model = Calls(limit=3), Model()

    def run() -> None:
        with calls.recorded():
            while True:
                model(X)

    with pytest.raises(Enough):
        run()
    assert calls.total == 3
    assert not issubclass(Enough, Exception)
    model(X)
    assert calls.total == 3


# ---------------------------------------------------------------- programs


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Explain:
    """Runs `python -m seqkernels explain` in this process; returns the exit status and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [])

    def run(*arguments: str, **files: str) -> tuple[int, str]:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        status = __main__.main(["explain", *arguments])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


PROGRAM = """
    import pickle, sys
    import torch
    from beside import WIDTH
    class Cell(torch.nn.GRUCell):
        pass
    if __name__ == "__main__":
        cell = pickle.loads(pickle.dumps(Cell(WIDTH, 4)))
        for _ in range(5):
            cell(torch.zeros(2, WIDTH))
        print("arguments", sys.argv[1:], "of", sys.argv[0])
"""


def test_a_script(explain: Explain) -> None:
    """With its folder on the path, the arguments behind it, and classes of __main__ that pickle finds."""
    arguments = ["folder/program.py", "--calls", "2", "-m", "--", "x"]
    status, text = explain(*arguments, folder__in__program=PROGRAM, folder__in__beside="WIDTH = 3")
    assert status == 0
    assert "arguments ['--calls', '2', '-m', '--', 'x'] of folder/program.py" in text
    assert "seqkernels explain: folder/program.py\n1 recurrent layer, 5 calls, forward " in text
    assert re.search(r"^Cell\(3, 4\) +5  \[2, 3\] float32 cpu ", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["package_a.program", "package_b"])
def test_a_module(name: str, explain: Explain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)  # as python -m has the folder in which it is called
    package, _, module = name.partition(".")
    program = PROGRAM.replace("beside", f"{package}.beside")
    files = {f"{package}__in__{module or '__main__'}": program, f"{package}__in____init__": ""}
    status, text = explain("-m", name, "--epochs", "3", **files, **{f"{package}__in__beside": "WIDTH = 3"})
    assert status == 0
    assert f"arguments ['--epochs', '3'] of {tmp_path}" in text
    assert f"seqkernels explain: {name}\n1 recurrent layer, 5 calls" in text


ENDS = {
    "sys.exit(7)": (7, "explain: program.py\n", ""),
    "sys.exit()": (0, "explain: program.py\n", ""),
    "sys.exit('no data')": (1, "explain: program.py\n", "no data"),
    "int('x')": (1, "explain: program.py, ended by ValueError\n", "ValueError: invalid literal for int()"),
    "raise KeyboardInterrupt": (130, "explain: program.py, interrupted\n", "KeyboardInterrupt"),
}


@pytest.mark.parametrize("end", ENDS)
def test_ends(end: str, explain: Explain) -> None:
    """With the table, the program's exit status, and the traceback that Python would print."""
    expected, title, printed = ENDS[end]
    program = f"""
        import sys, torch
        torch.nn.GRU(3, 4)(torch.zeros(5, 2, 3))
        {end}
    """
    status, text = explain("program.py", program=program)
    assert status == expected
    assert f"seqkernels {title}1 recurrent layer, 1 call, forward " in text
    assert printed in text
    frames = re.findall(r'File "(.*)", line', text)
    assert frames == (["program.py"] if "Traceback" in text else [])


@pytest.mark.parametrize(("end", "expected"), [("", NOTHING_CALLED), ("raise SystemExit(5)", 5)])
def test_nothing_called(end: str, expected: int, explain: Explain) -> None:
    status, text = explain(
        "program.py", program=f"import torch\ntorch.nn.Linear(3, 4)(torch.zeros(3))\n{end}"
    )
    assert status == expected
    assert "no recurrent layer was called" in text


def test_calls(explain: Explain) -> None:
    """End a program that catches every error, and run what it does in the end."""
    program = """
        import torch
        gru, seen = torch.nn.GRU(3, 4), []
        try:
            while True:
                try:
                    gru(torch.zeros(5, 2, 3))
                    seen.append(1)
                except Exception:
                    pass
        finally:
            print("in the end", len(seen))
    """
    status, text = explain("--calls=4", "program.py", program=program)
    assert status == 0
    assert "in the end 3\n" in text  # the fourth ran, and did not return
    assert "explain: program.py, ended after 4 calls (--calls)\n1 recurrent layer, 4 calls" in text


def test_calls_of_another_thread(explain: Explain) -> None:
    program = """
        import threading, time, torch
        gru = torch.nn.GRU(3, 4)
        def run():
            while True:
                gru(torch.zeros(5, 2, 3))
        thread = threading.Thread(target=run)
        thread.start()
        while True:
            time.sleep(0.01)
    """
    status, text = explain("--calls", "4", "program.py", program=program)
    assert status == 0
    assert "explain: program.py, ended after 4 calls (--calls)\n1 recurrent layer, 4 calls" in text
    assert "Traceback" not in text


WRONG = {
    ("nowhere.py",): "there is no script 'nowhere.py'",
    ("-m", "nowhere.at.all"): "there is no module 'nowhere.at.all'",
    ("-m", "seqkernels.integrations"): "there is no module 'seqkernels.integrations.__main__'",
    ("--calls", "0", "program.py"): "must be a whole number of at least 1, got '0'",
    ("--calls", "many", "program.py"): "must be a whole number of at least 1, got 'many'",
    ("--call", "3", "program.py"): "unrecognized arguments: --call",
    (): "a script is needed, or -m and a module",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["explain", *arguments])
    assert ended.value.code == 2
    assert WRONG[arguments] in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in ((["--help"], "explain"), (["explain", "--help"], "exit status")):
        with pytest.raises(SystemExit) as ended:
            __main__.main(arguments)
        assert ended.value.code == 0
        assert word in capsys.readouterr().out


def test_interrupted_with_children(tmp_path: Path) -> None:
    """Ctrl-C in the middle; a child that has come to its end prints no table of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, torch\n"
        "gru, x = torch.nn.GRU(3, 4), torch.zeros(5, 2, 3)\n"
        "gru(x)\n"
        "if os.fork() == 0:\n"
        "    sys.exit(9)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 9\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    gru(x)\n"
    )
    command = [sys.executable, "-m", "seqkernels", "explain", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.kill(run.pid, signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert out.count("seqkernels explain") == 1
    assert f"seqkernels explain: {program}, interrupted\n1 recurrent layer, " in out
    assert "1 process was forked" in out
