"""Grade the answers of the lab: ``python notebooks/tools/grade.py FOLDER/answers.json``.

The answers are a JSON object, as notebook 10 writes it. Nothing in it is taken on trust: the grader loads the network
and the learned timing that it names, from the folder of the answers, and measures every number again, the untuned
baseline included. It says which number is wrong and where to measure it, and not what it should be. What is written
in words is for a teacher to read: the grader only refuses what cannot be an answer.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.grids import Grid
from tt_lib.metrics.direction import measure_directions
from tt_lib.networks.unet import Model, load_model
from tt_lib.noise import SampleNoise
from tt_lib.sampling import end_distances, make_sampler
from tt_lib.solvers.registry import STEPWISE, make_solver
from tt_lib.timing import Timing, load_timing
from tt_lib.tuning.learn import converged_sampler

NUMBERS = ("error_untuned", "error_learned", "worst_step")
WRITTEN = {
    "why": "why this solver, grid and knobs",
    "second_opinion": "whether the Fréchet distance agrees with the error",
}
"""The answers in words, and what each says."""
MEASURED = {
    "error_untuned": ("the smallest untuned error", "take errors[best] of section 4"),
    "error_learned": ("the learned sampler's error", 'take errors["learned"] of section 4'),
    "direction": ("the relative direction error of each untuned DDIM step", "take steps of section 2"),
    "worst_step": ("the step, from 1 on, where it is largest", "count in steps of section 2"),
}
"""The answers in numbers: what each is, and where to measure it."""
LETTERS, PAIRS = 30, 20
"""How many letters are an answer, and how many different pairs of neighbours are among them: filler repeats its own.
Letters, because not all languages put spaces between words."""
BUDGETS = (5, 6)
"""Numbers of evaluations that the lab allows."""
SOLVERS = ("ddim", "dpmpp-2m")
GRIDS = ("uniform", "quadratic")
"""The untuned baseline is the best of these solvers and one's own on these grids."""
GAIN = 0.8
"""The learned sampler's error is at most this share of the baseline's."""
WITHIN = 0.05
"""How far a number of the answers may lie from the one measured here, as a share of it."""
SIZE = 2.0
"""Largest root mean square of the converged samples; images, in [-1, 1], have at most 1. The digits have 0.85. Measured
for the lab's network: 0.84 after 80,000 images (laptop), 1.3 after 32,000, 2.5 after 16,000, 13 after 3,840 (ci)."""
SUBSTEPS = 8


def read_answers(path: Path) -> dict[str, Any]:
    """The answers, complete and of the right kinds.

    Raises:
        MissingFile, CorruptFile: there is no such file, or it is no JSON object.
        BadValue: an answer is missing or not what it should be.
    """
    if not path.is_file():
        raise MissingFile(f"no file {path}; notebook 10 writes it in its last part")
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON ({error}); write it again") from error
    if not isinstance(answers, dict):
        raise CorruptFile(f"{path} holds no JSON object; write it again")
    for name, kind in {"model": "a path", "timing": "a path", **dict.fromkeys(WRITTEN, "a text")}.items():
        if not isinstance(answers.get(name), str):
            raise BadValue(f"{name} must be {kind}, got {answers.get(name)!r}")
    direction = answers.get("direction")
    for name, value in {**{name: [answers.get(name)] for name in NUMBERS}, "direction": direction}.items():
        if not isinstance(value, list) or not all(type(each) in (int, float) and math.isfinite(each) for each in value):
            raise BadValue(f"{name} must be {'a list of numbers' if name == 'direction' else 'a number'}, got {value}")
    return answers


def measure(model: Model, timing: Timing, seeds: range) -> dict[str, Any]:
    """What the answers should say, by their names. Errors are root mean squares against the converged solution."""
    # Orders, one for each step, follow from the number of evaluations.
    options = {name: value for name, value in timing.options.items() if name not in STEPWISE}
    solver = make_solver(timing.solver, **options).spelling
    own = Grid(timing.grid, timing.grid_times)
    learned = replace(make_sampler(model, solver, nfe=timing.nfe), grid=own, timing=timing)
    noise = SampleNoise(seeds).start(model.shape).to(learned.device)
    exact = converged_sampler(learned)(seeds, start=noise).x

    def error(sampler: Any) -> float:
        return end_distances(sampler(seeds, start=noise).x, exact).mean().item()

    ddim = make_sampler(model, "ddim", "uniform", timing.nfe)
    steps = measure_directions(ddim.predictor, ddim.schedule, ddim.solver, ddim.grid, noise, substeps=SUBSTEPS).frame()
    return {
        "error_untuned": min(
            error(make_sampler(model, each, grid, timing.nfe))
            for each in dict.fromkeys((solver, *SOLVERS))
            for grid in GRIDS
        ),
        "error_learned": error(learned),
        "direction": steps["relative"].tolist(),
        "worst_step": int(steps["relative"].argmax()) + 1,
        "size": exact.square().mean().sqrt().item(),
    }


def written(text: str) -> bool:
    """Whether a text may be an answer, in any language: it is long enough, and does not repeat a few letters."""
    letters = [each for each in text.casefold() if each.isalpha()]
    return len(letters) >= LETTERS and len(set(pairwise(letters))) >= PAIRS


def verdicts(answers: dict[str, Any], nfe: int, right: dict[str, Any]) -> Iterator[tuple[bool, str, str]]:
    """What is asked, whether it holds first, and last what to do where it does not."""
    yield (
        nfe in BUDGETS,
        f"the sampler makes {' or '.join(map(str, BUDGETS))} evaluations: {nfe}",
        "set NFE in section 2",
    )
    yield (
        right["size"] <= SIZE,
        f"the network is trained, the size of its converged samples at most {SIZE:g}: {right['size']:.3g}",
        "images in [-1, 1] have at most 1; remove the # before %env in section 1, or train for longer",
    )
    near = {
        name: math.isclose(answers[name], right[name], rel_tol=WITHIN) for name in ("error_untuned", "error_learned")
    }
    direction = answers["direction"]
    near["direction"] = len(direction) == len(right["direction"]) and all(
        math.isclose(one, other, rel_tol=WITHIN) for one, other in zip(direction, right["direction"], strict=True)
    )
    near["worst_step"] = answers["worst_step"] == right["worst_step"]
    for name, holds in near.items():
        what, remedy = MEASURED[name]
        yield holds, f"{name} is {what}", f"{remedy}, with the network and the timing that you hand in"
    share = right["error_learned"] / right["error_untuned"]
    # Beside a wrong error the share would give the right one away.
    said = f": {share:.2f}" if near["error_untuned"] and near["error_learned"] else ""
    remedy = "make other choices in section 3"
    yield share <= GAIN, f"the learned error is at most {GAIN} of the best untuned one{said}", remedy
    for name, subject in WRITTEN.items():
        remedy = f"write {LETTERS} letters or more, and repeat none over and over"
        yield written(answers[name]), f"{name} says {subject}", remedy


def grade(path: Path, count: int = 64) -> int:
    """Print a line for each thing that is asked; 0 where all hold, else 1."""
    answers = read_answers(path)
    timing, model = load_timing(path.parent / answers["timing"]), load_model(str(path.parent / answers["model"]))
    lines = list(verdicts(answers, timing.nfe, measure(model, timing, range(count))))
    for holds, line, remedy in lines:
        print(f"ok  {line}" if holds else f"NO  {line}; {remedy}")
    passed = all(holds for holds, *_ in lines)
    print("the numbers pass; your teacher reads the two texts" if passed else "not passed yet")
    return 0 if passed else 1


if __name__ == "__main__":
    from books import command

    sys.exit(command(lambda: grade(Path(sys.argv[1]))) if len(sys.argv) == 2 else __doc__)
