"""Runs all programs at their default settings and collects what they print and draw in docs/gallery.md.

python -m examples.gallery              # all six, some minutes; likewise `make examples`
python -m examples.gallery ner          # one; the page keeps the others as they were
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {
    "sentiment": "Tweet sentiment",
    "language_model": "Language models",
    "ner": "Named entities",
    "duplicates": "Duplicate questions",
    "gradients": "Vanishing and exploding gradients",
    "memory_task": "A task that needs memory",
}
HEAD = """# What the examples learn

Made by `make examples`: each program, trained at its default settings on one CPU thread. The first four learn
from data that their own generators made, not from the world; the others' tasks are random numbers by
definition. Every number and picture here is what the command above it printed and drew.
"""


def section(name: str, pictures: Path) -> str:
    """Train one program; its part of the page."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", f"examples.{name}", "train", "--out", folder]
        print(f"{PROGRAMS[name]}: python -m examples.{name} train", flush=True)
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            sys.exit(f"{' '.join(command)} ended with {run.returncode}")
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(folder, f"{name}.png"), pictures / f"{name}.png")
    readme = (ROOT / "examples" / name / "README.md").read_text(encoding="utf-8")
    about = readme.split("\n\n")[1]  # the paragraph after the title
    return f"""## {PROGRAMS[name]}

{about}

```sh
python -m examples.{name} train
```

![{PROGRAMS[name]}]({pictures.name}/{name}.png)

```
{tables(run.stdout)}
```

[How it works](../examples/{name}/README.md)
"""


def tables(printed: str) -> str:
    """What a program printed from its first table on, without where it put the picture."""
    lines = [line.rstrip() for line in printed.splitlines() if not line.startswith("picture:")]
    first = next((n for n, line in enumerate(lines) if line.startswith("┏")), 1)
    return "\n".join(lines[first - 1 :])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m examples.gallery", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROGRAMS)} (default: all)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "gallery.md", metavar="MD")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - PROGRAMS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    page = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
    kept = {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in page.split("\n## ")[1:]}
    for name in options.names or PROGRAMS:
        kept[PROGRAMS[name]] = section(name, options.page.with_suffix(""))
        ordered = [kept[title] for title in PROGRAMS.values() if title in kept]
        options.page.write_text("\n".join([HEAD, *ordered]), encoding="utf-8")
    print(f"page: {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
