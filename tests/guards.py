"""Guards over the notebooks. Each is a small function of (path, notebook) that yields what is wrong, one line each.

``LESSON`` guards lessons, ``EVERY`` exercises and solutions as well. test_notebooks.py runs them over the repository,
and each on a notebook that is broken in its way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import times
from books import NAME, code, lessons, read, skipped
from declared import DEPENDENCIES, imported, undeclared
from index import FIELDS, REPOSITORY, TIME, colab_badge, install_cell

from tt_lib.files import PACKAGE_ROOT

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|mnt|Users)/\w")
ALT = 20
"""Letters that a figure's description has at least."""
NEEDS = "**What it needs.**"
LONGEST = 30.0
"""Seconds that a cell may have taken when the times were written; a test runs it without a clock."""
HEADINGS = ("**What it teaches.**", NEEDS, TIME)
HIDDEN = {"outputs_hidden": True}
"""What JupyterLab goes by where the site goes by the tag hide-output."""
CONSTANT = "<!-- constant -->"
"""In a line of text: its numbers are settings or mathematics, not measurements."""


def texts(book: Any) -> Iterator[str]:
    """The sources of the text cells."""
    return (cell.source for cell in book.cells if cell.cell_type == "markdown")


def outputs(book: Any) -> Iterator[Any]:
    return (output for cell in code(book) for output in cell.outputs)


def root(path: Path) -> Path:
    """The folder ``notebooks/`` that a notebook lies in or under."""
    return path.parent.parent if path.parent.name == "exercises" else path.parent


def paragraph(book: Any, heading: str) -> str:
    """What follows a heading in bold in the first cell, up to the next blank line."""
    return book.cells[0].source.partition(heading)[2].split("\n\n")[0]


# ---- as stored


def executed_from_top_to_bottom(path, book):
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(counts)}; run it from top to bottom and save it"


def no_error_or_warning(path, book):
    for output in outputs(book):
        if output.output_type == "error":
            yield f"an error is stored: {output.ename}: {output.evalue}"
        elif output.get("name") == "stderr":
            yield f"stderr is stored: {output.text[:80]!r}"


def skipped_cells_store_no_output(path, book):
    for cell in code(book):
        if skipped(cell) and cell.outputs:
            yield f"a cell that the tests skip stores an output that nothing compares: {cell.source[:60]!r}"


def metadata_is_ours(path, book):
    extra = set(book.metadata) - {"kernelspec", "language_info", "tt"}
    if extra:
        yield f"metadata has {', '.join(sorted(extra))} besides kernelspec, language_info and tt"
    for cell in book.cells:
        hidden = "hide-output" in cell.metadata.get("tags", ())
        if set(cell.metadata) - {"tags", *(["jupyter"] if hidden else [])}:
            yield f"cell {cell.id} has metadata {', '.join(sorted(cell.metadata))}"
        if hidden and cell.metadata.get("jupyter") != HIDDEN:
            yield f"cell {cell.id} is folded on the site and not in JupyterLab; give it the metadata jupyter {HIDDEN}"


def no_path_of_a_machine(path, book):
    for place in MACHINE_PATH.findall(path.read_text(encoding="utf-8")):
        yield f"it names {place}..., a machine's path"


# ---- figures


def figures_have_alt_text(path, book):
    for output in outputs(book):
        for kind in output.get("data", {}):
            if kind.startswith("image/") and len(output.metadata.get(kind, {}).get("alt", "")) <= ALT:
                yield f"a figure ({kind}) has no alt text; show it with tt_lib.figures.style.show(figure, alt=...)"
    for source in texts(book):
        for alt in re.findall(r"!\[([^\]]*)\]\(", source) + re.findall(
            r"<img\b(?![^>]*\balt=\"[^\"]+\")[^>]*()>", source
        ):
            if not alt.strip():
                yield "a picture in the text has no alt text"


def has_a_figure(path, book):
    if not any(kind.startswith("image/") for output in outputs(book) for kind in output.get("data", {})):
        yield "it shows no figure"


# ---- the top


def begins_with_badge(path, book):
    if colab_badge(path.relative_to(root(path)).as_posix()) not in book.cells[0].source:
        yield "the first cell has no Colab badge of its own; run python notebooks/tools/index.py"


def begins_with_headings(path, book):
    for heading in HEADINGS:
        if len(paragraph(book, heading).strip()) < 10:
            yield f"the first cell says nothing under {heading}"


def first_code_installs(path, book):
    cells = code(book)
    if not cells or cells[0].source != install_cell():
        yield "the first code cell is not the install cell; run notebooks/tools/index.py, or copy it from notebook 00"


def metadata_describes_it(path, book):
    tt = book.metadata.get("tt", {})
    missing = [name for name in FIELDS if name not in tt]
    if missing:
        yield f"metadata tt has no {', '.join(missing)}"
    elif not book.cells[0].source.startswith(f"# {path.name[:2]} {tt['title']}\n"):
        yield f"file, title and metadata differ: {path.name}, {book.cells[0].source.splitlines()[0]!r}, {tt['title']}"


def has_a_budget_for_each_cell(path, book):
    budget = times.load(root(path)).get(path.relative_to(root(path)).as_posix(), [])
    if len(budget) != len(code(book)):
        yield "budgets.toml has not a budget for each code cell; run python notebooks/tools/times.py"
    if max(budget, default=0) > LONGEST:
        yield f"a cell took {max(budget):.0f} s at TT_SCALE=ci and may take {LONGEST:.0f} s; make it smaller there"


def prerequisites(path, book):
    """metadata tt.needs are earlier lessons, in order; **What it needs.** links each of them and no other."""
    needs = list(book.metadata.get("tt", {}).get("needs", ()))
    names = {each.name[:2]: each.name for each in lessons(root(path))}
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)", paragraph(book, NEEDS))
    if needs != sorted(set(needs)):
        yield f"tt.needs {needs} is not in order"
    for number in needs:
        if number not in names:
            yield f"it needs {number}, which is missing"
        elif number >= path.name[:2]:
            yield f"it needs {number}, which comes later"
        elif names[number] not in linked:
            yield f"it needs {number}, and {NEEDS} has no link to it"
    for name in linked:
        if name[:2] not in needs:
            yield f"{NEEDS} links {name}, which is unused: tt.needs does not hold {name[:2]}"


# ---- prose


NOT_PROSE = re.compile(
    r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$]*\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|<!--.*?-->|<[^>]*>|\]\([^)]*\)|https?://\S+"
    r"|\barXiv[: ]\d{4}\.\d{4,5}",
    re.S | re.I,
)
UNIT = (
    r"%|per cent|percent|°|degrees?|times|±|ns|µs|ms|s|seconds?|min|minutes?|h|hours?|GB|GiB|MB|MiB|TFLOP/s"
    r"|images (?:a|per) second|images/s"
)
MEASURED = re.compile(rf"(?<![\w.,])(?:\d+\.\d{{2,}}(?![\d.])|\d+(?:,\d{{3}})*(?:\.\d+)? ?(?:{UNIT})(?![\w/]))")


def numbers_come_from_rows(path, book):
    """Text has no decimals of two or more digits and no numbers with a unit: ``prose`` and ``fact`` write those."""
    for source in texts(book):
        # Marked lines go first: their text may hold code and formulas.
        kept = "\n".join(line for line in source.splitlines() if CONSTANT not in line)
        for number in MEASURED.findall(NOT_PROSE.sub(" ", kept)):
            yield f"{number!r} looks measured; write it with prose(f'... {{fact(...)}}'), or mark its line {CONSTANT}"


# ---- links


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and as Jupyter make them."""
    anchors = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.+?)\s*$", re.sub(r"```.*?```", "", text, flags=re.S)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*_]", r"\1", heading)
        anchors |= {heading.replace(" ", "-"), re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")}
    return anchors


OWN_ADDRESS = re.compile(
    rf"^https://(?:github\.com|colab\.research\.google\.com/github)/{REPOSITORY}/(?:blob|tree)/main/"
)


def links_lead_somewhere(path, book):
    links = r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\""
    for target in ("".join(groups) for source in texts(book) for groups in re.findall(links, source)):
        # An address of the project's own pages leads to a file here.
        inner = OWN_ADDRESS.sub("//", target)
        if re.match(r"[a-z]+:", inner):
            continue
        file, _, anchor = inner.partition("#")
        there = PACKAGE_ROOT / file[2:] if file.startswith("//") else path.parent / file if file else path
        if NAME.fullmatch(there.name) and there.resolve() == path.resolve():
            there = path
        if not there.exists():
            yield f"the link {target} is dead"
        elif anchor and there.suffix in (".ipynb", ".md"):
            page = book if there == path else read(there) if there.suffix == ".ipynb" else None
            if anchor not in slugs("\n\n".join(texts(page)) if page else there.read_text(encoding="utf-8")):
                yield f"the link {target} is dead: no such heading"


# ---- imports


def imports_are_declared(path, book):
    for cell in code(book):
        source = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", cell.source)
        for name, _ in sorted(imported(source)):
            if undeclared(name, DEPENDENCIES):
                yield f"{name} is imported and no dependency in pyproject.toml"


# ---- one sitting


REWRITTEN = ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10")
"""Lessons that keep the rules of this part, as their exercises keep those on code."""
WORDS, LINE, LINES, SLIDERS = 1500, 100, 25, 1_500_000
"""Most words of a lesson, characters of a line of code, lines of a cell, and bytes of a lesson's players."""
QUESTIONS, CLAIMS, PREDICTION = "## Questions", "## What you may now claim", "**Before you run the next cell:**"


def rewritten(path: Path) -> bool:
    return path.name[:2] in REWRITTEN


def is_one_sitting(path, book):
    """Words of the text before the questions, without formulas, code and comments."""
    words = len(NOT_PROSE.sub(" ", "\n\n".join(texts(book)).partition(QUESTIONS)[0]).split())
    if rewritten(path) and words > WORDS:
        yield f"its text has {words} words before the questions; {WORDS} are one sitting"


def cells_fit_a_screen(path, book):
    for cell in code(book) if rewritten(path) else ():
        lines = [] if cell.source == install_cell() else cell.source.splitlines()
        if len(lines) > LINES:
            yield f"a cell has {len(lines)} lines, {LINES} at most: {lines[0][:60]!r}"
        for line in lines:
            if len(line) > LINE:
                yield f"a line of code has {len(line)} characters, {LINE} at most: {line[:60]!r}"


def a_prediction_keeps_its_answer(path, book):
    """The next cell tells nothing: no assert, no text alternative in its source; the site folds its output."""
    asked = False
    for cell in book.cells if rewritten(path) else ():
        if cell.cell_type == "code" and asked:
            literal = re.search(r"show\([^\n]*,\s*f?\"", cell.source) or "alt=" in cell.source
            if re.search(r"(?m)^\s*assert ", cell.source) or literal:
                yield f"the cell after a prediction gives its answer away: {cell.source[:60]!r}"
            if "hide-output" not in cell.metadata.get("tags", ()):
                yield f"the cell after a prediction has no tag hide-output: {cell.source[:60]!r}"
        asked = PREDICTION in cell.source and cell.cell_type == "markdown"


def asserts_are_rare(path, book):
    count = sum(len(re.findall(r"(?m)^\s*assert ", cell.source)) for cell in code(book))
    if rewritten(path) and count > 2:
        yield f"it has {count} asserts; keep those that are the lesson, 2 at most, and test the others in tests/"


def ends_with_claims_and_questions(path, book):
    text = "\n\n".join(texts(book))
    if rewritten(path) and f"\n{CLAIMS}\n" not in text:
        yield f"it has no part {CLAIMS!r}"
    if rewritten(path) and text.partition(QUESTIONS)[2].count("<details><summary>Answer</summary>") != 3:
        yield f"under {QUESTIONS!r} stand not three questions with folded answers"


def players_are_small(path, book):
    size = sum(len(output.get("data", {}).get("text/html", "")) for output in outputs(book))
    if rewritten(path) and size > SLIDERS:
        yield f"its players hold {size:,} bytes, {SLIDERS:,} at most; draw fewer frames"


EVERY = (
    executed_from_top_to_bottom,
    no_error_or_warning,
    skipped_cells_store_no_output,
    metadata_is_ours,
    no_path_of_a_machine,
    figures_have_alt_text,
    begins_with_badge,
    first_code_installs,
    has_a_budget_for_each_cell,
    numbers_come_from_rows,
    links_lead_somewhere,
    imports_are_declared,
    cells_fit_a_screen,
    players_are_small,
)
LESSON = (*EVERY, has_a_figure, begins_with_headings, metadata_describes_it, prerequisites)
LESSON += (is_one_sitting, a_prediction_keeps_its_answer, asserts_are_rare, ends_with_claims_and_questions)
