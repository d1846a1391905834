"""GitHub's workflows and forms are valid and name what there is; the scripts in .ci/ do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

yaml = pytest.importorskip("ruamel.yaml", reason="reads the workflows")

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = [GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature", "performance")]
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": FORMS,
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "dependabot": [GITHUB / "dependabot.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# What pyproject.toml admits; the oldest of it stands there.
PYTHONS = SpecifierSet(re.findall(r'^requires-python = "(.+)"', PYPROJECT, re.MULTILINE)[0])
TORCHES = Requirement(re.findall(r'^dependencies = \["(torch.+?)"', PYPROJECT, re.MULTILINE)[0]).specifier

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def read(path: Path) -> dict[str, Any]:
    return yaml.YAML(typ="safe").load(path)


def oldest(versions: SpecifierSet) -> Version:
    (only,) = versions
    assert only.operator == ">="
    return Version(only.version)


def jobs(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Each job, once for each row of its matrix, with the row."""
    for job in read(path)["jobs"].values():
        for row in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            yield job, row


def filled(text: str, row: dict[str, str]) -> str:
    """With the values of a matrix's row in their places."""
    return re.sub(r"\$\{\{ matrix\.([\w-]+) \}\}", lambda found: row[found[1]], text)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each command that a workflow runs."""
    for job, row in jobs(path):
        for step in job["steps"]:
            for line in step.get("run", "").splitlines():
                yield shlex.split(filled(line, row))


# ---------------------------------------------------------------- tools that know GitHub's rules


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_their_schemas(schema: str) -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*command, *SCHEMAS[schema]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_of_workflows_has_nothing_to_say() -> None:
    pytest.importorskip("jactionlint")
    command = [sys.executable, "-m", "jactionlint", "--strict-exit", "--no-color"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- what workflows name


@each_workflow
def test_targets_and_variables_of_make_are_there(path: Path) -> None:
    """make takes a variable that it does not know without a word."""
    targets = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    variables = re.findall(r"\$\(([A-Z][A-Z0-9_]*)\)", MAKEFILE)
    for words in commands(path):
        if words[0] == "make":
            assert len(words) > 1
            for word in words[1:]:
                name, given, _ = word.partition("=")
                assert name in (variables if given else targets), shlex.join(words)


@each_workflow
def test_files_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"\.ci/[\w-]+(?:\.py)?", text):
        assert os.access(ROOT / name, os.X_OK), name
    named = re.findall(r"requirements[\w*-]*\.txt|(?<=cache-dependency-path: ).+", text)
    for name in named:
        assert list(ROOT.glob(name)), name


@each_workflow
def test_pythons_and_torches_are_supported(path: Path) -> None:
    for job, row in jobs(path):
        for python in re.findall(r"python-version': '([\d.]+)'|python(3\.\d+)", filled(str(job), row)):
            assert PYTHONS.contains("".join(python)), python
    for words in commands(path):
        for torch in re.findall(r"(?:TORCH=|torch==)(\S+)", " ".join(words)):
            if torch[0].isdigit():
                assert TORCHES.contains(torch), torch
            else:
                assert oldest(TORCHES) <= oldest(Requirement(torch).specifier), torch


@pytest.mark.parametrize("workflow", ["test.yml", "wheels.yml"])
def test_the_oldest_python_and_torch_are_tested(workflow: str) -> None:
    rows = [row for _, row in jobs(GITHUB / "workflows" / workflow) if row]
    assert min(Version(row["python"]) for row in rows) == oldest(PYTHONS)
    releases = [Version(row["torch"]) for row in rows if row["torch"][0].isdigit()]
    assert min(releases).release[:2] == oldest(TORCHES).release
    makefile = re.findall(r"^TORCH \?= (.+)", MAKEFILE, re.MULTILINE)[0]
    assert max(releases) >= Version(makefile)


@each_workflow
def test_jobs_end_and_may_do_little(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 150, name
        assert "permissions" not in job or (name == "publish" and "environment" in job), name
        if "self-hosted" in job["runs-on"]:  # strangers' code must not get there
            assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
            assert "vars.GPU_RUNNER" in job["if"]


@each_workflow
def test_scripts_live_where_they_can_be_run(path: Path) -> None:
    for job, _ in jobs(path):
        for step in job["steps"]:
            assert len(step.get("run", "").splitlines()) <= 3, step


def test_the_guide_names_every_workflow() -> None:
    section = (
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## What CI does\n")[1].split("\n## ")[0]
    )
    assert {path.name for path in WORKFLOWS} == set(re.findall(r"`(\w+\.yml)`", section))
    for path in re.findall(r"`(\.ci/[\w.-]+)", section):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_the_build_and_the_kernel(path: Path) -> None:
    fields = [field for field in read(path)["body"] if field["type"] == "textarea"]
    for wanted in ("python -m seqkernels", "explain"):
        asking = [field for field in fields if wanted in str(field["attributes"])]
        assert asking, wanted
        assert path.stem == "feature" or any(field["validations"]["required"] for field in asking), wanted


# ---------------------------------------------------------------- .ci/release.py


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = {
    "seqkernels/__init__.py": 'from . import init\n\n__version__ = "1.2.0"\n',
    "CHANGELOG.md": "# Changelog\n\n## [1.2.0] - 2030-01-31\n\n## [1.1.0] - 2029-01-31\n",
    "CITATION.cff": "cff-version: 1.2.0\nversion: 1.2.0\n",
    "dist/seqkernels-1.2.0.tar.gz": "",
    "dist/seqkernels-1.2.0-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl": "",
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_release_is_what_its_tag_says(release: ModuleType, tmp_path: Path) -> None:
    written(tmp_path, FILES)
    assert release.problems(tmp_path, "v1.2.0") == []
    assert release.problems(tmp_path, "v1.2.0", tmp_path / "dist") == []
    for tag in ("1.2.0", "v1.2", "v1.2.0rc1", "v1.1.0"):
        assert release.problems(tmp_path, tag) == [
            f"the tag is {tag}, seqkernels.__version__ is 1.2.0: expected v1.2.0"
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("seqkernels/__init__.py", '__version__ = "1.3.0"\n', "seqkernels.__version__ is 1.3.0"),
        ("seqkernels/__init__.py", "", "0 lines like"),
        ("CHANGELOG.md", "## [1.2.0] - unreleased\n", "got 'unreleased'"),
        ("CHANGELOG.md", "## [1.1.0] - 2029-01-31\n", "got '0 lines like"),
        ("CITATION.cff", "version: 1.1.0\n", "CITATION.cff: expected version 1.2.0, got 1.1.0"),
        ("dist/seqkernels-1.2.0-cp310-cp310-manylinux_2_28_x86_64.whl", "", "expected one wheel"),
        ("dist/seqkernels-1.1.0.tar.gz", "", "expected one wheel"),
        ("dist/notes.txt", "", "expected one wheel"),
    ],
)
def test_what_contradicts_the_tag_is_told(
    name: str, text: str, message: str, release: ModuleType, tmp_path: Path
) -> None:
    written(tmp_path, {**FILES, name: text})
    assert message in "\n".join(release.problems(tmp_path, "v1.2.0", tmp_path / "dist"))


@pytest.mark.parametrize("missing", [name for name in FILES if name.startswith("dist/")])
def test_both_kinds_of_files_are_published(missing: str, release: ModuleType, tmp_path: Path) -> None:
    written(tmp_path, FILES)
    (tmp_path / missing).rename(tmp_path / "dist" / "seqkernels-1.2.0-cp310-cp310-linux_x86_64.whl")
    (line,) = release.problems(tmp_path, "v1.2.0", tmp_path / "dist")
    assert "one wheel of 1.2.0 for manylinux_2_28_x86_64 and one source archive" in line


def test_the_citation_is_of_this_version(release: ModuleType) -> None:
    """What only the day of a release decides is the changelog's date."""
    version = re.findall(
        r'^__version__ = "(.+)"', (ROOT / "seqkernels/__init__.py").read_text(), re.MULTILINE
    )[0]
    for line in release.problems(ROOT, f"v{version}"):
        assert re.fullmatch(r"CHANGELOG.md: expected .*, got 'unreleased'", line)


# ---------------------------------------------------------------- objects from the cache


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project under git that ninja builds, with the scripts of .ci/."""
    if not all(map(shutil.which, ("git", "cc"))):
        pytest.skip("needs git and cc")
    rule = "rule cc\n  command = cc -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
    files = {
        ".gitignore": "build/\n",
        "csrc/a.c": '#include "a.h"\nint a(void) { return A; }\n',
        "csrc/a.h": "#define A 1\n",
        "setup.py": "\n",
        "tests/kernels/module.cpp": "\n",
        "seqkernels/__init__.py": "\n",
        "requirements.txt": "ninja\n",
        "Makefile": "TORCH ?= 2.10.0\n",
        "build/temp/build.ninja": f"{rule}build a.o: cc ../../csrc/a.c\n",
    }
    written(tmp_path, files)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@example.org commit -qm a"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def run(checkout: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    build = re.compile(r"(SEQKERNELS_|CXX|CUDA_HOME|NVCC_CCBIN|TORCH)")  # what the key is of
    inherited = {name: value for name, value in os.environ.items() if not build.match(name)}
    return subprocess.run(
        command, cwd=checkout, env={**inherited, **environment}, capture_output=True, text=True
    )


def test_cached_objects_are_taken(checkout: Path) -> None:
    ninja = (sys.executable, "-m", "ninja", "-C", "build/temp")
    assert run(checkout, *ninja).returncode == 0
    for path in (checkout / "csrc").iterdir():  # as a later checkout has them
        os.utime(path)
    assert "no work to do" not in run(checkout, *ninja, "-n").stdout
    assert run(checkout, ".ci/take-objects").returncode == 0
    assert "no work to do" in run(checkout, *ninja, "-n").stdout


def test_the_key_is_of_all_that_objects_are_made_of(checkout: Path) -> None:
    def key(**environment: str) -> str:
        done = run(checkout, ".ci/build-key", PYTHON3=sys.executable, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = key()
    assert re.fullmatch(r"build-[0-9a-f]{32}\n", first)
    assert key() == first
    keys = [first, key(CXXFLAGS="-O0"), key(SEQKERNELS_WITH_CUDA="0"), key(TORCH="2.14.1")]
    for name in ("csrc/a.h", "setup.py", "requirements.txt", "tests/kernels/module.cpp", "Makefile"):
        (checkout / name).write_text("/* another */\n", encoding="utf-8")
        refused = run(checkout, ".ci/build-key")
        assert refused.returncode == 1
        assert "files differ from the last commit" in refused.stderr
        run(checkout, "git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qam", name)
        keys.append(key())
    assert len(set(keys)) == len(keys)
    for broken in ({"PYTHON3": "/nowhere/python"}, {"CXX": "/nowhere/g++"}):
        assert run(checkout, ".ci/build-key", **broken).returncode != 0
