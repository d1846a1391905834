"""The page that shows all programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import gallery

PRINTED = """no --data given: this is generated data
epoch 1/1  loss 0.1  tokens/s 7
on the held-out text
┏━━━┓
│ 1 │
└───┘
picture: out/name.png
"""


def test_all_programs_are_shown() -> None:
    folders = {path.parent.name for path in (gallery.ROOT / "examples").glob("*/__main__.py")}
    assert set(gallery.PROGRAMS) == folders
    page = (gallery.ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name, title in gallery.PROGRAMS.items():
        assert f"\n## {title}\n" in page
        assert (gallery.ROOT / "docs" / "gallery" / f"{name}.png").exists()
        assert (gallery.ROOT / "examples" / name / "README.md").exists()


def test_results_without_the_way_there() -> None:
    assert gallery.tables(PRINTED) == "on the held-out text\n┏━━━┓\n│ 1 │\n└───┘"


def test_one_program_again_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def section(name: str, pictures: Path) -> str:
        runs.append(name)
        return f"## {gallery.PROGRAMS[name]}\n\nrun {len(runs)}\n"

    monkeypatch.setattr(gallery, "section", section)
    page = tmp_path / "page.md"
    assert gallery.main(["--page", str(page)]) == 0
    assert runs == list(gallery.PROGRAMS)
    before = page.read_text(encoding="utf-8")
    assert gallery.main(["ner", "--page", str(page)]) == 0
    number = runs.index("ner") + 1
    assert page.read_text(encoding="utf-8") == before.replace(f"run {number}\n", f"run {len(runs)}\n")


def test_unknown_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gallery.main(["chess"])
    assert "there is no chess" in capsys.readouterr().err
