"""What a new user reads and pastes: the help of every command, and the commands in docstrings and READMEs."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import char_lm, gallery
from examples.common import cli

ROOT = gallery.ROOT
PYTHON = ".venv/bin/python"


def command_line(name: str) -> cli.CommandLine:
    """That of a program, which its main makes and runs."""
    made: list[cli.CommandLine] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli.CommandLine, "run", lambda self, arguments: made.append(self))
        importlib.import_module(f"examples.{name}.__main__").main([])
    return made[0]


PROGRAMS = {name: command_line(name) for name in gallery.PROGRAMS}


def subcommands(line: cli.CommandLine) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, one line of help and parser of each command."""
    for action in line.parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.dest, str(choice.help), action.choices[choice.dest]


def pasted(text: str) -> list[str]:
    """The commands in a text, as a shell sees them: what stands behind # or far to the right is no part."""
    lines = re.findall(r"^ *((?:\.venv/bin/)?(?:python -m|torchrun) .*)$", text, re.MULTILINE)
    return [re.split(r"\s+#|\s{3,}(?=[^\"]*$)", line)[0].strip() for line in lines]


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_as_it_was_written(name: str) -> None:
    """The docstring line by line, each command on one of its own."""
    module = importlib.import_module(f"examples.{name}.__main__")
    written = inspect.getdoc(module) or ""
    shown = PROGRAMS[name].parser.format_help()
    assert all(line in shown.splitlines() for line in written.splitlines())
    assert pasted(written)
    for line in written.splitlines():
        if "python -m" in line:
            assert line.strip().startswith(f"python -m examples.{name}")
            assert line.count("python -m") == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_of_commands_is_a_whole_sentence(name: str) -> None:
    """One sentence, the first of what the command itself shows; and every option says what it does."""
    for command, line, parser in subcommands(PROGRAMS[name]):
        text = " ".join((parser.description or "").split())
        assert text.startswith((line + ".", line + ": ")), command
        assert ". " not in line
        assert parser.description in parser.format_help()
        undocumented = [action.dest for action in parser._actions if not action.help]
        assert undocumented == [], command


@pytest.mark.parametrize("name", PROGRAMS)
def test_commands_can_be_pasted(name: str) -> None:
    """Those in the docstring and in the README are accepted as they stand; the README's name the environment
    that `make` has set up."""
    written = importlib.import_module(f"examples.{name}.__main__").__doc__ or ""
    readme = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", readme, re.DOTALL))
    assert len(pasted(blocks)) > 1
    for line in blocks.splitlines():
        assert not line or line.startswith(".venv/bin/"), line
    for line in [*pasted(written), *pasted(blocks)]:
        program, *arguments = shlex.split(line.split(" -m ", 1)[1])
        if program.startswith("examples."):
            PROGRAMS[program.removeprefix("examples.")].parser.parse_args(arguments)


def test_commands_of_the_first_page_can_be_pasted() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in pasted(text) if "examples." in line]
    assert len(lines) > 1
    for line in lines:
        assert line.startswith(".venv/bin/"), line
        program, *arguments = shlex.split(line.split(" -m ", 1)[1])
        PROGRAMS[program.removeprefix("examples.")].parser.parse_args(arguments)


def test_help_of_the_demo_and_the_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    for main, written in ((char_lm.main, char_lm.__doc__), (gallery.main, gallery.__doc__)):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        shown = capsys.readouterr().out
        assert all(line in shown.splitlines() for line in (written or "").splitlines())


@pytest.mark.skipif(not (ROOT / PYTHON).exists(), reason="no .venv, which `make` sets up")
def test_the_environment_of_make_has_seqkernels(tmp_path: Path) -> None:
    """Commands of the READMEs run from the project's folder, and scripts elsewhere find the package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = f'{PYTHON} -m examples.sentiment predict "not bad at all!" --out {tmp_path}'
    ended = subprocess.run(line, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "run `train` first" in ended.stderr
    script = tmp_path / "mine.py"
    script.write_text("import seqkernels; print(seqkernels.FusedGRU(3, 4))")
    ended = subprocess.run(
        [ROOT / PYTHON, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.stdout == "FusedGRU(3, 4)\n", ended.stderr
