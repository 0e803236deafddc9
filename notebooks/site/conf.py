"""The site: README, notebooks as they are stored (nothing is run), commands, data card, how to contribute.

`make site` builds it with Sphinx, MyST-NB and the theme of Jupyter Book into build/site; every warning is an error.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from books import exercises, lessons
from index import repository_url

project = "TimeTuner, taught and measured"
author = "The TimeTuner lessons authors"
copyright = author
root_doc = "README"
extensions = ["myst_nb"]
include_patterns = [
    "README.md",
    "data/README.md",
    "data/results/README.md",
    "notebooks/**.ipynb",
    "notebooks/**/*.ipynb",
    "notebooks/README.md",
    "notebooks/commands.md",
    ".github/CONTRIBUTING.md",
]
exclude_patterns = [".venv*", "build", "runs", "**/.ipynb_checkpoints"]

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

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
        "Reference": ["notebooks/commands", "data/README", "data/results/README", ".github/CONTRIBUTING"],
    }
    return "".join(
        "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in parts.items()
    )


def read(app, docname, source):
    """Add the contents to the first page, and to each stored figure the description that is stored with it."""
    if docname == root_doc:
        source[0] += _contents()
    elif app.env.doc2path(docname, base=False).suffix == ".ipynb":
        book = json.loads(source[0])
        for cell in book["cells"]:
            alts = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in cell.get("outputs", [])]
            if any(alts):
                cell["metadata"]["mystnb"] = {"image": {"alt": next(filter(None, alts))}}
        source[0] = json.dumps(book)


def setup(app):
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
