"""The lab's grader: right answers pass, and each answer that is not right is named."""

import json
from dataclasses import replace

import grade as grader
import pytest
import torch
from grade import GAIN, GRIDS, SIZE, SOLVERS, WRITTEN, grade, measure, read_answers, verdicts, written

from tt_lib.errors import BadValue, CorruptFile, MissingFile, TimingMismatch
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import load_model, make_unet, save_model
from tt_lib.sampling import end_distances, make_sampler
from tt_lib.tuning.learn import PIXELS, LearnConfig, learn

SENTENCE = "The last step is the worst, so the grid has more nodes there."
SENTENCES = dict.fromkeys(WRITTEN, SENTENCE)
NUMBERS = {"error_untuned": 0.5, "error_learned": 0.3, "direction": [0.1, 0.4, 0.2], "worst_step": 2, "size": 0.9}
RIGHT = NUMBERS | SENTENCES
WRONG = [
    ({"error_learned": 0.2}, 5, {}, "error_learned is the learned"),
    ({"error_untuned": 0.8}, 5, {}, "error_untuned is the smallest"),
    ({"direction": [0.1, 0.4, 0.3]}, 5, {}, "direction is the relative"),
    ({"direction": [0.1, 0.4]}, 5, {}, "direction is the relative"),
    ({"worst_step": 1}, 5, {}, "worst_step is"),
    ({}, 10, {}, "evaluations: 10"),
    ({"error_learned": 0.475}, 5, {"error_learned": 0.475}, "of the best untuned one: 0.95"),
    ({"why": ""}, 5, {}, "why says why this"),
    ({"second_opinion": "It agrees."}, 5, {}, "second_opinion says whether"),
    ({}, 5, {"size": 2.1}, "size of its converged samples at most 2: 2.1"),
    ({}, 5, {"size": float("nan")}, "the network is trained"),
]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("said, nfe, measured, failed", WRONG)
def test_each_wrong_answer_is_named_and_nothing_else(said, nfe, measured, failed):
    lines = list(verdicts(RIGHT | said, nfe, RIGHT | measured))
    assert [failed in line for holds, line, _ in lines if not holds] == [True]


@pytest.mark.parametrize("name", ["error_untuned", "error_learned", "direction"])
def test_what_is_said_about_a_wrong_number_does_not_hold_the_right_one(name):
    right = {"error_untuned": 0.5678, "error_learned": 0.3456, "direction": [0.123, 0.456, 0.234]}
    wrong = {name: [7.0, 8.0, 9.0] if name == "direction" else 7.0}
    said = str(list(verdicts(RIGHT | right | wrong, 5, RIGHT | right)))
    assert not any(digits in said for digits in ("0.57", "0.35", "0.12", "0.46", "0.23", "0.5678", "0.3456"))
    assert name == "direction" or "0.61" not in said, "the share of a known error is the other"


@pytest.mark.parametrize(
    "text, holds",
    [
        (SENTENCE, True),
        ("DPM-Solver++ is nearest untuned; its last step needs more nodes.", True),
        ("最后一步的方向误差最大，所以我在接近数据的一端放了更多的节点，并且学习网格和条件时间。", True),
        ("最後のステップの方向誤差が一番大きいので、データの近くに節点を増やしました。", True),
        ("Последний шаг хуже всех, поэтому там больше узлов.", True),
        ("", False),
        ("It agrees.", False),
        ("a " * 100, False),
        ("b b b b b b b b b b", False),
        ("word " * 20, False),
        ("why not " * 20, False),
        ("1234567890 " * 10, False),
        ("abcdefghij " * 10, False),
    ],
)
def test_an_answer_in_words_is_no_filler_in_any_language(text, holds):
    assert written(text) == holds


def test_right_answers_hold_within_the_margin_of_measuring():
    near = {name: value * 1.03 for name, value in RIGHT.items() if name.startswith("error")}
    assert len(list(verdicts(RIGHT, 6, RIGHT))) == 9 and all(holds for holds, *_ in verdicts(RIGHT | near, 5, RIGHT))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a network of random weights, a sampler learned for it, and the answers about both."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    network = make_unet("digits", 16).eval()
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    save_model(network, folder / "net", name="net", schedule="linear", card={})
    model = load_model(str(folder / "net"))
    start = make_sampler(model, "ddim", "uniform", 5, predictor=make_predictor(model, gradients=True))
    timing = learn(start, PIXELS, LearnConfig(noises=8, validation=4, batch=8, iterations=6, lr=0.1)).timing
    timing.save(folder / "five.json")
    places = {"model": "net", "timing": "five.json"}
    return folder, model, timing, places | SENTENCES | measure(model, timing, range(4))


def hand_in(lab, **changes):
    folder, _, _, answers = lab
    path = folder / "answers.json"
    path.write_text(json.dumps(answers | changes))
    return path


def test_an_untouched_lab_with_an_untrained_network_does_not_pass(lab, capsys):
    assert lab[3]["size"] > SIZE and grade(hand_in(lab), count=4) == 1
    said = capsys.readouterr().out
    assert said.count("NO ") == 1 and "remove the # before %env" in said and said.endswith("not passed yet\n")


def test_the_lab_passes_from_file_to_verdict_and_a_number_written_by_hand_does_not(lab, capsys, monkeypatch):
    answers = lab[3]
    monkeypatch.setattr(grader, "SIZE", 2 * answers["size"])  # as if its network, of random weights, were trained
    assert answers["error_learned"] < GAIN * answers["error_untuned"] and len(answers["direction"]) == 5
    assert grade(hand_in(lab), count=4) == 0
    assert capsys.readouterr().out.endswith("the numbers pass; your teacher reads the two texts\n")
    assert grade(hand_in(lab, error_learned=answers["error_learned"] / 2), count=4) == 1
    said = capsys.readouterr().out
    assert "NO  error_learned is the learned" in said and said.count("NO ") == 1 and said.endswith("not passed yet\n")


def test_errors_are_distances_from_the_converged_solution_of_the_same_noise(lab):
    _, model, timing, answers = lab
    converged = make_sampler(model, "dpmpp-2m", "karras", 60)(range(4)).x
    ends = make_sampler(model, "ddim", "learned", 5, timing)(range(4)).x
    each = (ends - converged).square().flatten(1).mean(1).sqrt()
    assert answers["error_learned"] == pytest.approx(each.mean().item(), rel=1e-3)


def test_the_baseline_is_the_best_of_the_own_solver_and_two_others_on_two_grids(lab):
    _, model, _, answers = lab
    exact = make_sampler(model, "dpmpp-2m", "karras", 60)(range(4)).x
    assert answers["error_untuned"] == pytest.approx(
        min(
            end_distances(make_sampler(model, solver, grid, 5)(range(4)).x, exact).mean().item()
            for solver in SOLVERS
            for grid in GRIDS
        ),
        rel=1e-3,
    )


@pytest.mark.parametrize("solver", ["heun", "dpm-solver-fast", "unipc,final=lower"])
def test_any_solver_can_be_graded_on_a_grid_that_was_learned_or_not(lab, solver):
    model = lab[1]
    sampler = make_sampler(model, solver, "quadratic", 5)
    timing = sampler.make_timing("own", [each.t for each in sampler.evaluations])
    measured = measure(model, timing, range(2))
    assert measured["error_untuned"] <= measured["error_learned"] * 1.001, "the same sampler is one of the baselines"


def test_a_timing_of_other_weights_is_refused(lab):
    _, model, timing, _ = lab
    with pytest.raises(TimingMismatch):
        measure(model, replace(timing, weights="0" * 64), range(2))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": 3}, "model must be a path, got 3"),
        ({"why": None}, "why must be a text, got None"),
        ({"error_learned": "small"}, "error_learned must be a number"),
        ({"error_learned": None}, "error_learned must be a number"),
        ({"worst_step": True}, "worst_step must be a number"),
        ({"direction": 0.3}, "direction must be a list of numbers"),
        ({"direction": [0.3, float("nan")]}, "direction must be a list of numbers"),
    ],
)
def test_what_is_no_answer_is_refused_by_name(lab, changes, message):
    with pytest.raises(BadValue, match=message):
        read_answers(hand_in(lab, **changes))


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(MissingFile, match="no file"):
        read_answers(tmp_path / "answers.json")
    for text in ("[1]", "{"):
        (tmp_path / "answers.json").write_text(text)
        with pytest.raises(CorruptFile):
            read_answers(tmp_path / "answers.json")
