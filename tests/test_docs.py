"""What README.md and CONTRIBUTING.md say is so."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WITHOUT_DIFF = re.sub(r"```diff\n.*?```", "", TEXT, flags=re.DOTALL)
# Files that the guide tells its reader to make.
PLACEHOLDERS = re.compile(r"NAME")


@pytest.mark.parametrize("name", ["README.md", "docs/guide/explain.md"])
def test_examples_run(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 2
    exec(compile("\n".join(blocks), name, "exec"), {"__name__": "example"})


def test_the_report_in_the_guide_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/guide/explain.md").read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL).groups()  # type: ignore[union-attr]
    exec(compile(code, "explain.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out == shown


def section(title: str) -> str:
    return WITHOUT_DIFF.split(f"## {title}\n")[1].split("\n## ")[0]


def expanded(text: str) -> list[str]:
    """a{b,c}d as abd and acd."""
    parts = re.split(r"\{([^}]*)\}", text)
    choices = [part.split(",") if n % 2 else [part] for n, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def test_every_line_of_the_drawing_is_true() -> None:
    """Its name stands in its file, and is called or named where the drawing says so."""
    lines = re.findall(
        r"^ *([\w.]+) +((?:csrc|seqkernels)/[\w/.-]+\.\w+)", section("The way of the data"), re.MULTILINE
    )
    assert len(lines) >= 20
    for name, path in lines:
        text = (ROOT / path).read_text(encoding="utf-8")
        for part in name.split("."):
            if part not in ("functional", "dispatch"):  # modules, which are the files
                assert re.search(rf"\b{part}\b", text), f"{name} is not in {path}"


def test_files_that_are_named_exist() -> None:
    names = re.findall(r"`((?:[\w{},*-]+/)*[\w{},*-]+\.(?:py|cpp|h|cuh|cu|md|sh|diff))`", WITHOUT_DIFF)
    assert len(names) > 20
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if ".venv" not in path.parts]
    for name in names:
        for wanted in expanded(name):
            if PLACEHOLDERS.search(wanted):
                continue
            pattern = re.compile(rf"(^|.*/){re.escape(wanted).replace(re.escape('*'), '[^/]*')}$")
            assert any(map(pattern.match, files)), f"there is no {wanted}"


def test_the_tree_is_complete() -> None:
    """Every file of csrc and seqkernels is in the list of rooms, and every word of the list is a file."""
    tree = section("The tree").split("```")[1]
    rooms: dict[str, str] = {}
    room = ""
    for line in tree.splitlines():
        if found := re.match(r"(\S+?/)\s", line):
            room = found[1]
        elif found := re.match(r"(csrc/\S+)", line):
            room = "csrc/"
        rooms[room] = rooms.get(room, "") + line + "\n"
    for folder in ("csrc/", "csrc/cells/", "csrc/python/", "csrc/cpu/", "csrc/cuda/", "seqkernels/"):
        words = set(re.findall(r"[\w]+", " ".join(expanded(rooms[folder].replace("\n", " ")))))
        for path in (ROOT / folder).iterdir():
            stem = re.sub(r"-inl$", "", path.name.split(".")[0])
            special = folder == "csrc/cells/" or stem in ("__init__", "__main__", "_C", "libseqkernels", "py")
            if path.is_file() and not special:
                listed = stem in words or stem.removeprefix("kernels_") in words
                assert listed, f"{folder}{path.name} is not in the tree"


def test_no_file_is_longer_than_500_lines() -> None:
    for folder in ("csrc", "seqkernels"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cuh", ".cu"):
                assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
