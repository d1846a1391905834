"""The documentation site: `make docs` builds it into out/docs/html.

The source folder of the site is the root of the repository, so that links between its Markdown files, such as
`../benchmarks/results/options.md`, are the same on the site as in the repository. Pages are the files that
match `include_patterns`. A link to any other file, source code as a rule, leads into the repository where
SEQKERNELS_REPOSITORY has its address (https://HOST/OWNER/NAME); without one, to a copy that the site carries.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.errors import ConfigError

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import seqkernels  # noqa: E402

repository = os.environ.get("SEQKERNELS_REPOSITORY", "").rstrip("/")
if repository and not re.fullmatch(r"https://[^/\s]+/[^/\s]+/[^/\s]+", repository):
    raise ConfigError(f"SEQKERNELS_REPOSITORY must be https://HOST/OWNER/NAME, got {repository!r}")

project = "seqkernels"
author = copyright = "seqkernels contributors"
version = release = seqkernels.__version__
language = "en"

root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "benchmarks/results/*.md",
    "examples/*/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "out", "dist", "csrc", "tests", "seqkernels"]
# An older run than that of docs/performance-cpu.md, and anything that `make bench QUICK=1` leaves.
exclude_patterns += ["benchmarks/results/cpu.md", "benchmarks/results/quick*.md"]
# Pages about a part that this tree does not have.
exclude_patterns += [
    f"docs/api/{path.name}"
    for path in sorted((DOCS / "api").glob("*.md"))
    for module in re.findall(r"^\.\. automodule:: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    if importlib.util.find_spec(module) is None
]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "extension",
]
nitpicky = True
# Code in single quotes in docstrings is a link where it is a name of this package; types may be torch's.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"(torch|collections|os)\..*|seqkernels\..*\.(Model|Recurrent|Change|LeftAlone)"),
]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block", "colon_fence"]

autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Shapes", "params_style"),
    ("Args of forward beside input and state", "params_style"),
]
napoleon_use_param = False  # one entry for several names, as they are written
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "seqkernels"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["style.css"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = html_show_sourcelink = False
html_show_copyright = html_show_sphinx = False
pygments_style, pygments_dark_style = "friendly", "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
COLORS = {"light": ("#0b6a8f", "#0b6a8f"), "dark": ("#6ec1e4", "#6ec1e4")}
html_theme_options: dict[str, Any] = {
    f"{theme}_css_variables": {"color-brand-primary": primary, "color-brand-content": content}
    for theme, (primary, content) in COLORS.items()
}
html_theme_options["top_of_page_buttons"] = ["view"] if repository else []
if repository:
    html_theme_options |= {"source_repository": repository, "source_branch": "HEAD", "source_directory": ""}
