"""Exercises are what their solutions give."""

import ast

import nbformat
import pytest
from books import NOTEBOOKS, code, read, run, solutions
from exercises import exercise, exercise_path, generate, main, stale, unsolved

from tt_lib.errors import BadValue
from tt_lib.lessons import check

SOLVED = '''def double(x: float) -> float:
    """Twice x."""
    # BEGIN SOLUTION
    if x:
        x = x + x
    return x
    # END SOLUTION'''
UNSOLVED = '''def double(x: float) -> float:
    """Twice x."""
    raise NotImplementedError("your code here")'''
CHECK = """from tt_lib.lessons import check


def right():
    assert double(2) == 4, "twice two is four"


check("double", right);"""
TOP = """# 01 Exercises with solutions: doubling

[badge](https://colab.research.google.com/github/a/b/blob/main/notebooks/exercises/01_double_solutions.ipynb)"""
ASK = """Double it. [Solutions](01_double_solutions.ipynb)
<!-- BEGIN SOLUTION -->
Add it to itself.
<!-- END SOLUTION -->
Then check."""


def make(folder):
    """A small notebook of solutions in ``folder/exercises``."""
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell(TOP), nbformat.v4.new_markdown_cell(ASK)]
    book.cells += [nbformat.v4.new_code_cell(SOLVED), nbformat.v4.new_code_cell(CHECK)]
    for index, cell in enumerate(book.cells):
        cell.id = f"cell-{index:02}"
    path = folder / "exercises" / "01_double_solutions.ipynb"
    path.parent.mkdir()
    nbformat.write(book, path)
    return path


def test_a_solution_becomes_an_error_at_its_indentation():
    assert unsolved(f"{SOLVED}\n\n\n{SOLVED}") == f"{UNSOLVED}\n\n\n{UNSOLVED}"
    assert unsolved("a = 1\n# BEGIN SOLUTION\na = 2\n# END SOLUTION\nb = 3") == (
        'a = 1\nraise NotImplementedError("your code here")\nb = 3'
    )


@pytest.mark.parametrize(
    "source",
    [
        "# BEGIN SOLUTION\na = 1",
        "a = 1\n# END SOLUTION",
        "# END SOLUTION\n# BEGIN SOLUTION\n1",
        "# BEGIN SOLUTION\n1\n# BEGIN SOLUTION\n2\n# END SOLUTION",
    ],
)
def test_a_solution_without_end_or_beginning_is_an_error(source):
    with pytest.raises(BadValue, match="needs its # END SOLUTION"):
        unsolved(source)


def test_a_notebook_without_solutions_is_an_error(tmp_path):
    book = read(make(tmp_path))
    book.cells.pop(2)
    with pytest.raises(BadValue, match=r"05_x_solutions\.ipynb has no solution"):
        exercise(book, "05_x_solutions.ipynb")


def test_exercises_are_generated_executed_and_compared(tmp_path):
    solved = make(tmp_path)
    assert stale(tmp_path) == ["01_double.ipynb is missing"]
    (path,) = generate(tmp_path)
    assert path == exercise_path(solved) == solved.with_name("01_double.ipynb")

    book, text = read(path), path.read_text(encoding="utf-8")
    assert [cell.id for cell in book.cells] == [cell.id for cell in read(solved).cells]
    assert [cell.execution_count for cell in book.cells[2:]] == [1, 2]
    assert book.cells[3].outputs[0].text == "double: not written yet\n"
    assert book.cells[2].source == UNSOLVED and book.cells[3].source == CHECK
    assert book.cells[0].source.startswith("# 01 Exercises: doubling\n")
    assert "/exercises/01_double.ipynb)" in book.cells[0].source
    assert book.cells[1].source == "Double it. [Solutions](01_double_solutions.ipynb)\nThen check."
    assert set(book.metadata) <= {"kernelspec", "language_info"} and not any(cell.metadata for cell in book.cells)

    assert stale(tmp_path) == [] and generate(tmp_path) == []
    # Outputs are nbval's to compare; sources are compared here.
    path.write_text(text.replace("twice two is four", "two and two"), encoding="utf-8")
    assert stale(tmp_path) == ["01_double.ipynb is not what 01_double_solutions.ipynb gives"]
    assert generate(tmp_path) == [path] and path.read_text(encoding="utf-8") == text
    path.rename(path.with_name("02_other.ipynb"))
    assert stale(tmp_path) == ["01_double.ipynb is missing", "02_other.ipynb has no solutions"]


def test_a_cell_that_stops_is_an_error(tmp_path):
    book = read(make(tmp_path))
    book.cells[2].source = "1 / 0"
    with pytest.raises(BadValue, match=r"(?s)ends in an error.*ZeroDivisionError"):
        run(book, tmp_path)


def test_the_stored_exercises_are_what_their_solutions_give(capsys):
    assert stale(NOTEBOOKS) == []
    assert main(["--check"]) == 0 and main(["--chekc"]) == 2
    assert "usage" in capsys.readouterr().err


def missed(book):
    """The checks of a notebook of solutions whose stored output does not end in "well done"."""
    checks = [cell for cell in code(book) if cell.source.splitlines()[-1].startswith("check(")]
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in checks]
    return [cell.source for cell, text in zip(checks, said, strict=True) if not text.endswith(": well done\n")]


@pytest.mark.parametrize("path", solutions(), ids=lambda path: path.stem)
def test_every_stored_solution_passes_its_checks(path):
    """nbval compares with what is stored: a solution that was stored as failing would stay so unnoticed."""
    assert missed(read(path)) == []


def test_a_solution_that_misses_its_check_is_seen(tmp_path):
    book = read(make(tmp_path))
    book.cells[2].source = book.cells[2].source.replace("x + x", "x")
    run(book, tmp_path)
    assert missed(book) == [CHECK]


def solved(number):
    """The code cells of the solutions to a notebook's exercises, by its number."""
    (path,) = (path for path in solutions() if path.name.startswith(f"{number}_"))
    return code(read(path))


def checked(book):
    """The functions that a notebook hands to `check`, by name, as syntax trees."""
    trees = [ast.parse(cell.source) for cell in code(book) if "check(" in cell.source]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.args[1].id for call in calls if isinstance(call.func, ast.Name) and call.func.id == "check"}
    return {node.name: node for tree in trees for node in tree.body if getattr(node, "name", None) in names}


@pytest.mark.parametrize("path", solutions(), ids=lambda path: path.stem)
def test_every_check_can_fail(path):
    """One without an assert says "well done" to any answer; a picture is for the eye."""
    tests = checked(read(path))
    assert tests
    for name, test in tests.items():
        assert name == "picture" or any(isinstance(node, ast.Assert) for node in ast.walk(test)), (
            f"{name} asserts nothing"
        )


WRONG_07 = {
    "test_gap": [
        "def gap_closed(untuned, tuned, ceiling):\n    return (untuned - tuned) / ceiling",
        "def gap_closed(untuned, tuned, ceiling):\n    return 2 * (untuned - tuned) / untuned",
        "def gap_closed(untuned, tuned, ceiling):\n    return (untuned - tuned) / 4",
    ],
    "test_differ": [
        "def differ(a, b):\n    return a[1] <= b[0] or b[1] <= a[0]",
        "def differ(a, b):\n    return a[1] < b[0]",
    ],
    "test_optimism": ["def optimism(timings, error, repeats=2000, seed=0):\n    return 2 * error"],
    "test_chosen": [
        "def chosen_by_both(candidates):\n    return min(candidates, key=lambda name: sum(candidates[name]))",
        "def chosen_by_both(candidates):\n    return min(candidates, key=lambda name: min(candidates[name]))",
        "def chosen_by_one(candidates, place):\n    return min(candidates, key=lambda name: candidates[name][0])",
    ],
    "test_share": [
        "def detail_for_contrast(x, exact):\n    return solved(x, exact) ** 2",
        "def detail_for_contrast(x, exact):\n    return beside_fine(x, exact)['detail']",
        "def detail_for_contrast(x, exact):\n"
        "    own = beside_fine(x, exact)\n"
        "    return own['shared'] / own['contrast']",
    ],
}
"""Wrong answers to the exercises of 07, by the function that checks them."""


@pytest.fixture(scope="module")
def tables_exercises():
    """The names of the solutions of 07 and the checks of all exercises but the last, which makes images."""
    names = {}
    for cell in solved("07")[1:]:
        if "make_bench" in cell.source:
            break
        exec(cell.source, names)
    names["solved"] = names["detail_for_contrast"]
    return names


@pytest.mark.parametrize("name, wrong", [(name, wrong) for name, answers in WRONG_07.items() for wrong in answers])
def test_a_wrong_answer_to_07_fails(tables_exercises, capsys, name, wrong):
    check(name, tables_exercises[name])
    assert capsys.readouterr().out.endswith(": well done\n")
    kept = dict(tables_exercises)
    exec(wrong, tables_exercises)
    check(name, tables_exercises[name])
    tables_exercises |= kept
    assert f"{name}: not yet. " in capsys.readouterr().out


@pytest.fixture(scope="module")
def guess():
    """The cells of the last exercise of 07, with changes of two pairs instead of images and rows."""
    sources = [cell.source for cell in solved("07")]
    solution, checked = (next(each for each in sources if start in each) for start in ("def fits", "def test_guess"))
    pairs = {"one": ((0.9, 0.8), (20.0, 25.0)), "two": ((0.8, 0.9), (20.0, 25.0))}
    return {"solution": solution, "check": checked, "pairs": pairs}


@pytest.mark.parametrize(
    "answer, said",
    [
        (None, "the guess: well done"),
        ("return {'one': True, 'two': False}", "the guess: well done"),
        ("return {'one': True, 'two': True}", "the guess: not yet. two: share 0.80 -> 0.90, ImageNet distance 20.0"),
        ("return {'one': False, 'two': False}", "the guess: not yet. one: share 0.90 -> 0.80"),
        ("return {'one': True}", "the guess: not yet. say True or False for two"),
        ("return {'one': True, 'two': None}", "the guess: not yet. say True or False for two"),
        ("return None", "the guess: not yet. return a dictionary"),
        ("raise NotImplementedError('your code here')", "the guess: not written yet"),
    ],
)
def test_a_wrong_guess_fails(guess, capsys, answer, said):
    """In exercise 4 of 07, as the solution passes and who left the placeholder is told so."""
    names = {"pairs": guess["pairs"], "check": check}
    exec(guess["solution"], names)
    names["before_and_after"] = guess["pairs"].get
    if answer is not None:
        exec(f"def fits():\n    {answer}", names)
    exec(guess["check"], names)
    assert capsys.readouterr().out.splitlines()[-1].startswith(said)


WRONG_05 = [
    ("05", "logits.softmax(0)", "(0 * logits).softmax(0)", "fixed ends: not yet. raising logit"),
    ("05", "logits.softmax(0)", "(-logits).softmax(0)", "fixed ends: not yet. raising logit"),
    ("08", "1 / (later * alpha(u))", "1 / alpha(u)", "first tau: not yet."),
    ("13", "eps = gain * data.eps(x, t, schedule)", "x, eps = gain * x, gain * data.eps(x, t, schedule)", "alone"),
    ("13", "eps = gain * data.eps(x, t, schedule)", "eps = data.eps(gain * x, t, schedule)", "gains: not yet. a gain"),
    ("13", "rho(s) - rho(t)", "gain * rho(s) - rho(t)", "gains: not yet. a gain multiplies eps alone"),
    ("13", "return best", "return torch.tensor([0.93, 0.95, 0.95, 0.94]).double()", "other noises to learn from"),
    ("13", "(sample(gains, x) - y)", "(sample(gains, held_x) - held_y)", "other noises to learn from"),
    ("13", "return best", "return gains.detach()", "keep the best gains by held-out loss"),
    ("13", "1 + 0.2 * offsets.tanh()", "1 + 0.1 * offsets.tanh()", "gains: not yet."),
    ("13", "range(iterations + 1)", "range(iterations // 6)", "gains: not yet. gains can leave less"),
    ("17", "shares[learned, used] =", "shares[used, learned] =", "the first of a pair is the solver that was learned"),
    ("17", "= (toy_sampler(used)(", "= (toy_sampler('ddim')(", "transfer: not yet. a share is of the untuned loss"),
    ("17", "= (toy_sampler(used)(", "= (toy_sampler('dpmpp-2m')(", "a share is of the untuned loss"),
    ("17", "/ before", "/ (toy_sampler(learned)(seeds, start=held_x).x - held_y).square().mean()", "the solver in use"),
    ("17", "start=held_x).x - held_y", "start=new_x).x - new_y", "transfer: not yet. a share is of the untuned loss"),
]


@pytest.mark.parametrize("last, right, wrong, said", WRONG_05)
def test_a_wrong_answer_to_05_fails(one_thread, capsys, last, right, wrong, said):
    """A solution of notebook 05 with one mistake, up to the check that must see it."""
    cells = [cell for cell in solved("05")[1:] if cell.id[-2:] <= last]
    changed = [cell.source.replace(right, wrong) for cell in cells]
    assert changed != [cell.source for cell in cells]
    names = {}
    for source, cell in zip(changed, cells, strict=True):
        if "\ncheck(" not in source or cell.id.endswith(last):
            exec(source, names)
    assert said in capsys.readouterr().out
