"""What the site does beside Sphinx: excerpts of the README, links to source files, signatures of classes."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from typing_extensions import get_overloads

import seqkernels

ROOT = Path(__file__).parents[1]
FUSED = {f"seqkernels.{fused.__name__}": fused for fused in seqkernels.fusion.FUSED.values()}


def excerpt(text: str, wanted: str) -> str:
    """A part of a Markdown file.

    Args:
        text: The file.
        wanted: `section: TITLE`, what is below a heading of the second level, headings in it one level up.
            Or `table: CELL`, the table whose head has that cell as the first one that is not empty; then,
            each on a line of its own and if not all of it is wanted, `columns: NUMBERS` counted from 1 and
            `rows: PATTERN` that their first cell matches.

    Raises:
        ValueError: There is not exactly one such part.
    """
    options = dict(line.strip().split(": ", 1) for line in wanted.strip().splitlines())
    if title := options.get("section"):
        found = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    else:
        found = re.findall(
            rf"^\|(?: *\|)* {re.escape(options['table'])} \|.*\n(?:\|.*\n)+", text, re.MULTILINE
        )
    if len(found) != 1:
        raise ValueError(f"the README has {len(found)} parts that are {wanted.strip()!r}, not one")
    if title:
        return re.sub(r"^#(#+ )", r"\1", found[0], flags=re.MULTILINE).strip()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[0].splitlines()]
    rows[2:] = [row for row in rows[2:] if re.search(options.get("rows", ""), row[0])]
    columns = [int(n) - 1 for n in options.get("columns", "").split()] or range(len(rows[0]))
    return "\n".join("| " + " | ".join(row[n] for n in columns) + " |" for row in rows)


def relative_links(text: str, folder: str) -> str:
    """Links of the README, for a page in `folder`; those that show a path show the page's title instead."""

    def link(match: re.Match[str]) -> str:
        shown, target = match[1], match[2]
        return f"[{'' if shown == target else shown}]({os.path.relpath(target, folder)})"

    return re.sub(r"\[([^]]*)\]\((?!https?:|#)([^)]+)\)", link, text)


def include_excerpts(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts an excerpt of the README where a page has `<!-- README ... -->`."""

    def replace(match: re.Match[str]) -> str:
        app.env.note_dependency(str(ROOT / "README.md"))
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        return relative_links(excerpt(text, match[1]), os.path.dirname(docname))

    source[0] = re.sub(r"^<!-- README\s(.*?)-->$", replace, source[0], flags=re.MULTILINE | re.DOTALL)


class LinksIntoTheRepository(SphinxTransform):
    """Files that are no pages of the site, by their address in the repository if it is known."""

    default_priority = 1  # before the copies are collected

    def apply(self, **kwargs: Any) -> None:
        repository = self.config.repository
        for link in list(self.document.findall(addnodes.download_reference)) if repository else ():
            path = Path(self.env.relfn2path(link["reftarget"], self.env.docname)[1])
            if path.is_file():  # else Sphinx warns
                address = f"{repository}/blob/HEAD/{path.relative_to(ROOT).as_posix()}"
                link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def positional(cls: type) -> list[inspect.Parameter]:
    """The arguments of the namesake in torch.nn, which spells them out in an overload."""
    theirs = next(base for base in cls.__mro__ if base.__module__.startswith("torch.")).__init__
    return list(inspect.signature((get_overloads(theirs) or [theirs])[0]).parameters.values())[1:]


def full_signature(cls: type) -> inspect.Signature:
    """What a fused class takes: the arguments of its namesake, then the options that its bases add."""
    options: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("seqkernels.") and (own := vars(base).get("__init__")):
            for p in inspect.signature(own, eval_str=True).parameters.values():
                if p.kind is p.KEYWORD_ONLY:
                    options[p.name] = p
    return inspect.Signature([*positional(cls), options.pop("backend"), *options.values()])


# Now, for autodoc leaves signatures of its own at functions that it has seen.
SIGNATURES = {name: str(full_signature(cls)) for name, cls in FUSED.items()}


def sign(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """The signature that autodoc shows."""
    return (SIGNATURES[name], None) if what == "class" and name in FUSED else None


def name_arguments(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Of a fused class, `*args, **kwargs` of the docstring by the names that its signature has."""
    if what == "class" and name in FUSED:
        names = [p.name for p in positional(obj)]
        lines[:] = [line.replace("*args, **kwargs:", f"{names[0]}, …, {names[-1]}:") for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_config_value("repository", "", "env", types=(str,))
    app.add_transform(LinksIntoTheRepository)
    app.connect("source-read", include_excerpts)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", name_arguments, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
