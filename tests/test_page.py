"""The pages and the list of files say what the rows and the files say, and nothing else."""

from __future__ import annotations

import re
from itertools import combinations
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image
from test_compare import fd_rows

from tt_lib.errors import BadValue, CorruptFile
from tt_lib.figures import results
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.solvers.registry import make_solver
from tt_lib.study import page
from tt_lib.study.compare import BEST, SAMPLER
from tt_lib.study.page import FEATURES, FIGURE, MARK, MODEL, SAMPLES, STRAIGHT
from tt_lib.timing import load_timing
from tt_lib.tuning.learn import KNOBS

DATA = PACKAGE_ROOT / "data"
LEARNED = BEST["timing"]


def both(*cells, model=MODEL, n=10_000) -> pd.DataFrame:
    """Rows in both features: (solver, grid, NFE, timing, first, second), each ± 0.1."""
    return pd.concat(
        [
            fd_rows(*((*cell[:4], cell[4 + k]) for cell in cells), features=FEATURES[k], model=model, n=n)
            for k in (0, 1)
        ],
        ignore_index=True,
    )


CONVERGED = ("dpmpp-2m", "karras", 60, "untuned", 5.0, 2.5)
ROWS = both(
    ("ddim", "uniform", 5, "untuned", 60.0, 15.0),
    ("ddim", "uniform", 5, "consistency-sequential", 54.0, 13.0),
    ("ddim", "uniform", 5, "truncation-parallel", 68.0, 12.0),
    ("unipc,final=lower", "quadratic", 5, "untuned", 18.0, 7.0),
    ("dpmpp-2m", "quadratic", 10, "untuned", 8.0, 3.2),
    ("unipc", "learned", 5, LEARNED, 9.0, 3.25),
    ("unipc", "learned", 10, LEARNED, 6.0, 2.8),
    CONVERGED,
)
FLOW = both(
    ("unipc", "uniform-trailing", 5, "untuned", 12.0, 8.0),
    ("euler", "uniform-trailing", 5, "untuned", 22.8, 7.2),
    ("euler", "learned", 5, f"{LEARNED},start=uniform-trailing", 34.5, 7.3),
    model=STRAIGHT,
)
FRAME = pd.concat([ROWS, FLOW], ignore_index=True)


def cells(text: str) -> list[list[str]]:
    """The lines of the tables in a text, the head first."""
    lines = [line for line in text.replace("\u00a0", " ").splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_what_is_committed_is_what_the_rows_and_files_give():
    frame = read_rows(DATA / "results" / "fd.csv", FD_COLUMNS)
    short = frame["model"].str.startswith("w96-")
    known = {MODEL, STRAIGHT, page.SMALL, "test images"}
    assert set(frame[~short]["model"]) == known, "the shipped network on two paths, the small one, or the floor"
    value = frame[short].set_index("model")["value"].sort_values()
    assert list(value.index[:2]) == ["w96-b256", "w96-lr15"] and set(value.index[-3:]) <= {
        "w96-snr",
        "w96-snratt",
        "w96-lr5",
    }
    assert value["w96-base"] < value["w96-att"] < value["w96-snr"], "what the data card says of them"
    assert ((frame["model"] == "test images") == (frame["solver"] == "floor")).all()
    text = (DATA / "results" / "README.md").read_text(encoding="utf-8")
    assert text == page.results_page(frame), "run `tt card` and commit"
    readme = (PACKAGE_ROOT / "README.md").read_text(encoding="utf-8")
    assert page.insert_block(readme, page.results_block(frame)) == readme, "run `tt card` and commit"
    assert (DATA / "MANIFEST.csv").read_text(encoding="utf-8") == page.manifest(DATA), "run `tt card` and commit"
    linked = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert linked == {line[3:].lower().replace(",", "").replace(" ", "-") for line in re.findall("(?m)^## .*", text)}
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert len(" ".join(prose).split()) <= 1_200 and len(readme.split()) <= 1_300
    first = (PACKAGE_ROOT / "notebooks" / "site" / "index.md").read_text(encoding="utf-8")
    assert f"![{page.SAMPLES_ALT}](" in readme
    for path, alt in ((FIGURE, page.ALT), (SAMPLES, page.SAMPLES_ALT)):
        assert f"![{alt}](../../{path})" in first
        with Image.open(PACKAGE_ROOT / path) as picture:
            assert picture.info["Description"] == alt


def test_readme_has_no_number_of_its_own():
    """A distance, or any other decimal, stands in the block that `tt card` writes."""
    readme = (PACKAGE_ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(
        r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv \d+\.\d+|Python 3\.\d+", "", page.insert_block(readme, ""), flags=re.S
    )
    assert not re.findall(r"\d+\.\d\d+", prose)


def test_from_50_000_samples_distances_are_smaller_and_no_verdict_on_tuning_is_reversed():
    frame = read_rows(DATA / "results" / "fd.csv", FD_COLUMNS)
    few, many = (page.beside(frame, n=n).set_index([*SAMPLER, "timing"]).sort_index() for n in (page.N, page.MANY))
    shared = few.index.intersection(many.index)
    bias = few.loc[shared, "first"] - many.loc[shared, "first"]
    assert bias.min() > 0 and 1.95 < bias.max() < 2.05 and len(shared) > 200
    for *sampler, timing in shared[shared.get_level_values("timing").isin(page.STEPWISE)]:
        for which in ("first", "second"):
            verdicts = []
            for rows in (few, many):
                tuned, untuned = rows.loc[(*sampler, timing)], rows.loc[(*sampler, "untuned")]
                verdicts.append(int(page.less(tuned, untuned, which)) - int(page.less(untuned, tuned, which)))
            assert verdicts[0] * verdicts[1] >= 0


def test_the_headlines_recipe_has_the_least_sum_of_losses_on_held_out_noise():
    """Of those that were learned at all numbers."""
    learnt = [load_timing(path) for path in (DATA / "timings" / MODEL).glob("*-learned-grid-*.json")]
    losses = pd.DataFrame(
        [
            (make_solver(x.solver, **x.options).spelling, x.name, len(x.taus), x.tuning.get("validation_learned"))
            for x in learnt
        ]
    ).dropna()
    losses = losses.pivot(index=[0, 1], columns=2, values=3)[list(page.FEW)].dropna()
    assert len(losses) > 3 and losses.sum(axis=1).idxmin() == (BEST["solver"], LEARNED)


def test_what_the_pages_say_in_words_is_so():
    frame = read_rows(DATA / "results" / "fd.csv", FD_COLUMNS)
    plain, learned, end = page.of_headline(frame)
    assert list(learned.index) == list(page.FEW) and (learned["first"] < plain["first"]).all()
    assert (learned["second"] < plain["second"]).all() and (learned["first"] > end["first"]).all()
    assert page.claim(frame), "the sentence in bold that README begins with"
    straight = page.beside(frame, STRAIGHT).set_index([page.beside(frame, STRAIGHT)["timing"].str[:7], "solver", "nfe"])
    last = {"euler": 10, "heun": 6, "dpmpp-2m": 5, "unipc": 4}
    for solver, nfe in straight.loc["learned"].index:
        mine, plain_one = (straight.loc[(timing, solver, nfe)] for timing in ("learned", "untuned"))
        assert page.less(plain_one, mine, "first") == (nfe <= last[solver]), (solver, nfe)
        assert page.less(mine, plain_one, "first") or solver == "euler" or nfe < 8, (solver, nfe)
    straight = straight["first"]
    own = page.beside(frame)
    ddim = own[(own["solver"] == "ddim") & (own["timing"] == "untuned")].groupby("nfe")["first"].min()
    assert all(straight["untuned", "euler", nfe] < ddim[nfe] for nfe in page.FEW)
    solvers = ("ddim", "dpmpp-2m,final=lower", "unipc,final=lower")
    at = own.set_index(["nfe", "solver", "timing"]).sort_index()
    every = [knobs for count in (1, 2, 3) for knobs in combinations(KNOBS, count)]
    for solver in solvers:
        five, ten = (
            {knobs: at.loc[[(nfe, solver, f"learned-{'-'.join(knobs)}")]].iloc[0] for knobs in every} for nfe in (5, 10)
        )
        assert all(page.less(five[two], five[one], "first") for one in every for two in every if set(one) < set(two))
        single = min((knobs for knobs in every if len(knobs) == 1), key=lambda knobs: five[knobs]["first"])
        assert single == (("grid",) if "unipc" in solver else ("gain",))
        for found in (five, ten):
            timing, gain = (found["grid", knob]["first"] for knob in ("timing", "gain"))
            assert (timing < gain) == (solver != "ddim")
        assert page.less(ten[KNOBS], ten[KNOBS[:2]], "first") == (solver == "ddim")
    six = own[own["nfe"] == 6].set_index("timing")
    for choice in ("noises=16", "iterations=100"):
        pair = six.loc["learned-grid-timing"], six.loc[f"learned-grid-timing,{choice}"]
        assert not any(page.less(*pair, which) or page.less(*pair[::-1], which) for which in ("first", "second"))
    small = page.beside(frame, page.SMALL).set_index(["nfe", "timing"])["first"]
    for nfe in (5, 10):
        lent, learned_for, plain_one = (
            small[nfe, timing].min()
            for timing in (f"learned-grid-timing,of_model={MODEL}", "learned-grid-timing", "untuned")
        )
        assert plain_one - lent > 0.75 * (plain_one - learned_for)
    value = at["first"].groupby(level=[0, 1, 2]).first()
    untuned = own[own["timing"] == "untuned"].groupby(["nfe", "solver"])["first"].min()
    two_m, unipc = solvers[1:]
    for nfe in (5, 10):

        def lent(to: str, of: str, knobs: str, nfe: int = nfe) -> float:
            return value[nfe, to, f"learned-{knobs},of_solver={of.replace(',', '+')}"]

        assert all(lent(two_m, of, "grid") < 1.1 * value[nfe, two_m, "learned-grid"] for of in ("ddim", unipc))
        near = [lent(unipc, of, "grid") < 1.1 * value[nfe, unipc, "learned-grid"] for of in ("ddim", two_m)]
        assert near == [nfe == 5] * 2
        assert all(lent("ddim", of, "grid") > 0.99 * untuned[nfe, "ddim"] for of in (two_m, unipc))
        assert lent(two_m, unipc, "grid-timing") < 0.9 * untuned[nfe, two_m]
        assert all(lent(to, "ddim", "grid-timing") > 1.4 * untuned[nfe, to] for to in (two_m, unipc))
        assert lent(unipc, "ddim", "grid-timing-gain") > 1.4 * untuned[nfe, unipc]
        assert (lent("ddim", unipc, "grid-timing") > 1.2 * untuned[nfe, "ddim"]) == (nfe == 5)
        assert all(lent("ddim", unipc, knobs) > untuned[nfe, "ddim"] for knobs in ("grid-timing", "grid-timing-gain"))
        assert (lent(two_m, "ddim", "grid-timing-gain") < untuned[nfe, two_m]) == (nfe == 5)
        assert [lent(to, two_m, "grid-timing") < untuned[nfe, to] for to in ("ddim", unipc)] == [nfe == 5] * 2
    of_nfe = own[own["timing"].str.contains("of_nfe")]
    assert all(
        page.less(at.loc[[(row["nfe"], unipc, "learned-grid-timing")]].iloc[0], row, "first")
        for _, row in of_nfe.iterrows()
    )
    assert 2 * (of_nfe["first"] > plain["first"][of_nfe["nfe"]].to_numpy()).sum() > len(of_nfe) == 12
    quadratic = own.query("solver == 'ddim' and grid == 'quadratic' and eta == 0").set_index(["nfe", "timing"])["first"]
    for (nfe, timing), found in quadratic.items():
        objective = timing.split(",")[0].removesuffix("-freeze0")
        if objective not in page.STEPWISE or timing == objective or "gate" in timing:
            continue
        if timing in ("consistency-parallel,images=16", "consistency-sequential,optimiser=adam") and nfe == 5:
            assert found < 0.9 * quadratic[nfe, objective]
            assert (found < quadratic[nfe, "untuned"]) == ("images" in timing)
        elif timing == "consistency-parallel,seed=3" and nfe == 5:
            assert 1.15 * quadratic[nfe, "untuned"] < found < 0.95 * quadratic[nfe, objective], "harms a little less"
        else:
            assert abs(found / quadratic[nfe, objective] - 1) < 0.05
    gated = [quadratic[nfe, "consistency-parallel,gate=true"] for nfe in (5, 10)]
    assert abs(gated[0] / quadratic[5, "untuned"] - 1) < 0.01
    assert quadratic[10, "untuned"] - gated[1] < 0.5 * (
        quadratic[10, "untuned"] - quadratic[10, "consistency-parallel"]
    )
    falling = own[(own["solver"] == "unipc,final=lower") & (own["timing"] == LEARNED)].set_index("nfe")
    assert [nfe for nfe in page.FEW if page.less(learned.loc[nfe], falling.loc[nfe], "first")] == [4, 5]
    assert not any(page.less(falling.loc[nfe], learned.loc[nfe], "first") for nfe in page.FEW)
    analytic = own[own["solver"].str.startswith("analytic-ddim") & (own["nfe"] == 10)]
    for row in analytic.to_dict("records"):
        assert page.number(row["first"]) in page.PAGE
    *_, taus, _ = cells(page.published_table(frame))
    assert float(taus[2]) > 0.85 > float(taus[3])
    assert value[5, unipc, "learned-gits"] > 300
    rows = own.query("grid == 'uniform' and solver != 'ddim' and nfe < 20")
    values = rows.set_index(["timing", "solver", "nfe"])["first"]
    for key in values["consistency-sequential"].index:
        untuned, ruined, frozen = (values[name][key] for name in ("untuned", *page.STEPWISE[::2]))
        assert ruined > 4 * untuned and ruined - frozen > 0.5 * (ruined - untuned)


def test_the_headline_names_the_best_untuned_sampler_of_both_paths():
    head, *lines = cells(page.headline_table(FRAME))
    assert head[:2] == ["NFE", "best untuned, by ImageNet"] and len(head) == 8
    assert lines[0][:5] == [
        "5",
        "unipc · straight path",
        "12.0 ± 0.1 (2.4)",
        "9.00 ± 0.10 (1.8)",
        "25 ± 1 %",
    ]
    assert lines[0][5:] == ["8.00 ± 0.10 (3.2)", "3.25 ± 0.10 (1.3)", "59 ± 1 %"], "of the same sampler"
    assert lines[1][:2] == ["10", "dpmpp-2m · quadratic"]
    assert lines[2] == [
        "60",
        "dpmpp-2m · karras: converged solution",
        "5.00 ± 0.10 (1.0)",
        "",
        "",
        "2.50 ± 0.10 (1.0)",
        "",
        "",
    ]
    assert len(cells(page.headline_table(ROWS[ROWS["nfe"] != 60]))) == 3, (
        "without a converged solution there is no multiple of it"
    )


def test_the_short_headline_has_the_distances_alone():
    head, line, *_, last = cells(page.headline_table(FRAME, short=True))
    assert head[2:] == ["untuned, ImageNet", "learned, ImageNet", "untuned, classifier", "learned, classifier"]
    assert line[2:] == ["12.0 ± 0.1", "9.00 ± 0.10", "8.00 ± 0.10", "3.25 ± 0.10"]
    assert last[2:] == ["5.00 ± 0.10", "", "2.50 ± 0.10", ""]


def test_a_gain_has_the_interval_of_a_ratio_and_may_be_a_loss():
    plain = {"first": 10.0, "first_low": 9.0, "first_high": 11.0}
    other = {"first": 12.0, "first_low": 10.8, "first_high": 13.2}
    # 1 - 1.2 and 1.2 * sqrt(0.1^2 + 0.1^2).
    assert page.gain(plain, other, "first") == "−20 ± 17 %"


def test_the_claim_is_made_of_the_primary_metric_and_says_what_the_second_says():
    begin = (
        "**10 learned evaluations do better than 10 of every untuned sampler here**, in ImageNet features: 6.00 against"
    )
    assert page.claim(FRAME).startswith(f"{begin} 8.00."), "at NFE 5 an untuned one in 10 is better"
    said = "An untuned sampler first reaches 6.00 in 60 evaluations, DDIM on the diffusion's grids in none"
    assert said in page.claim(FRAME)
    later = both(("ddim", "uniform", 50, "untuned", 6.0, 2.6), ("ddim", "uniform", 20, "untuned", 6.1, 2.6))
    assert "between 20 and 50 evaluations, DDIM on the diffusion's grids between 20 and 50." in page.claim(
        pd.concat([FRAME, later])
    )
    other = both(("heun", "uniform", 30, "untuned", 9.0, 2.9))
    assert "between 20 and 50 evaluations" in page.claim(pd.concat([FRAME, later, other])), "of those that reach it"
    alone = both(("ddim", "uniform", 50, "untuned", 6.0, 2.6))
    first = page.claim(pd.concat([FRAME[FRAME["solver"] != "ddim"], alone]))
    assert "DDIM on the diffusion's grids in 50." in first, "nothing was measured with fewer"
    blind = both(("ddim", "logsnr", 10, "untuned", 9.0, 2.7))
    said = (
        "they have 2.80. The least untuned distance there, 2.70, is not clearly different: `ddim` on the grid "
        "`logsnr` in 10, with 9.00"
    )
    assert said in page.claim(pd.concat([FRAME, blind]))
    near = both(("ddim", "logsnr", 10, "untuned", 6.1, 9.0))
    assert page.claim(pd.concat([FRAME, near])) == "", "0.1 is less than the interval of the difference, 0.14"
    assert page.claim(FLOW) == ""


def test_many_samples_are_said_beside_their_own_converged_solution():
    many = both(
        ("unipc", "learned", 10, LEARNED, 4.4, 2.6),
        ("unipc", "learned", 5, LEARNED, 7.0, 3.0),
        ("dpmpp-2m", "karras", 60, "untuned", 4.0, 2.5),
        ("unipc", "quadratic", 5, "untuned", 14.0, 6.0),
        ("ddim", "quadratic", 10, "untuned", 9.0, 3.0),
        n=50_000,
    )
    said = (
        "has 7.00 and 4.40 in 5 and 10 evaluations, the best untuned one measured so 14.0 and 9.00. The learned "
        "distances are 1.75 and 1.10 times the converged solution's 4.00."
    )
    assert said in page.many_samples(pd.concat([FRAME, many]))
    assert page.many_samples(FRAME) == ""


def test_the_tables():
    assert cells(page.untuned_table(FRAME)) == [
        ["sampler", "5", "10"],
        ["dpmpp-2m · quadratic", "", "**8.00 / 3.20**"],
        ["unipc,final=lower · quadratic", "18.0 / 7.00", ""],
        ["euler · straight path", "22.8 / 7.20", ""],
        ["unipc · straight path", "**12.0 / 8.00**", ""],
        ["ddim · uniform", "60.0 / 15.0", ""],
    ], "the converged solution has too many evaluations"
    assert cells(page.learned_table(FRAME))[1:] == [
        [f"{BEST['solver']} · {LEARNED}", "9.00 / 3.25", "6.00 / 2.80"],
        [f"euler · {LEARNED},start=uniform-trailing · straight path", "34.5 / 7.30", ""],
    ]
    lent = both(("ddim", "learned", 5, f"{LEARNED},of_model={MODEL}", 70.0, 20.0), model=page.SMALL)
    _, last = cells(page.learned_table(pd.concat([FRAME, lent]), elsewhere=True))
    assert last == [f"ddim · {LEARNED},of_model={MODEL} · small network", "70.0 / 20.0"]
    other = both(
        ("ddim", "uniform", 5, "truncation-parallel,images=16", 50.0, 12.0),
        ("ddim", "uniform", 5, "consistency-parallel-freeze0", 66.0, 15.0),
        ("ddim", "uniform", 5, "epsilon-1.005", 50.0, 16.0),
    )
    _, line, *lines = cells(page.step_table(pd.concat([FRAME, other])))
    assert lines == [
        ["ddim · uniform · epsilon-1.005", "5", "50.0 / 16.0", "", "", "", ""],
        ["ddim · uniform · freeze0", "5", "", "", "66.0 / 15.0", "", ""],
        ["ddim · uniform · images=16", "5", "", "", "", "", "**50.0 / 12.0**"],
    ]
    assert line == ["ddim · uniform", "5", "60.0 / 15.0", "**54.0 / 13.0**", "", "", "68.0 / 12.0"], "bold is for both"
    floors = [
        fd_rows(("floor", "", 0, "floor", value), features=name, model="test images", n=10_000)
        for name, value in zip(FEATURES, (2.4, 0.27), strict=True)
    ]
    assert "have 2.40 in ImageNet features, and 0.270 in the" in page.floor(pd.concat([FRAME, *floors]))
    assert page.floor(FRAME) == ""


def test_falling_orders_that_change_nothing_have_one_row():
    twins = [(f"unipc{end}", "uniform", nfe, "untuned", nfe, nfe) for end in ("", ",final=lower") for nfe in (5, 10)]
    assert len(cells(page.untuned_table(both(*twins)))) == 2
    assert len(cells(page.untuned_table(both(*twins[:3], (*twins[3][:4], 7.0, 10.0))))) == 3, "one of two differs"


def test_published_fids_stand_beside_our_distances_with_the_agreement_of_their_order():
    # In this order their FIDs grow: 4.67, 6.84, 7.74, 13.36. The classifier's features turn one pair of six round.
    ours = [
        ("quadratic", 50, 1.0, 1.0),
        ("quadratic", 20, 2.0, 2.0),
        ("uniform", 50, 3.0, 4.0),
        ("quadratic", 10, 4.0, 3.0),
    ]
    frame = both(*(("ddim", grid, nfe, "untuned", one, two) for grid, nfe, one, two in ours))
    _, *lines, taus, pairs = cells(page.published_table(frame))
    assert lines[0] == ["ddim · quadratic, 50", "4.67", "1.00", "1.00"] and len(lines) == 4
    assert taus[2:] == ["1.00", "0.67"], "(5 - 1) / 6"
    assert pairs == ["pairs in another order, of 6", "", "0", "1"]


def test_rows_that_come_later_find_their_table():
    """One in a single feature, of more samples or of another seed finds none."""
    later = both(
        ("ddpm", "uniform", 10, "untuned", 70.0, 20.0),
        ("ddim", "uniform", 20, "untuned", 17.0, 5.0),
        ("unipc,final=lower", "uniform", 5, "learned-timing", 11.0, 4.0),
        ("unipc,final=lower", "learned", 5, "learned-ld3", 10.0, 3.5),
    )
    noisy = both(("ddim", "uniform", 10, "untuned", 99.0, 9.0)).assign(eta=1.0)
    left_out = [
        fd_rows(("heun", "uniform", 10, "untuned", 1.0), features=FEATURES[0], n=10_000),
        both(("ddim", "uniform", 5, "untuned", 1.0, 1.0), n=50_000),
        both(("ddim", "uniform", 5, "untuned", 1.0, 1.0)).assign(seed=1),
    ]
    text = page.results_page(pd.concat([FRAME, later, noisy, *left_out], ignore_index=True))
    for words in ("ddpm · uniform", "ddim, eta 1 · uniform", "learned-timing · uniform", "learned-ld3", "17.0 / 5.00"):
        assert words in text.replace("\u00a0", " ")
    assert "heun" not in text and "1.00\u00a0/\u00a01.00" not in text


def test_the_report(tmp_path, monkeypatch):
    drawn, original = [], results.distance_curves
    monkeypatch.setattr(results, "distance_curves", lambda *given: drawn.append(given) or original(*given))
    (tmp_path / "README.md").write_text("no markers", encoding="utf-8")
    with pytest.raises(CorruptFile, match="lacks the markers"):
        page.write_report(tmp_path, FRAME)
    (tmp_path / "README.md").write_text(f"before {MARK}old{page.END_MARK} after", encoding="utf-8")
    page.write_report(tmp_path, FRAME)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        text.startswith("before ") and text.endswith(" after") and "old" not in text and "9.00\u00a0±\u00a00.10" in text
    )
    assert (tmp_path / FIGURE).stat().st_size > 1000
    curves, lines = drawn[-1]
    assert {name: rows["value"].to_dict() for name, rows in curves.items()} == {
        "DDIM": {5: 60.0},
        "best untuned sampler": {5: 12.0, 10: 8.0},
        "learned sampler": {5: 9.0, 10: 6.0},
    }
    assert lines == {"converged solution: 60 evaluations": 5.0}


def test_the_figure_names_its_curves_and_its_line():
    few = pd.DataFrame({"value": [20.0, 8.0], "low": [19.0, 7.5], "high": [21.0, 8.5]}, index=[5, 10])
    axes = results.distance_curves({"a": few, "b": few.iloc[:0], "c": few / 2}, {"the end": 3.0}).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[20, 8], [], [10, 4], [3, 3]]
    assert [(text.get_text(), tuple(text.xy)) for text in axes.texts[:2]] == [("a", (10, 8)), ("c", (10, 4))]
    assert axes.texts[2].get_text() == "the end" and axes.get_yscale() == axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10"]
    assert [bar.get_segments()[0][:, 1].tolist() for bar in axes.collections[::2]] == [[19, 21], [9.5, 10.5]]
    with pytest.raises(BadValue, match="no distance to draw"):
        results.distance_curves({"b": few.iloc[:0]}, {})


def test_the_picture_of_samples_has_a_row_for_each_sampler_and_one_noise(tmp_path):
    asked = []

    def sampler(cell, timing):
        return lambda seeds: asked.append((cell, timing, list(seeds))) or SimpleNamespace(x=torch.zeros(4, 3, 32, 32))

    path = page.write_samples(tmp_path, SimpleNamespace(model=SimpleNamespace(name=MODEL), sampler=sampler))
    assert [cell.nfe for cell, _, _ in asked] == [5, 5, 5, 60] and all(seeds == [0, 1, 2, 3] for *_, seeds in asked)
    assert [timing and timing.name for _, timing, _ in asked] == [None, None, LEARNED, None]
    with Image.open(path) as picture:
        assert picture.height > 4 * 4 * 32 and picture.info["Title"].endswith("`tt card --samples`.")


def test_every_shipped_file_names_the_command_that_made_it(tmp_path):
    files = pd.read_csv(DATA / "MANIFEST.csv")
    assert files["command"].str.startswith(("tt ", "torchrun ")).all() and not files["path"].duplicated().any()
    assert files.loc[files["path"].str.startswith("pretrained/"), "bytes"].max() <= 45e6, "small enough for a clone"
    assert page.manifest(tmp_path) == "path,bytes,sha256,command\n", "a folder that is not there yet is no error"
    (tmp_path / "gamma").mkdir()
    (tmp_path / "gamma" / "a.json").write_text("{}")
    assert page.manifest(tmp_path).splitlines()[1].startswith("gamma/a.json,2,") and page.manifest(tmp_path).endswith(
        ",\n"
    )
