"""The site: a first page, notebooks as stored (nothing is run), commands, library, data card, how to contribute.

`make site` builds it with Sphinx, MyST-NB and the theme of Jupyter Book into build/site; every warning is an error.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import toy
from books import exercises, lessons
from index import facts, install_cell, repository_url

import tt_lib
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.solvers.registry import SOLVERS
from tt_lib.study.page import claim

project = "TimeTuner, taught and measured"
author = "The TimeTuner lessons authors"
copyright = author
root_doc = "notebooks/site/index"
# Formulas show without a network: MathJax lies in the site itself.
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx-mathjax-offline"]
include_patterns = [
    "README.md",
    "data/README.md",
    "data/results/README.md",
    "notebooks/**.ipynb",
    "notebooks/**/*.ipynb",
    "notebooks/README.md",
    "notebooks/TEACHING.md",
    "notebooks/commands.md",
    "notebooks/site/index.md",
    "notebooks/site/reference.md",
    ".github/CONTRIBUTING.md",
]
exclude_patterns = [".venv*", "build", "runs", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # plain CommonMark has no tables
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = project
html_extra_path = ["extra"]
html_static_path = ["static"]
html_css_files = ["figures.css"]
html_theme_options = {
    "repository_url": repository_url(),
    "use_repository_button": True,
    "show_toc_level": 2,
    "navbar_persistent": [],
}


def _contents() -> str:
    """The tables of contents, which the pages themselves need not have."""
    parts = {
        "Notebooks": ["notebooks/README", *(f"notebooks/{path.stem}" for path in lessons())],
        "Exercises": [f"notebooks/exercises/{path.stem}" for path in exercises()],
        "Reference": [
            "notebooks/commands",
            "notebooks/TEACHING",
            "notebooks/site/reference",
            "README",
            "data/README",
            "data/results/README",
            ".github/CONTRIBUTING",
        ],
    }
    return "".join(
        "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n/" + "\n/".join(pages) + "\n```\n"
        for caption, pages in parts.items()
    )


def _first_page() -> dict[str, str]:
    """What stands in the place of the first page's comments."""
    frame = read_rows(PACKAGE_ROOT / "data" / "results" / "fd.csv", FD_COLUMNS)
    path = [
        f"- [{each.name[:2]} {facts(each)['title']}](../{each.name}). {facts(each)['teaches']}" for each in lessons()
    ]
    return {
        "<!-- claim -->": claim(frame),
        "<!-- toy -->": "```{raw} html\n" + toy.html(toy.make()) + "\n```",
        "<!-- path -->": "\n".join(path),
    }


def _reference() -> str:
    """The docstrings of the public names, in the order of ``tt_lib``, and of the solvers, each once."""
    public = {name: getattr(tt_lib, name) for name in tt_lib.__all__}
    solvers = {solver.function.__name__: solver.function for solver in SOLVERS.values()}
    parts = []
    for title, items in (("Names of tt_lib", public), ("Solvers", solvers)):
        parts.append(f"## {title}\n")
        for item in items.values():
            kind = "autoclass" if isinstance(item, type) else "autofunction"
            members = "   :members:\n" if kind == "autoclass" else ""
            parts.append(f"```{{eval-rst}}\n.. {kind}:: {item.__module__}.{item.__name__}\n{members}```\n")
    return "\n".join(parts)


def read(app, docname, source):
    """Write the contents and the reference; fold install cells; give each stored figure its stored description."""
    if docname == root_doc:
        for comment, text in _first_page().items():
            source[0] = source[0].replace(comment, text)
        source[0] += _contents()
    elif docname == "notebooks/site/reference":
        source[0] += _reference()
    elif app.env.doc2path(docname, base=False).suffix == ".ipynb":
        book = json.loads(source[0])
        for cell in book["cells"]:
            if "".join(cell["source"]) == install_cell():
                cell["metadata"]["tags"] = ["hide-input"]
            alts = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in cell.get("outputs", [])]
            if any(alts):
                cell["metadata"]["mystnb"] = {"image": {"alt": next(filter(None, alts))}}
        source[0] = json.dumps(book)


def setup(app):
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
