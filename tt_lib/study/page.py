"""The pages and the list of files that are made from what lies in ``data/``, and nothing else.

``tt card`` writes them: ``data/results/README.md`` with all tables, the results in the project's README with their
figure, and ``data/MANIFEST.csv``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open

from tt_lib.errors import CorruptFile
from tt_lib.files import file_hash, read_json, write_text
from tt_lib.grids import LEARNED
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import is_tuned
from tt_lib.study.compare import SAMPLER, distances, errors_and_distances, rank_correlation
from tt_lib.study.tables import find_table, read_tables
from tt_lib.timing import UNTUNED

MODEL = "cifar10-ddpm-w96"
FEATURES = ("cifar10-resnet", "cifar10-simclr")
README_N, STUDY_N = 50_000, 10_000
"""Samples of the README's table, and of the study and the ablations."""
MARK, END_MARK = "<!-- results: written by `tt card` from data/results/fd.csv -->", "<!-- end of results -->"
DIRECTION_N = 256
"""Samples of the direction errors that stand beside the main table's distances."""
CEILING_NFE = 200
"""From so many evaluations on, an untuned row counts as the network's ceiling."""
SHIPPED = ("gamma", "pretrained", "stats", "timings")
README_GRIDS, README_MOST_NFE = ("uniform", "quadratic"), 20
"""Grids and numbers of evaluations that the README shows; the page of results has all."""
FIGURE = "data/results/fd.png"
CAPTION = (
    "Fréchet distance of 50,000 samples against the number of network evaluations, untuned and tuned, with 95 % "
    "intervals (most are smaller than the markers)."
)
ALT = "Distance from the training images against the number of evaluations, a panel for each solver and grid."
PAGE = """# Results

`tt card` writes this page from the rows in this folder; the tests compare the two. Each row names the command, the
commit and the device that made it.

- [The main table](#the-main-table): does tuning help a few-step sampler, and how much? Begin here.
- [Every solver](#every-solver): which sampler is best in a given number of evaluations?
- [Ablations](#ablations): what of the tuning matters?
- [Direction errors](#direction-errors): do samples improve because they follow their trajectories more closely?
- [Floor and ceiling](#floor-and-ceiling): how good can a sampler of this network be?
- [Limits](#limits): what these numbers may not be compared with.

A value is a Fréchet distance between samples and the 50,000 training images, in the features that are named; smaller
is better. Behind ± stands half of its 95 % interval, from ten disjoint sets of samples. All timings of one sampler
start from the same noise. `fd.csv` has more: other measures of the same samples, and gains compared seed by seed.

## The main table

{readme_n:,} samples. *Gain* compares the best tuned timing with untuned. It is negative where all timings lose, and
*none seen* where the two intervals overlap.

{main}
## Every solver

{study_n:,} samples, `{first}`; a column for each number of evaluations. A cell shows untuned → the best of the tuned
timings without options, with the first letter of its objective. In bold: the smallest value of a column. The
intervals of others may overlap with its.

{solvers}
## Ablations

DDIM on the uniform grid, {study_n:,} samples. What a timing's name does not say is as in
[ablations.toml](../tables/ablations.toml). In bold: the smallest value of a column.

{ablations}
## Direction errors

The angle is between the direction of a step and the mean of eps along the true trajectory. The local error is what
one step is off by, the accumulated error how far from the end of its true trajectory a sample ends. Both are root
mean squares over pixels, which go from -1 to 1. Angle and local error are means over the steps. Grid `uniform`,
errors of {direction_n} samples, distances of {readme_n:,}. Two figures show all samplers that were measured: [those
of the main table](direction-fd.png) and [those of the study](direction-study.png).

{directions}
{ranks}
## Floor and ceiling

{ends}
## Limits

- **These are not FIDs.** The features are those of two networks that this project trained; only those of Inception-2015
  make a FID. The two have scales of their own: compare within a column.
- **The number of samples counts.** A Fréchet distance of few samples is too large, the more so the fewer there are.
- **The reference is the training images**, which the networks of the features have seen.
- **All samples are of one network** (`tt info`). A better one has other direction errors.
- **`frechet-joint` was tuned by the distance in `cifar10-resnet`**, on other samples. What it gains there shows what
  the times can do; whether samples are better is for the other features to say.
"""


# Tables


def markdown(rows: Sequence[Sequence[str]], head: Sequence[str], words: int = 1) -> str:
    """A table; the first ``words`` columns are aligned left, the numbers behind them right."""
    align = ["left"] * words + ["right"] * (len(head) - words)
    return pd.DataFrame(rows, columns=head).to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def number(value: float, of: float | None = None) -> str:
    """A distance, or a margin ``of`` a distance; three digits behind the point where that is below 1."""
    return f"{value:.3f}" if (of or value) < 1 else f"{value:.2f}"


def plus_minus(row: Any) -> str:
    """A distance with half of its interval."""
    return f"{number(row['value'])} ± {number((row['high'] - row['low']) / 2, row['value'])}"


def tuned_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows without those of learned samplers: they are no tuned timings, and these pages are of tuned ones."""
    return rows[~rows["timing"].str.startswith(f"{LEARNED}-")]


def main_rows(frame: pd.DataFrame, features: str) -> pd.DataFrame:
    """The rows of the main table in one kind of features: deterministic samplers, untuned and tuned, and ceilings."""
    rows = distances(frame, features, README_N, MODEL)
    rows = rows[(rows["eta"] == 0) & ((rows["timing"] == UNTUNED) | rows["timing"].map(is_tuned))]
    return rows[~rows["solver"].map(lambda solver: make_solver(solver).stochastic).astype(bool)]


def _is_ceiling(rows: pd.DataFrame) -> pd.Series:
    return (rows["nfe"] >= CEILING_NFE) & (rows["timing"] == UNTUNED)


def main_table(frame: pd.DataFrame) -> str:
    """Untuned beside the best tuned timing of each sampler in ``frame``, in each of the features."""
    groups = {name: main_rows(frame, name).groupby(["solver", "grid", "nfe"]) for name in FEATURES}
    lines = []
    for key in sorted({key for each in groups.values() for key in each.groups}):
        cells = [_gain(each.get_group(key)) if key in each.groups else None for each in groups.values()]
        if any(cells):
            lines.append(
                [f"{key[0]}, {key[1]}", str(key[2]), *(text for cell in cells for text in cell or ("", "", ""))]
            )
    columns = [title for name in FEATURES for title in (f"untuned, {name}", "best tuned", "gain")]
    return markdown(lines, ["sampler", "NFE", *columns])


def _gain(rows: pd.DataFrame) -> tuple[str, str, str] | None:
    """Untuned, the best tuned timing and its gain, of the rows of one sampler; None where there are not both.

    Where the two intervals overlap, no gain is claimed.
    """
    untuned, tuned = rows[rows["timing"] == UNTUNED], rows[rows["timing"] != UNTUNED]
    if untuned.empty or tuned.empty:
        return None
    plain, best = untuned.iloc[0], tuned.loc[tuned["value"].idxmin()]
    overlap = best["low"] <= plain["high"] and plain["low"] <= best["high"]
    gain = "none seen" if overlap else f"{100 * (1 - best['value'] / plain['value']):.0f} %".replace("-", "−")
    return plus_minus(plain), f"{plus_minus(best)} {best['timing']}", gain


def floor_and_ceiling(frame: pd.DataFrame) -> str:
    """A line for each: the distances of many evaluations, and of real test images."""
    lines = []
    for name in FEATURES:
        rows = main_rows(frame, name)
        ceilings = rows[_is_ceiling(rows)]
        floors = frame[(frame["solver"] == "floor") & (frame["features"] == name)]
        lines += [
            f"- ceiling, {row['solver']}, {row['grid']}, {row['nfe']} evaluations untuned: {plus_minus(row)} (`{name}`)"
            for row in ceilings.to_dict("records")
        ]
        lines += [
            f"- floor, {row['n']:,} test images: {plus_minus(row)} (`{name}`)" for row in floors.to_dict("records")
        ]
    return "\n".join(lines) + "\n"


def solver_tables(frame: pd.DataFrame) -> Iterator[str]:
    """A table for each grid: every solver against NFE, untuned and its best timing without options."""
    rows = distances(frame, FEATURES[0], STUDY_N, MODEL)
    rows = rows[(rows["timing"] == UNTUNED) | rows["timing"].map(lambda timing: is_tuned(timing) and _plain(timing))]
    # A sampler whose untuned row is yet to come has nothing to be compared with.
    rows = rows.merge(rows.loc[rows["timing"] == UNTUNED, SAMPLER], on=SAMPLER)
    rows = rows[~_is_ceiling(rows)]
    for grid, group in rows.groupby("grid", sort=False):
        nfes = sorted(group["nfe"].unique())
        best = group.groupby("nfe")["value"].min()
        lines = []
        for (solver, eta), own in group.groupby(["solver", "eta"], sort=False):
            cells = [_solver_cell(own[own["nfe"] == nfe], best[nfe]) for nfe in nfes]
            lines.append([f"{solver}{f', eta {eta:g}' if eta else ''}", *cells])
        # A grid that one solver was tried on is in the main table.
        if len(lines) > 1:
            yield f"Grid `{grid}`:\n\n{markdown(lines, ['solver', *map(str, nfes)])}"


def _plain(timing: str) -> bool:
    """Whether a tuned timing has no options."""
    return "," not in timing and "-freeze" not in timing


def _solver_cell(rows: pd.DataFrame, best: float) -> str:
    untuned, tuned = rows[rows["timing"] == UNTUNED], rows[rows["timing"] != UNTUNED]
    values = [*untuned["value"], *([tuned["value"].min()] if len(tuned) else [])]
    text = " → ".join(f"**{number(value)}**" if value == best else number(value) for value in values)
    return text + (f" {tuned.loc[tuned['value'].idxmin(), 'timing'][0]}" if len(tuned) else "")


def ablation_table(frame: pd.DataFrame) -> str:
    """The timings of ``ablations.toml``, a column for each of the features and NFE, and half of their intervals."""
    asked = pd.DataFrame([asdict(cell) for table in read_tables(find_table("ablations")) for cell in table.cells])
    rows = pd.concat([asked.merge(distances(frame, name, STUDY_N, MODEL)).sort_values("nfe") for name in FEATURES])
    rows = rows.assign(
        column=rows["features"] + ", NFE " + rows["nfe"].astype(str), half=(rows["high"] - rows["low"]) / 2
    )
    columns = list(rows["column"].unique())
    table = rows.pivot(index="timing", columns="column", values="value")[columns]
    text = table.map(lambda value: "" if pd.isna(value) else number(value))
    text = text.where(table.ne(table.min()), "**" + text + "**").reindex(asked["timing"].unique()).dropna()
    text.loc["half of the interval, median"] = rows.groupby("column")["half"].median().map("{:.2g}".format)
    return markdown(text.reset_index().to_numpy().tolist(), ["timing", *columns])


def direction_table(errors: pd.DataFrame) -> str:
    """DDIM and DPM-Solver++(2M) on the uniform grid, untuned and tuned step by step: errors beside distances."""
    timings = [UNTUNED, "consistency-parallel", "truncation-parallel"]
    rows = errors.assign(timing=pd.Categorical(errors["timing"], timings)).dropna(subset="timing")
    rows = rows[rows["solver"].isin(["ddim", "dpmpp-2m"]) & (rows["grid"] == "uniform") & rows["nfe"].isin([5, 10, 20])]
    lines = [
        [
            f"{row['solver']}, {row['nfe']}",
            row["timing"],
            f"{row['angle']:.2f}°",
            f"{row['local']:.4f}",
            f"{row['accumulated']:.4f}",
            *("" if pd.isna(row[name]) else number(row[name]) for name in FEATURES),
        ]
        for row in rows.sort_values(["solver", "nfe", "timing"]).to_dict("records")
    ]
    head = [
        "solver, NFE",
        "timing",
        "angle",
        "local error",
        "accumulated error",
        *(f"FD ({name})" for name in FEATURES),
    ]
    return markdown(lines, head, words=2)


def rank_sentence(errors: pd.DataFrame, measure: str) -> str:
    """The rank correlations of a direction error with the distances, in words; empty for too few samplers."""
    parts = []
    for name in FEATURES:
        ranks = rank_correlation(errors, measure, name)
        words = [
            f"{row.spearman:.2f} ({row.low:.2f} to {row.high:.2f}) among {group}" for group, row in ranks.iterrows()
        ]
        parts += [f"in `{name}` {', '.join(words)}"] if words else []
    return f"Rank correlation of the {measure} error with the distance: {'; '.join(parts)}.\n" if parts else ""


# Pages


def results_block(frame: pd.DataFrame) -> str:
    """What stands between the markers in README."""
    frame = tuned_alone(frame)
    shown = frame[frame["grid"].isin(README_GRIDS) & (frame["nfe"] <= README_MOST_NFE)]
    return "\n".join([MARK, main_table(shown), floor_and_ceiling(frame)]) + END_MARK


def results_page(frame: pd.DataFrame, directions: pd.DataFrame) -> str:
    """The text of ``data/results/README.md``.

    Args:
        frame, directions: rows of ``fd.csv`` and of ``direction.csv``.
    """
    frame, directions = tuned_alone(frame), tuned_alone(directions)
    errors = errors_and_distances(directions[directions["n"] == DIRECTION_N], frame, FEATURES, README_N, MODEL)
    return PAGE.format(
        main=main_table(frame),
        solvers="\n".join(solver_tables(frame)),
        ablations=ablation_table(frame),
        directions=direction_table(errors),
        ranks="\n".join(rank_sentence(errors, measure) for measure in ("accumulated", "local")),
        ends=floor_and_ceiling(frame),
        first=FEATURES[0],
        readme_n=README_N,
        study_n=STUDY_N,
        direction_n=DIRECTION_N,
    )


def insert_block(page: str, block: str) -> str:
    """``page`` with the text between the markers replaced.

    Raises:
        CorruptFile: the page lacks the markers.
    """
    before, begin, rest = page.partition(MARK)
    _, end, after = rest.partition(END_MARK)
    if not (begin and end):
        raise CorruptFile(f"the page lacks the markers {MARK!r} and {END_MARK!r}; put them where the results belong")
    return before + block + after


def write_report(root: Path, frame: pd.DataFrame) -> list[Path]:
    """Write the figure, and the results block of ``root``'s README; returns their paths."""
    from tt_lib.figures.results import fd_against_nfe
    from tt_lib.figures.style import save_figure

    rows = main_rows(tuned_alone(frame), FEATURES[0])
    ceiling = _is_ceiling(rows)
    drawn = rows.assign(timing=rows["timing"].mask(ceiling, "ceiling"))
    drawn.loc[ceiling, ["solver", "grid"]] = ""
    # One NFE makes no curve: such a sampler is not drawn beside those of several.
    curves = ~ceiling & (drawn.groupby(["solver", "grid"])["nfe"].transform("nunique") > 1)
    readme, figure = root / "README.md", root / FIGURE
    save_figure(fd_against_nfe(drawn[curves | ceiling] if curves.any() else drawn), figure, CAPTION, ALT)
    write_text(readme, insert_block(readme.read_text(encoding="utf-8"), results_block(frame)))
    return [readme, figure]


# Files


def manifest(data: Path) -> str:
    """The text of ``data/MANIFEST.csv``: path, bytes, sha256 and command of each shipped file."""
    files = sorted(path for folder in SHIPPED for path in (data / folder).rglob("*") if path.is_file())
    rows = [
        (path.relative_to(data).as_posix(), path.stat().st_size, file_hash(path), made_by(path))
        for path in files
        if not path.name.startswith(".")
    ]
    return pd.DataFrame(rows, columns=["path", "bytes", "sha256", "command"]).to_csv(index=False, lineterminator="\n")


def made_by(path: Path) -> str:
    """The command that made a file: from its own provenance, or from the card beside it; empty if neither says.

    Raises:
        CorruptFile: a file is damaged.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                command = (file.metadata() or {}).get("command", "")
        except SafetensorError as error:
            raise CorruptFile(f"{path} is no safetensors file ({error}); restore it from git") from error
        if command:
            return command
    for card in (path, path.parent / "tt_model.json", path.parent / "config.json"):
        if card.suffix == ".json" and card.is_file():
            content = read_json(card)
            command = content.get("command") or content.get("provenance", {}).get("command")
            if command:
                return command
    return ""
