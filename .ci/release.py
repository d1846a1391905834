#!/usr/bin/env python3
"""Whether what is about to be published is the release that its tag names.

    .ci/release.py v1.2.0         the tag against the package, CHANGELOG.md and CITATION.cff
    .ci/release.py v1.2.0 dist    and the files to be published: one wheel, one source archive

Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEEL = "manylinux_2_28_x86_64"  # the one platform that wheels are built for


def found(pattern: str, path: Path) -> str:
    """The first group of the one place in a file that matches; a line of its own kind where there is none."""
    matches = re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return matches[0] if len(matches) == 1 else f"{len(matches)} lines like {pattern}"


def problems(root: Path, tag: str, files: Path | None = None) -> list[str]:
    """What contradicts the tag, one line each.

    Args:
        root: The project's folder.
        tag: Such as "v1.2.0".
        files: A folder with the files to be published, all of them.
    """
    version = found(r'^__version__ = "(.+)"$', root / "seqkernels" / "__init__.py")
    lines = []
    if tag != f"v{version}":
        lines.append(f"the tag is {tag}, seqkernels.__version__ is {version}: expected v{version}")
    dated = found(rf"^## \[{re.escape(version)}\] - (.+)$", root / "CHANGELOG.md")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", dated):
        lines.append(f"CHANGELOG.md: expected '## [{version}] - YYYY-MM-DD', got '{dated}'")
    cited = found(r"^version: (.+)$", root / "CITATION.cff")
    if cited.strip("\"'") != version:
        lines.append(f"CITATION.cff: expected version {version}, got {cited}")
    if files is not None:
        names = sorted(path.name for path in files.iterdir())
        wheel = rf"seqkernels-{re.escape(version)}-[\w.]+-[\w.]+-[\w.]*{WHEEL}[\w.]*\.whl"
        archive = rf"seqkernels-{re.escape(version)}\.tar\.gz"
        kinds = [[name for name in names if re.fullmatch(kind, name)] for kind in (wheel, archive)]
        if [len(kind) for kind in kinds] != [1, 1] or len(names) != 2:
            lines.append(
                f"{files}: expected one wheel of {version} for {WHEEL} and one source archive, got {names}"
            )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tag")
    parser.add_argument("files", type=Path, nargs="?", help="a folder with what is to be published")
    options = parser.parse_args()
    lines = problems(ROOT, options.tag, options.files)
    print("\n".join(lines) or f"{options.tag} is what it says")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
