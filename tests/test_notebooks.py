"""Every guard over every notebook, and every guard seen to fail on a notebook that is broken in its way."""

import copy
import re
import shutil

import nbformat
import pytest
import times
from books import NOTEBOOKS, exercises, lessons, read
from guards import CLAIMS, CONSTANT, EVERY, HIDDEN, LESSON, PREDICTION, QUESTIONS, slugs
from index import colab_badge, install_cell, repository_url

PATHS = [*lessons(), *exercises()]


def test_there_is_a_first_notebook_and_every_name_is_in_order():
    assert PATHS and PATHS[0].name == "00_start_here.ipynb"
    assert {path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts} == set(PATHS)
    numbers = [path.name[:2] for path in lessons()]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("guard", LESSON, ids=lambda guard: guard.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook(path, guard):
    if guard in EVERY or path in lessons():
        assert list(guard(path, read(path))) == []


def test_all_notebooks_together_take_less_than_twelve_minutes():
    assert sum(map(sum, times.load().values())) + 5 * len(PATHS) < 12 * 60


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_a_lesson_is_read_in_one_sitting(path):
    assert times.reading(read(path)) <= 30


# ---- each guard fails


PNG = {"image/png": "iVBORw0KGgo="}
TOP = f"""# 01 Good

{colab_badge("01_good.ipynb")}

**What it teaches.** How a good notebook looks.

**What it needs.** [00](00_first.ipynb) and patience.

**How long it takes.** `TT_SCALE=ci` 30 s on 2 CPU cores. <!-- constant -->
And an evening to read."""


@pytest.fixture
def good(tmp_path):
    """(path, notebook) of a notebook that no guard has anything against."""
    cell, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    figure = nbformat.v4.new_output(
        "display_data", PNG, metadata={"image/png": {"alt": "A line that rises from left to right."}}
    )
    book = nbformat.v4.new_notebook(metadata={"tt": {"title": "Good", "teaches": "Much.", "needs": ["00"]}})
    book.cells = [
        text(TOP),
        cell(install_cell()),
        text("## A part\n\nTen steps, $x = 0.25$, `0.25`, 10 steps."),
        cell("import torch", outputs=[figure]),
    ]
    book.cells += [
        cell("slider", metadata={"tags": ["nbval-skip"]}),
        text("[up](#A-part), [first](00_first.ipynb), [arXiv 2310.09469](https://arxiv.org/abs/2310.09469)"),
        text(f"{PREDICTION} which?"),
        cell("show(figure(), ALT['x'])", metadata={"tags": ["hide-output"], "jupyter": HIDDEN}),
        text(f"{CLAIMS}\n\nThis.\n\n{QUESTIONS}\n" + "Why? <details><summary>Answer</summary>So.</details>\n" * 3),
    ]
    for number, each in enumerate([each for each in book.cells if each.cell_type == "code"], start=1):
        each.execution_count = number
    path = tmp_path / "01_good.ipynb"
    nbformat.write(book, path)
    shutil.copy(path, tmp_path / "00_first.ipynb")
    times.save({"01_good.ipynb": [0.0, 25.0, 1.0, 0.0]}, tmp_path)
    return path, book


def top(old, new):
    def change(book):
        assert old in book.cells[0].source
        book.cells[0].source = book.cells[0].source.replace(old, new)

    return change


def say(text):
    return lambda book: book.cells[2].update(source=text)


def put(cell, **parts):
    return lambda book: book.cells[cell].update(**parts)


def tt(**fields):
    return lambda book: book.metadata["tt"].update(fields)


def out(kind, **parts):
    return lambda book: book.cells[3].outputs.append(nbformat.v4.new_output(kind, **parts))


BROKEN = [
    ("executed_from_top_to_bottom", put(3, execution_count=None), r"\[1, None, 3, 4\]"),
    ("executed_from_top_to_bottom", put(3, execution_count=7), "run it from top to bottom"),
    ("no_error_or_warning", out("error", ename="ValueError", evalue="no", traceback=[]), "ValueError: no"),
    ("no_error_or_warning", out("stream", name="stderr", text="UserWarning"), "stderr"),
    ("skipped_cells_store_no_output", put(4, outputs=[nbformat.v4.new_output("stream", text="x")]), "skip"),
    ("metadata_is_ours", lambda book: book.metadata.update(colab={}), "metadata has colab"),
    ("metadata_is_ours", put(3, metadata={"execution": {}}), "metadata execution"),
    ("metadata_is_ours", put(3, metadata={"jupyter": HIDDEN}), "metadata jupyter"),
    ("metadata_is_ours", put(7, metadata={"tags": ["hide-output"]}), "not in JupyterLab"),
    ("no_path_of_a_machine", say("/home/me/x"), "a machine's path"),
    ("figures_have_alt_text", lambda book: book.cells[3].outputs[0].update(metadata={}), "image/png"),
    ("figures_have_alt_text", out("display_data", data={"image/svg+xml": "<svg/>"}), "svg"),
    ("figures_have_alt_text", say("![](a.png)"), "no alt text"),
    ("figures_have_alt_text", say('<img src="a.png">'), "no alt text"),
    ("begins_with_badge", top("01_good", "02_bad"), "no Colab badge"),
    ("first_code_installs", put(1, source="pip install"), "not the install cell"),
    (
        "has_a_budget_for_each_cell",
        lambda book: book.cells.append(nbformat.v4.new_code_cell("1")),
        "for each code cell",
    ),
    ("numbers_come_from_rows", top(f" {CONSTANT}", ""), "30 s"),
    ("numbers_come_from_rows", say("The distance is 8.07 now."), "8.07"),
    ("numbers_come_from_rows", say("It gains 41 % of it."), "41 %"),
    ("numbers_come_from_rows", say("| a | 3.5 % |\n| b | **0.119** |"), "0.119"),
    ("numbers_come_from_rows", say("Only 3.2 times, 12 ms."), "12 ms"),
    ("links_lead_somewhere", say("[x](07_gone.ipynb)"), "07_gone.ipynb is dead"),
    ("links_lead_somewhere", say('<a href="gone.md">x</a>'), "gone.md is dead"),
    ("links_lead_somewhere", say("[x](#Another-part)"), "no such heading"),
    ("links_lead_somewhere", say("[x](00_first.ipynb#gone)"), "no such heading"),
    ("links_lead_somewhere", say(f"[x]({repository_url()}/blob/main/gone.md)"), "gone.md is dead"),
    ("imports_are_declared", put(3, source="%time 1\nfrom nowhere_to_be_found import x"), "nowhere_to_be_found"),
    ("imports_are_declared", put(3, source="def f():\n    import pytest"), "pytest"),
    ("has_a_figure", put(3, outputs=[]), "no figure"),
    ("begins_with_headings", top("**What it teaches.** How a good notebook looks.", ""), "What it teaches"),
    ("metadata_describes_it", top("# 01", "# 02"), "differ"),
    ("metadata_describes_it", tt(title="Better"), "differ"),
    ("metadata_describes_it", lambda book: book.metadata["tt"].pop("teaches"), "no teaches"),
    ("prerequisites", tt(needs=["00", "00"]), "not in order"),
    ("prerequisites", tt(needs=["00", "05"]), "05, which is missing"),
    ("prerequisites", tt(needs=["00", "01"]), "01, which comes later"),
    ("prerequisites", tt(needs=[]), "unused"),
    ("prerequisites", top("[00](00_first.ipynb)", "Some"), "no link to it"),
    ("is_one_sitting", say("word " * 1500), "words before the questions"),
    ("cells_fit_a_screen", put(3, source="x = 1\n" * 26), "26 lines, 25 at most"),
    ("cells_fit_a_screen", put(3, source=f"x = '{'a' * 95}'"), "101 characters"),
    ("a_prediction_keeps_its_answer", put(7, source="assert 1"), "gives its answer away"),
    ("a_prediction_keeps_its_answer", put(7, source='show(figure(), "It falls.")'), "gives its answer away"),
    ("a_prediction_keeps_its_answer", put(7, metadata={}), "no tag hide-output"),
    ("asserts_are_rare", put(3, source="assert 1\n" * 3), "3 asserts"),
    ("ends_with_claims_and_questions", put(8, source="## Questions"), "no part '## What you may now claim'"),
    ("ends_with_claims_and_questions", put(8, source=CLAIMS), "not three questions"),
    ("players_are_small", out("display_data", data={"text/html": "x" * 1_500_001}), "draw fewer frames"),
]
NAMED = {guard.__name__: guard for guard in LESSON}


def test_no_guard_has_anything_against_a_good_notebook(good):
    path, book = good
    # Its address is nobody's: the link to the file itself is judged by the file.
    assert {
        name: found
        for name, guard in NAMED.items()
        if (found := [each for each in guard(path, book) if "colab" not in each])
    } == {}


def test_every_guard_is_seen_to_fail():
    assert {name for name, _, _ in BROKEN} == set(NAMED)


@pytest.mark.parametrize(
    "name, change, words", BROKEN, ids=[f"{name}-{index}" for index, (name, _, _) in enumerate(BROKEN)]
)
def test_a_guard_fails(good, name, change, words):
    path, book = good
    broken = copy.deepcopy(book)
    change(broken)
    nbformat.write(broken, path)
    found = "\n".join(NAMED[name](path, broken))

    assert re.search(words, found), found


def test_a_cell_that_took_too_long_is_seen(good):
    path, book = good
    times.save({path.name: [0.0, 31.0, 1.0, 0.0]}, path.parent)
    assert any("a cell took 31 s" in line for line in NAMED["has_a_budget_for_each_cell"](path, book))


@pytest.mark.parametrize(
    "text",
    [
        "10 steps of 1,000",
        "version 2.14.1",
        "t = 0.9",
        "$0.119$ and `8.07`",
        "[arXiv 2310.09469](https://arxiv.org/abs/2310.09469)",
        "```python\nx = 0.25\n```",
        "$$\n0.05\n$$",
        "arXiv 2310.09469",
        f"a 95 % interval {CONSTANT}",
        "eq. 12, s 3, 4 samples, 5 minimal",
    ],
)
def test_settings_and_formulas_are_no_measured_numbers(good, text):
    path, book = good
    say(text)(book)
    assert list(NAMED["numbers_come_from_rows"](path, book)) == []


def test_headings_have_the_anchors_of_github_and_of_jupyter():
    assert slugs("## What `tau` is, [here](x.md)\n```\n# no\n```") == {
        "What-`tau`-is,-[here](x.md)",
        "what-tau-is-here",
    }
