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


SECOND_SCAN = "return best_of(max(low, coarse - spacing), min(high, coarse + spacing))"
SURELY = "change.mean() < -2 * change.std() / len(change) ** 0.5"
HALVES = "step(mixture, step(mixture, x, t, middle, t), middle, s, middle).detach()"
TARGET = f"target = {HALVES}\n    return (step(mixture, x, t, s, tau) - target).square().sum(1)"
DISTANCE = "return (mixture.eps(x, tau, schedule) - after).square().sum(1)"
"""Parts of the solutions to 03; the last is what stands in their place."""
MIDDLE = "schedule.time_of_lam(-((schedule.rho(t) + schedule.rho(s)) / 2).log())"
LAST_STEP = "step(x, t, s, mixture.eps(there, middle, schedule))"
MSE = ".square().mean().item()"
OWN = "GaussianMixture([0.95, 0.05], [[-1.0], [6.0]], [0.2, 0.2])"
HAND_OVER = "yield from two_step(x, times, schedule, noise)"
DENSER = "times[0] * torch.linspace(1, 0, 6).double() ** 2"
"""Parts of the solutions to 01 and 08; the last is a grid of one's own."""
WRONG = [
    ("01", "11", MIDDLE, "(t + s) / 2", "midpoint: not yet. from the state 1 the rule goes to 1.101, yours to 1.143"),
    ("01", "11", MIDDLE, "schedule.time_of_lam((schedule.lam(t) + schedule.lam(s)) / 2)", "yours to 1.139"),
    ("01", "11", LAST_STEP, "exact_flow(mixture, x, t, s, schedule)", "yours to 1.114: half way in rho?"),
    ("01", "14", MSE, ".square().mean().sqrt().item()", "the mean *squared* error is 0.32, not 0.56"),
    ("01", "14", MSE, ".square().max().item()", "the mean *squared* error is 0.32, not 0.23"),
    ("01", "14", MSE, ".abs().max().item()", "the mean *squared* error is 0.32, not 0.48"),
    ("01", "14", MSE, ".abs().mean().item()", "the mean *squared* error is 0.32, not 0.49"),
    ("01", "17", OWN, "GaussianMixture([1.0], [[0.0]], [3.0])", "it is 1.0 times as bad as the two bumps"),
    ("01", "17", OWN, "GaussianMixture([0.35, 0.65], [[-3.0], [3.0]], [0.6, 0.6])", "it is 0.7 times as bad"),
    ("08", "11", "(count + 1, dtype=torch.float64)", "(count + 1)", "who is it: not yet. the times are float64"),
    ("08", "14", HAND_OVER, f"yield from two_step(x, {DENSER}, schedule, noise)", "ask at times of the given grid"),
    ("08", "14", HAND_OVER, f"yield from make_solver('ddim')(x, {DENSER}, schedule)", "ask at times of the given grid"),
    ("08", "14", HAND_OVER, "yield from make_solver('unipc,final=lower')(x, times, schedule)", "1.42 times DDIM's"),
    ("08", "14", HAND_OVER, "yield from make_solver('heun')(x, times, schedule)", "it makes 9 evaluations"),
    ("02", "05", "(a.norm(dim=1) * b.norm(dim=1))", "a.norm(dim=1).square()", "against [2.0, 2.0]: 45 degrees"),
    ("02", "05", "cosine.clamp(-1, 1)", "cosine", "beyond 1: clamp it"),
    (
        "02",
        "11",
        "torch.log2(torch.as_tensor(local_long / local_short)).item() - 1",
        "local_long / local_short / 4",
        "3",
    ),
    ("02", "11", "local_long / local_short)", "local_long)", "from 0.6 to 0.0375, a sixteenth, means order 3"),
    ("02", "14", "range(6)", "range(7)", "better placed: not yet. give six times from 0.9 to 0.1, not [0.9, "),
    ("03", "06", "return 2 * ((step", "return ((step", "about 0.5 times that of autograd"),
    ("03", "06", "change / (2 * d)", "change / d", "about 2 times that of autograd"),
    ("03", "09", "min(high, coarse + spacing)", "coarse + spacing", "search: not yet. stop at the bound 1.3"),
    ("03", "09", "max(low, coarse - spacing)", "coarse - spacing", "search: not yet. stop at the bound 0.7"),
    ("03", "09", "low, high = bounds", "low, high = 0.7, 1.3", "search: not yet. stop at the bound 0.4"),
    (
        "03",
        "09",
        "loss(ratio * t).mean()",
        "loss(ratio * t).median()",
        "the mean loss is smallest at 0.9491, not at 0.72",
    ),
    (
        "03",
        "09",
        "loss(ratio * t).mean() for ratio in ratios]).argmin()]",
        "loss(ratio * t) for ratio in ratios]).argmin(0)].mean()",
        "the mean loss is smallest at 0.9491, not at 0.8",
    ),
    ("03", "09", SECOND_SCAN, "return coarse", "the mean loss is smallest at 0.9491"),
    ("03", "09", SECOND_SCAN, f"{SECOND_SCAN[:7]}torch.tensor({SECOND_SCAN[7:]})", "a Python float, not Tensor"),
    ("03", "09", "loss(ratio * t).mean()", "loss(ratio * t).max()", "the mean loss is smallest at 0.9491"),
    ("03", "12", SURELY, "change.mean() < 0", "0.8 is better, but not surely"),
    ("03", "12", "< -2 *", "< 2 *", "0.8 is better, but not surely"),
    ("03", "12", "< -2 *", "< -1 *", "0.8 is better, but not surely"),
    ("03", "12", "< -2 *", "< -3 *", "0.95 gains little, but surely"),
    ("03", "12", "len(change) ** 0.5", "len(change)", "0.8 is better, but not surely"),
    ("03", "12", " / len(change) ** 0.5", "", "truncation's ratio helps"),
    ("03", "12", "change.std()", "(untuned.var() + (change + untuned).var()).sqrt()", "0.95 gains little, but surely"),
    ("03", "12", SURELY, "(change < 0).double().mean() > 0.5", "0.8 is better, but not surely"),
    ("03", "12", SURELY, "0.7 < ratio < 1.3", "1.1 harms this step"),
    ("03", "12", SURELY, "0.7 < ratio < 1", "0.8 is better, but not surely"),
    ("03", "12", "else 1.0", "else 0.0", "consistency's ratio harms this step"),
    ("03", "17", TARGET, "after = mixture.eps(x, t, schedule)\n    " + DISTANCE, "better on 0 of 3 toys"),
    (
        "03",
        "17",
        TARGET,
        "half = mixture.eps(x, middle, schedule)\n    " + DISTANCE.replace("after", "half"),
        "Gaussian: your loss",
    ),
    ("03", "17", TARGET, "return consistency(mixture, x, t, s, tau)", "better on 0 of 3 toys"),
    ("03", "17", TARGET, "return ((tau / t - 0.8) ** 2).repeat(len(x))", "your loss never asks the network"),
    ("03", "17", "- target).square().sum(1)", "- target).square().sum(1).mean()", "one number for each sample"),
    ("03", "17", HALVES, "exact_flow(mixture, x, t, s, schedule)", "not the exact path"),
    ("04", "06", "h * (low - high)", "0.1 * (low - high)", "vertex: not yet. with r = 2.0 and h = 0.5"),
    ("04", "09", "after < before", "after < 1", "each step counts by itself"),
    ("04", "09", "after < before", "after < 0.9 * before", "each step counts by itself"),
    (
        "04",
        "09",
        "    return [tau if after < before",
        "    gains = True\n    return [tau if (gains := gains and after < before)",
        "each step counts by itself",
    ),
    (
        "04",
        "15",
        "[1 + factor * (ratio - 1) for ratio in timing.ratios]",
        "[1 + min(factor, 1 if k else factor) * (ratio - 1) for k, ratio in enumerate(timing.ratios)]",
        "2 doubles the move of every step",
    ),
    ("06", "06", "(each.double() for each in", "(each for each in", "distance: not yet. equal Gaussians are 0 apart"),
    ("06", "06", "values.clamp(min=0).sqrt()", "values.sqrt()", "distance: not yet. a root is nan"),
    (
        "06",
        "09",
        "return float(np.polyfit(",
        "return distances[-1] if len(sizes) < 4 else float(np.polyfit(",
        "5 + 30/n",
    ),
    ("06", "09", "dtype=float), distances, 1)[1]", "dtype=float), distances, 2)[2]", "all points count"),
    ("06", "09", "sizes, dtype=float), distances,", "sizes[-2:], dtype=float), distances[-2:],", "all points count"),
    (
        "06",
        "09",
        "sizes, dtype=float), distances,",
        "[sizes[0], sizes[-1]], dtype=float), [distances[0], distances[-1]],",
        "all points count",
    ),
    ("06", "12", "[0.025, 0.975]", "[0.05, 0.95]", "paired bootstrap: not yet."),
    ("06", "12", "[0.025, 0.975]", "[0, 1]", "paired bootstrap: not yet."),
    ("06", "12", "(len(before),)", "(len(before) // 10,)", "paired bootstrap: not yet."),
    ("06", "12", "(len(before),)", "(2 * len(before),)", "draw N of the N seeds, with replacement"),
    (
        "06",
        "12",
        "torch.randint(len(before), (len(before),), generator=generator)",
        "torch.randperm(len(before), generator=generator)[: len(before) // 2]",
        "draw N of the N seeds, with replacement",
    ),
    ("05", "05", "logits.softmax(0)", "(0 * logits).softmax(0)", "fixed ends: not yet. raising logit"),
    ("05", "05", "logits.softmax(0)", "(-logits).softmax(0)", "fixed ends: not yet. raising logit"),
    ("05", "05", "logits.softmax(0)", "logits.abs().softmax(0)", "fixed ends: not yet. lowering logit"),
    ("05", "05", "(high - low) * shares)", "(high - low) * shares).detach()", "gradients must pass"),
    ("05", "05", "logits.softmax(0)", "(logits**2 + 1).div((logits**2 + 1).sum())", "lowering logit"),
    (
        "05",
        "05",
        "logits.softmax(0)",
        "(1 + logits).clamp(min=0.001).div((1 + logits).clamp(min=0.001).sum())",
        "fixed ends: not yet. of two logits, however low,",
    ),
    ("05", "08", "1 / (later * alpha(u))", "1 / alpha(u)", "first tau: not yet."),
    ("05", "08", "1 / (later * alpha(u))", "later / alpha(u)", "first tau: not yet. no tau has this factor"),
    ("05", "13", "eps = gain * data.eps(x,", "x, eps = gain * x, gain * data.eps(x,", "alone"),
    ("05", "13", "eps = gain * data.eps(x,", "eps = data.eps(gain * x,", "gains: not yet. a gain"),
    ("05", "13", "rho(s) - rho(t)", "gain * rho(s) - rho(t)", "gains: not yet. a gain multiplies eps alone"),
    ("05", "13", "return best", "return torch.tensor([0.93, 0.95, 0.95, 0.94]).double()", "other noises to learn from"),
    ("05", "13", "(sample(gains, x) - y)", "(sample(gains, held_x) - held_y)", "other noises to learn from"),
    ("05", "13", "return best", "return gains.detach()", "keep the best gains by held-out loss"),
    ("05", "13", "(sample(gains, held_x) - held_y)", "(sample(gains, x) - y)", "keep the best gains by held-out loss"),
    ("05", "13", "if i % 10 == 0:", "if i > 0:", "keep the best gains by held-out loss, also the untuned"),
    ("05", "13", "return best", "return best - 1", "gains: not yet. return gains"),
    ("05", "13", "1 + 0.2 * offsets.tanh()", "1 + 0.15 * offsets.tanh()", "ends of gains 0.7 pull to 0.8"),
    ("05", "13", "1 + 0.2 * offsets.tanh()", "1 + offsets", "a gain lies within a fifth of 1"),
    ("05", "13", "lr=0.1", "lr=0.005", ": more iterations, or another rate"),
    ("05", "13", "0.2 * offsets.tanh()", "0.2 * offsets.tanh().mean().expand(4)", "each answer has its own gain"),
    ("05", "13", "range(iterations + 1)", "range(iterations // 6)", "gains: not yet. gains can leave less"),
    ("05", "17", "shares[learned, used] =", "shares[used, learned] =", "the first of a pair is the solver that was"),
    ("05", "17", "sampler.solver(x, times,", "sampler.solver(held_x, times,", "used_with starts from the noises x"),
    ("05", "17", "= (toy_sampler(used)(", "= (toy_sampler('ddim')(", "a share is of the untuned loss"),
    ("05", "17", "= (toy_sampler(used)(", "= (toy_sampler('dpmpp-2m')(", "a share is of the untuned loss"),
    (
        "05",
        "17",
        "/ before",
        "/ (toy_sampler(learned)(seeds, start=held_x).x - held_y).square().mean()",
        "solver in use",
    ),
    ("05", "17", "start=held_x).x - held_y", "start=new_x).x - new_y", "a share is of the untuned loss"),
    (
        "05",
        "17",
        "toy_learn(solver=learned)",
        "toy_learn(solver=learned.replace('unipc,final=lower', used))",
        "0.074 is not right for unipc,final=lower, used with ddim",
    ),
    ("05", "21", "strip(draw,", "strip(lambda axes, name: None,", "picture: not yet. a panel is empty"),
    ("07", "05", "/ (untuned - end)", "/ end", "gap closed: not yet."),
    ("07", "05", "(untuned - tuned) / (untuned - end)", "2 * (untuned - tuned) / untuned", "gap closed: not yet."),
    ("07", "05", "/ (untuned - end)", "/ 4", "there the whole gap is closed, however long"),
    (
        "07",
        "05",
        "(untuned - tuned) / (untuned - end)",
        "max(-1, (untuned - tuned) / (untuned - end))",
        "the wrong way",
    ),
    ("07", "08", "a[1] < b[0] or b[1] < a[0]", "a[1] <= b[0] or b[1] <= a[0]", "intervals that touch have a number in"),
    ("07", "08", "a[1] < b[0] or b[1] < a[0]", "a[1] < b[0]", "undecided pairs: not yet. the order must not matter"),
    (
        "07",
        "08",
        "a[1] < b[0] or b[1] < a[0]",
        "not any(b[0] <= end <= b[1] for end in a)",
        "an interval inside another",
    ),
    (
        "07",
        "05",
        "(untuned - tuned) / (untuned - end)",
        "(untuned - tuned) / (untuned - 4)",
        "from 8 to 5 is three fifths",
    ),
    (
        "07",
        "11",
        "min(candidates, key=lambda name: candidates[name][place])",
        "max(candidates, key=lambda name: abs(candidates[name][place]))",
        "two metrics: not yet. the lowest",
    ),
    (
        "07",
        "11",
        "min(candidates, key=lambda name: max(candidates[name]))",
        "next(name for name in candidates if max(candidates[name]) < 0)",
        "two metrics: not yet. a and c get worse",
    ),
    (
        "07",
        "11",
        "min(candidates, key=lambda name: max(candidates[name]))",
        "min((name for name in candidates if max(candidates[name]) < 0), key=lambda name: candidates[name][0])",
        "two metrics: not yet. a and c get worse",
    ),
    ("07", "08", "float((5.0 - measured.min(axis=1)).mean())", "2 * error", "winner's curse: not yet."),
    ("07", "08", ".normal(5.0, error,", ".normal(5.0, 0.05,", "winner's curse: not yet. twice the error"),
    ("07", "11", "max(candidates[name])", "max(map(abs, candidates[name]))", "two metrics: not yet. a and c get worse"),
    ("07", "11", "max(candidates[name])", "sum(candidates[name])", "two metrics: not yet."),
    ("07", "11", "max(candidates[name])", "min(candidates[name])", "two metrics: not yet."),
    ("07", "11", "candidates[name][place]", "candidates[name][0]", "place 1 is the second kind of features"),
    (
        "07",
        "14",
        'measured["detail"] / measured["contrast"]',
        '(measured["detail"] / measured["contrast"]) ** 2',
        "detail for contrast: not yet.",
    ),
    ("07", "14", ' / measured["contrast"]', "", "paler alone changes nothing"),
    ("07", "14", 'measured["detail"]', 'measured["shared"]', "detail for contrast: not yet."),
    ("09", "11", 'optimiser="search"', 'optimiser="adam", iterations=5', "tune by truncation with search, not"),
    ("09", "11", "tune(sampler, points, config).timing", "adapted.timing()", "tune by truncation with search, not"),
    ("09", "11", "(sampler, points,", "(sampler, ring.sample(32).float(),", "the same points give other times"),
    ("09", "11", "(sampler, points,", "(sampler, 0 * points + 0.5,", "other points give the same times"),
    ("09", "11", "(scheduler, steps)\n", "(DDIMScheduler(clip_sample=False), 5)\n", "for another solver"),
    ("09", "11", "(scheduler, steps)\n", "(scheduler, 5)\n", "for another number of steps"),
    ("09", "14", "return int(", "return n - 200 or int(", "with 10 steps, leading steps end where"),
]
"""Wrong answers: notebook, cell whose check must see it, part of a solution, what stands in its place, what is said."""


def answered(number, last, changes):
    """Run the solutions of a notebook with some parts replaced, up to the check of cell ``last``; no check before."""
    cells = solved(number)[1:]
    sources = [cell.source for cell in cells[: [cell.id[-2:] for cell in cells].index(last) + 1]]
    for right, other in changes:
        assert any(right in source for source in sources), f"no solution has {right!r}"
        sources = [source.replace(right, other) for source in sources]
    names = {}
    for source in sources[:-1]:
        if "\ncheck(" not in source:
            exec(source, names)
    exec(sources[-1], names)


@pytest.mark.parametrize("number, last, right, wrong, said", WRONG)
def test_a_wrong_answer_fails(one_thread, capsys, number, last, right, wrong, said):
    """The solutions of a notebook with one mistake, up to the check that must see it."""
    answered(number, last, [(right, wrong)])
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "last, right, other",
    [
        ("05", "(untuned - tuned) / (untuned - end)", "(untuned - tuned) * (1 / (untuned - end))"),
        ("08", "return [(i, j) for i, j in pairs if", "return [[i, j] for i, j in pairs if"),
    ],
)
def test_a_right_answer_of_another_form_passes(one_thread, capsys, last, right, other):
    answered("07", last, [(right, other)])
    assert "not yet" not in (said := capsys.readouterr().out) and "well done" in said


COSINE = "optimizer.step()\n        optimizer.param_groups[0]['lr'] = 0.1 * float(torch.tensor(i / 40).cos()) ** 2"
LBFGS = [
    ("torch.optim.Adam([offsets], lr=0.1)", "torch.optim.LBFGS([offsets], lr=0.3, max_iter=1)"),
    # One evaluation a step: its gradient is there already.
    ("optimizer.step()", "optimizer.step(lambda: (sample(gains, x) - y).square().mean())"),
]
OFTEN = ("i % 10", "i % 1")


@pytest.mark.parametrize(
    "changes",
    [
        [("optimizer.step()", COSINE)],
        [("optimizer.step()", COSINE), OFTEN],
        [OFTEN],
        [("i % 10", "i % 20")],
        [("lr=0.1", "lr=0.05")],
        [("lr=0.1", "lr=0.2")],
        [("lr=0.1", "lr=0.02")],
        [("lr=0.1", "lr=0.02"), OFTEN],
        [("lr=0.1", "lr=0.02"), ("range(iterations + 1)", "range(301)")],
        [*LBFGS, OFTEN],
    ],
    ids=[
        "cosine",
        "cosine, often",
        "often",
        "seldom",
        "rate 0.05",
        "rate 0.2",
        "slow",
        "slow, often",
        "slow, long",
        "LBFGS",
    ],
)
def test_gains_learned_otherwise_pass_too(one_thread, capsys, changes):
    """Exercise 3 of 05 leaves the optimizer open, and how often the held-out loss is looked at."""
    answered("05", "13", changes)
    assert capsys.readouterr().out == "gains: well done\n"


MIDWAY = """middle = (t + s) / 2
    after = mixture.eps(step(mixture, x, t, middle, t), middle, schedule)
    """
BEFORE_AND_AFTER = """after = mixture.eps(step(mixture, x, t, s, tau), s, schedule)
    after = (mixture.eps(x, t, schedule) + after) / 2
    """
SUBSTEPS = """target, times = x, torch.linspace(t, s, 17, dtype=torch.float64)
    for now, later in zip(times[:-1], times[1:], strict=True):
        target = step(mixture, target, now, later, now)
    return (step(mixture, x, t, s, tau) - target).square().sum(1)"""
BOUNDED = """from scipy.optimize import minimize_scalar
    return minimize_scalar(lambda r: loss(r * t).mean().item(), bounds=bounds, method="bounded").x"""


@pytest.mark.parametrize(
    "last, right, other",
    [
        ("09", SECOND_SCAN, BOUNDED),
        ("12", "change.std()", "change.std(correction=0)"),
        ("17", TARGET, MIDWAY + DISTANCE),
        ("17", TARGET, BEFORE_AND_AFTER + DISTANCE),
        ("17", TARGET, SUBSTEPS),
    ],
    ids=["a bounded minimiser", "biased deviation", "midway", "before and after", "substeps"],
)
def test_unusual_answers_to_03_pass(one_thread, capsys, last, right, other):
    """The exercises of 03 leave the search and the target open."""
    answered("03", last, [(right, other)])
    assert capsys.readouterr().out.endswith(": well done\n")


@pytest.mark.parametrize(
    "number, last, right, other, said",
    [
        ("01", "14", MSE, ".square().sum()", "one tau for all: well done"),
        ("01", "17", OWN, "GaussianMixture([0.05, 0.95], [[-3.0], [3.0]], [0.2, 0.2])", "2.8 times as bad"),
        ("08", "14", HAND_OVER, "yield from make_solver('plms')(x, times, schedule)", "0.50 times DDIM's"),
        ("08", "14", HAND_OVER, "yield from make_solver('plms,order=2')(x, times, schedule)", "0.65 times DDIM's"),
    ],
    ids=["a sum", "rare, another place", "another solver", "with an option"],
)
def test_other_right_answers_to_01_and_08_pass(one_thread, capsys, number, last, right, other, said):
    answered(number, last, [(right, other)])
    out = capsys.readouterr().out
    assert said in out and out.endswith(": well done\n")
