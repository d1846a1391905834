"""The pages of docs/: their code runs, and they make a site without a warning or a broken link.

Code blocks of a page run in order in one namespace. Those marked `python` are executed, and those marked
`pycon` are doctests, in which `...` stands for anything; warnings are errors. What a page says of itself, in
comments that the site does not show:

    <!-- needs: MODULE -->       its blocks are not run where this is not installed (CUDA: not built)
    <!-- warns: PATTERN -->      its blocks raise warnings that match, and no others
    <!-- not run: REASON -->     right above a `py` block: why that is not executed
"""

from __future__ import annotations

import doctest
import fcntl
import functools
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import torch

import seqkernels
from seqkernels._extension import BUILD_CONFIG
from tests.browser import Page, path_of_chromium

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SHELLS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *sorted(ROOT.glob("examples/*/README.md"))]


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    code: str
    line: int  # of the file, of its first line
    above: str  # the line above its fence


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"(?m)^(.*)\n```(\w+)\n((?:.*\n)*?)```$", text):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(found[2], found[3], line, found[1])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run_doctest(block: Block, page: str, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.code, names, page, page, block.line - 1)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=printed.append, clear_globs=False)
    assert runner.tries > 0, f"{page}:{block.line}: no example"
    assert runner.failures == 0, "".join(printed)
    names.update(test.globs)


@pytest.mark.parametrize(
    "path", [p for p in PAGES if any(b.language in ("python", "pycon") for b in blocks(p))], ids=name_of
)
def test_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = re.findall(r"^<!-- needs: (\S+) -->$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for module in needed:
        if module != "CUDA":
            pytest.importorskip(module)
        elif not BUILD_CONFIG["cuda_targets"]:
            pytest.skip("built without CUDA")
    monkeypatch.chdir(tmp_path)
    page, names = name_of(path), {"__name__": "__main__"}
    allowed = re.findall(r"^<!-- warns: (.*) -->$", path.read_text(encoding="utf-8"), re.MULTILINE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings(
            "ignore", "The given buffer is not writable"
        )  # torch.export.load of torch 2.10
        for block in blocks(path):
            if block.language == "python":
                exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
            elif block.language == "pycon":
                run_doctest(block, page, names)
    raised = [str(warning.message) for warning in caught]
    assert [text for text in raised if not any(re.search(pattern, text) for pattern in allowed)] == []
    assert [pattern for pattern in allowed if not any(re.search(pattern, text) for text in raised)] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_what_is_not_run_says_why(path: Path) -> None:
    for block in blocks(path):
        assert block.language != "py" or re.fullmatch(r"<!-- not run: .+ -->", block.above), (
            f"{name_of(path)}:{block.line}: a reason is missing, or `python` to run it"
        )


def test_recipes_are_short() -> None:
    recipes = [path for path in PAGES if path.parent.name == "recipes"]
    assert len(recipes) >= 6
    for path in recipes:
        lines = [line for b in blocks(path) if b.language == "python" for line in b.code.splitlines() if line]
        assert 0 < len(lines) <= 40, f"{name_of(path)}: {len(lines)} lines of code"


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of every command in a shell block, and where it stands."""
    for path in SHELLS:
        for block in blocks(path):
            for n, line in enumerate(block.code.splitlines() if block.language == "sh" else ()):
                if words := [w for w in shlex.split(line, comments=True) if not re.fullmatch(r"\w+=.*", w)]:
                    yield f"{name_of(path)}:{block.line + n}", words


def test_commands_exist() -> None:
    """Targets of make, and modules that Python runs."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    seen = 0
    for where, words in commands():
        if words[0] == "make":
            seen += 1
            wrong = [word for word in words[1:] if not word.startswith("-") and word not in targets]
            assert not wrong, f"{where}: make has no {wrong}"
        elif "-m" in words:
            seen += 1
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module), f"{where}: there is no module {module}"
    assert seen > 20


# ---------------------------------------------------------------- the site


class Links(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.add(value)


def build(output: Path, *options: str, repository: str = "") -> subprocess.CompletedProcess[str]:
    for module in ("sphinx", "furo", "myst_parser", "sphinx_copybutton"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", "docs", *options]
    return subprocess.run(
        [*command, "-d", str(output / "doctrees"), ".", str(output / "html")],
        cwd=ROOT,
        env=os.environ | {"SEQKERNELS_REPOSITORY": repository},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it, built as `make docs` does: a warning is an error."""
    folder = tmp_path_factory.getbasetemp()
    output = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "site"
    with open(f"{output}.lock", "w") as lock:  # of several workers, the first one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            done = build(output, "-W", "--keep-going")
            (output / "warnings.txt").write_text(done.stderr or str(done.returncode or ""))
    assert (output / "warnings.txt").read_text() == ""
    return output / "html"


def test_no_link_is_broken(site: Path) -> None:
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 40
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[path].anchors if parts.fragment and path in pages else {parts.fragment}
            if not path.is_file() or unquote(parts.fragment) not in anchors:
                broken.append((page.name, target))
    assert broken == []


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    api = "".join(path.read_text(encoding="utf-8") for path in (site / "docs/api").glob("*.html"))
    anchors = Links(api).anchors
    for name in set(seqkernels.__all__) - {"__version__"}:
        what = getattr(seqkernels, name)
        full = f"module-seqkernels.{name}" if type(what).__name__ == "module" else f"seqkernels.{name}"
        assert full in anchors, name
        if full.startswith("module-"):
            missing = [n for n in getattr(what, "__all__", ()) if f"seqkernels.{name}.{n}" not in anchors]
            assert missing == [], name


def test_links_to_source_files(tmp_path: Path, site: Path) -> None:
    """Into the repository if its address is known; else to a copy on the site."""
    html = (site / "docs/kernels-cuda.html").read_text(encoding="utf-8")
    (link,) = (target for target in Links(html).targets if target.endswith("problem.h"))
    assert (site / "docs" / link).read_text(encoding="utf-8") == (ROOT / "csrc/cuda/problem.h").read_text(
        encoding="utf-8"
    )
    only = "-Dinclude_patterns=docs/index.md,docs/kernels-cuda.md"  # whose links to other pages lead nowhere
    build(tmp_path, only, repository="https://git.example/owner/name")
    html = (tmp_path / "html/docs/kernels-cuda.html").read_text(encoding="utf-8")
    assert "https://git.example/owner/name/blob/HEAD/csrc/cuda/problem.h" in Links(html).targets


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("extension")


def test_excerpts_of_the_readme(extension: ModuleType) -> None:
    table = "| | x | y |\n|---|---|---:|\n| 1 | 2 | 3 |\n| 4 | 5 | 6 |\n"
    text = f"## A\n### B\n[b](b/c.md) [d](https://d)\n## C\n{table}"
    section = extension.excerpt(text, "section: A")
    assert section == "## B\n[b](b/c.md) [d](https://d)"
    assert extension.relative_links(section, "docs/api").endswith("[b](../../b/c.md) [d](https://d)")
    assert extension.relative_links("[docs/a.md](docs/a.md)", "docs") == "[](a.md)"  # shown by its title
    assert extension.excerpt(text, "table: x\ncolumns: 1 3\nrows: 4") == "|  | y |\n| --- | ---: |\n| 4 | 6 |"
    for wanted in ("section: D", "table: y"):
        with pytest.raises(ValueError, match="0 parts"):
            extension.excerpt(text, wanted)


@pytest.mark.parametrize("cls", seqkernels.fusion.FUSED.values(), ids=lambda c: c.__name__)
def test_signatures_of_the_reference(cls: type[torch.nn.Module], extension: ModuleType) -> None:
    """All arguments are there, and their defaults are what a module has without them."""
    parameters = extension.full_signature(cls).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert list(parameters)[:2] == ["input_size", "hidden_size"]
    assert repr(cls(3, 4, **defaults)) == repr(cls(3, 4))
    assert {"bias", "dtype", "backend", "zoneout"} <= defaults.keys()
    assert ("recurrent_dropout" in defaults) == issubclass(cls, torch.nn.RNNBase)


def test_an_address_that_is_none(tmp_path: Path) -> None:
    done = build(tmp_path, repository="owner/name")
    assert done.returncode != 0
    assert "SEQKERNELS_REPOSITORY must be https://HOST/OWNER/NAME, got 'owner/name'" in done.stderr


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served."""
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = path_of_chromium()
    if path is None:
        pytest.skip("there is no Chromium on PATH")
    with Page(path) as opened:
        yield opened


VISITED = [
    "index.html",
    "docs/index.html",
    "docs/guide/options.html",
    "docs/recipes/attention.html",
    "docs/api/layers.html",
    "docs/performance-cpu.html",
    "docs/gallery.html",
    "examples/ner/README.html",
    "CONTRIBUTING.html",
]


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", VISITED)
def test_pages_in_a_browser(name: str, width: int, page: Page, address: str) -> None:
    """No error, no request that fails, no picture that is missing, and nothing wider than the window."""
    page.resize(width, 900)
    page.errors.clear()
    page.open(f"{address}/{name}")
    page.until("document.title.includes('seqkernels') && document.querySelector('h1') !== null")
    page.until("[...document.images].every(i => i.complete)")
    missing = "[...document.images].filter(i => i.naturalWidth === 0).map(i => i.src)"
    assert page.evaluate(missing) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.errors == []


def test_the_search_finds(page: Page, address: str) -> None:
    page.errors.clear()
    page.open(f"{address}/search.html?q=reset_mask")
    page.until("document.querySelector('#search-results a[href*=\"docs/guide/resets.html\"]') !== null")
    page.open(f"{address}/search.html?q=xyzzyplugh")
    page.until("document.querySelector('#search-results').textContent.includes('did not match')")
    assert page.errors == []


def test_the_theme_changes(page: Page, address: str) -> None:
    page.resize(1400, 900)
    page.open(f"{address}/docs/index.html")
    shades = set()
    for _ in range(3):  # furo goes through automatic, light and dark
        page.evaluate("document.querySelector('.content-icon-container .theme-toggle').click()")
        theme = page.evaluate("document.body.dataset.theme")
        shades.add((theme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert {theme for theme, _ in shades} == {"auto", "light", "dark"}
    colors = dict(shades)
    assert colors["light"] != colors["dark"]
