"""The lab's grader: right answers pass, and each answer that is not right is named."""

import json
from dataclasses import replace

import pytest
import torch
from grade import GAIN, GRIDS, SOLVERS, WORDS, WRITTEN, grade, measure, read_answers, verdicts

from tt_lib.errors import BadValue, CorruptFile, MissingFile, TimingMismatch
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import load_model, make_unet, save_model
from tt_lib.sampling import end_distances, make_sampler
from tt_lib.tuning.learn import PIXELS, LearnConfig, learn

SENTENCES = dict.fromkeys(WRITTEN, "word " * WORDS)
RIGHT = {"error_untuned": 0.5, "error_learned": 0.3, "direction": [0.1, 0.4, 0.2], "worst_step": 2, **SENTENCES}
WRONG = [
    ({"error_learned": 0.2}, 5, {}, "error_learned is what"),
    ({"error_untuned": 0.8}, 5, {}, "error_untuned is what"),
    ({"direction": [0.1, 0.4, 0.3]}, 5, {}, "direction holds"),
    ({"direction": [0.1, 0.4]}, 5, {}, "direction holds"),
    ({"worst_step": 1}, 5, {}, "worst_step is"),
    ({}, 10, {}, "evaluations: 10"),
    ({"error_learned": 0.475}, 5, {"error_learned": 0.475}, "of the best untuned one: 0.95"),
    ({"why": ""}, 5, {}, "why says in 10 words"),
    ({"second_opinion": "It agrees."}, 5, {}, "second_opinion says in 10 words"),
]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("said, nfe, measured, failed", WRONG)
def test_each_wrong_answer_is_named_and_nothing_else(said, nfe, measured, failed):
    lines = list(verdicts(RIGHT | said, nfe, RIGHT | measured))
    assert [failed in line for holds, line in lines if not holds] == [True]


def test_right_answers_hold_within_the_margin_of_measuring():
    near = {name: value * 1.03 for name, value in RIGHT.items() if name.startswith("error")}
    assert len(list(verdicts(RIGHT, 6, RIGHT))) == 8 and all(holds for holds, _ in verdicts(RIGHT | near, 5, RIGHT))


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


def test_the_lab_passes_from_file_to_verdict_and_a_number_written_by_hand_does_not(lab, capsys):
    answers = lab[3]
    assert answers["error_learned"] < GAIN * answers["error_untuned"] and len(answers["direction"]) == 5
    assert grade(hand_in(lab), count=4) == 0
    assert capsys.readouterr().out.endswith("passed\n")
    assert grade(hand_in(lab, error_learned=answers["error_learned"] / 2), count=4) == 1
    said = capsys.readouterr().out
    assert "NO  error_learned is what" in said and said.count("NO ") == 1 and said.endswith("not passed yet\n")


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
