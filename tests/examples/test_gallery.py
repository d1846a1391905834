"""The page that shows all programs, and the tables in their READMEs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from examples import gallery

DOCS = gallery.ROOT / "docs" / "gallery"
TABLES = {"train": {"title": "held out", "rows": {"GRU": {"loss": [0.5, 0.25, 1.0]}}}}


def readme(name: str) -> str:
    return (gallery.ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")


def test_all_programs_are_shown() -> None:
    folders = {path.parent.name for path in (gallery.ROOT / "examples").glob("*/__main__.py")}
    assert set(gallery.PROGRAMS) == folders
    page = (gallery.ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for program in gallery.PROGRAMS.values():
        assert f"\n## {program.title}\n" in page
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (DOCS.parent / picture).exists()
    shown = sum(
        len(command.pictures) for program in gallery.PROGRAMS.values() for command in program.commands
    )
    assert len(re.findall(r"!\[", page)) == shown == len(list(DOCS.glob("*.png")))


@pytest.mark.parametrize("name", gallery.PROGRAMS)
def test_quoted_numbers_are_those_that_were_measured(name: str) -> None:
    """In the README and on the page: medians and spreads of at least five seeds, as the runs left them."""
    tables = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
    marked = re.findall(rf"<!-- results: {name} (\S+) -->", readme(name))
    assert sorted(marked) == sorted(tables)
    assert gallery.fill(readme(name), name, tables) == readme(name)
    page = (gallery.ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for table in tables.values():
        assert gallery.markdown(table["rows"]) in page
        assert all(len(values) >= 5 for row in table["rows"].values() for values in row.values())


def worst_and_best(name: str, table: str, column: str) -> tuple[dict[str, float], dict[str, float]]:
    """Of each row, the highest and the lowest of what the seeds gave in a column."""
    rows = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))[table]["rows"]
    own = {row: values[column] for row, values in rows.items() if column in values}
    return {row: max(v) for row, v in own.items()}, {row: min(v) for row, v in own.items()}


def test_claims_hold_from_every_seed() -> None:
    """What READMEs say of two models holds for the worst seed of one against the best of the other."""
    for column in ("perplexity", "known words"):
        high, low = worst_and_best("language_model", "book", column)
        assert max(high["GRU"], high["LSTM"]) < min(low[row] for row in low if row.endswith("gram"))
    for distance in ("agree 9–12", "agree 13–16", "agree 17+"):
        high, low = worst_and_best("language_model", "train", distance)
        gated = [low[row] for row in ("GRU", "GRU-BEFORE", "LSTM")]
        assert min(gated) > 0.9 > 0.7 > max(high[row] for row in high if row.endswith("gram"))
    for length in (50, 100):
        high, low = worst_and_best("gradients", "evaluate", f"adding {length}")
        assert max(high["GRU"], high["LSTM"], high["identity ReLU RNN"]) < 0.5 < 0.9 < low["tanh RNN"]
    high, low = worst_and_best("gradients", "clipping", "loss / chance")
    by_norm, by_value, none = high
    assert high[by_norm] < low[by_value]
    assert high[by_norm] < 0.5 < low[none]
    for column in ("kB", "kB for backward"):
        high, low = worst_and_best("language_model", "train", column)
        assert high["RNN"] < low["GRU"] <= high["GRU"] < low["LSTM"]
    high, low = worst_and_best("sentiment", "evaluate", "accuracy")
    assert low["recurrent"] > high["mean"] >= low["mean"] > high["bayes"]
    high, low = worst_and_best("music", "train", "valid bars")
    assert low["LSTM"] > high["8-gram"]
    high, low = worst_and_best("duplicates", "losses", "epochs to 0.9")
    assert high["sum"] < low["closest"]
    assert "mean" not in high  # which never gets there
    high, low = worst_and_best("ner", "evaluate", "F1")
    assert low["two-way"] > high["one-way"] >= low["one-way"] > high["memory"]


def test_every_program_answers_a_statement() -> None:
    page = (gallery.ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert gallery.statements() in page
    headings = {re.sub(r"\s", "-", title.lower()) for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(.*?)\)", page)) <= headings


@pytest.mark.parametrize("name", gallery.PROGRAMS)
def test_code_in_readmes_runs(name: str) -> None:
    """What needs no package beside the project's and is no picture of a session."""
    names = {"np": numpy, "torch": torch, "nn": torch.nn}
    for block in re.findall(r"```python\n(.*?)```", readme(name), re.DOTALL):
        if "sb3" not in block:
            exec(compile(block, f"{name}/README.md", "exec"), dict(names))


def test_tables_between_marks_are_renewed() -> None:
    text = "a\n" + "".join(
        f"<!-- results: {name} train -->\nold\n<!-- end -->\nb\n" for name in ("ner", "music")
    )
    filled = gallery.fill(text, "ner", TABLES)
    table = "| | loss |\n|---|---:|\n| GRU | 0.5 (0.25–1) |"
    assert filled == text.replace("ner train -->\nold", f"ner train -->\n{table}")
    assert gallery.fill(filled, "ner", TABLES) == filled


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A project in which each command leaves the same results, and which have been run."""
    for name in gallery.PROGRAMS:
        (tmp_path / "examples" / name).mkdir(parents=True)
        (tmp_path / "examples" / name / "README.md").write_text(f"# {name}\n\nAbout {name}.\n\nMore.\n")
    done: list[str] = []

    def run(name: str, command: gallery.Command, seeds: int) -> str:
        out = tmp_path / "out" / (command.out or name)
        out.mkdir(parents=True, exist_ok=True)
        tables: dict[str, Any] = dict.fromkeys(command.tables.values(), TABLES["train"])
        (out / "seeds.json").write_text(json.dumps({"seeds": [0], "tables": tables}))
        for picture in command.pictures:
            (out / picture).write_bytes(b"")
        done.append(name)
        return f"run {len(done)} of {name}, {seeds} seeds"

    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    monkeypatch.setattr(gallery, "run", run)
    return done


def test_one_program_again_keeps_the_others(runs: list[str], tmp_path: Path) -> None:
    assert gallery.main(["--jobs", "1"]) == 0
    assert set(runs) == set(gallery.PROGRAMS)
    page = tmp_path / "out" / "gallery" / "gallery.md"
    before = page.read_text(encoding="utf-8")
    titles = [program.title for program in gallery.PROGRAMS.values()]
    assert re.findall(r"^## (.*)$", before, re.MULTILINE) == titles
    assert gallery.main(["ner", "--seeds", "7"]) == 0
    after = page.read_text(encoding="utf-8")
    assert after != before
    other = [line for line in before.splitlines() if " of ner" not in line and "seeds" not in line]
    assert [line for line in after.splitlines() if " of ner" not in line and "seeds" not in line] == other
    assert "of ner, 7 seeds" in after
    assert "[How it works](../../examples/ner/README.md)" in after
    assert not (tmp_path / "docs").exists()


def test_docs_are_renewed_when_asked(runs: list[str], tmp_path: Path) -> None:
    path = tmp_path / "examples" / "gradients" / "README.md"
    path.write_text("# g\n\nAbout.\n\n<!-- results: gradients clipping -->\n<!-- end -->\n", encoding="utf-8")
    assert gallery.main(["gradients", "--renew"]) == 0
    assert "| GRU | 0.5 (0.25–1) |" in path.read_text(encoding="utf-8")
    assert "(gallery/gradients.png)" in (tmp_path / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "gallery" / "gradients.json").exists()


def test_a_program_that_fails_is_left_as_it_was(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gallery.main(["ner", "music"]) == 0
    before = (tmp_path / "out" / "gallery" / "gallery.md").read_text(encoding="utf-8")

    def fails(name: str, command: gallery.Command, seeds: int) -> str:
        raise RuntimeError("no luck")

    monkeypatch.setattr(gallery, "run", fails)
    assert gallery.main(["ner"]) == 1
    assert "no luck" in capsys.readouterr().out
    assert (tmp_path / "out" / "gallery" / "gallery.md").read_text(encoding="utf-8") == before


def test_out_cannot_be_made(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match="2"):
        gallery.main(["ner"])
    assert "out/gallery: " in capsys.readouterr().err
    assert not runs


def test_unknown_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gallery.main(["chess"])
    assert "there is no chess" in capsys.readouterr().err
