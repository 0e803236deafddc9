"""The site's links are checked (`make site` builds it)."""

import json
import re
import runpy

import pytest
import torch

from tt_lib.engine import drive
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import read_rows
from tt_lib.solvers.ddim import ddim
from tt_lib.study.page import claim
from tt_lib.toy import MixturePredictor, exact_flow

SITE = PACKAGE_ROOT / "notebooks" / "site"
dead = runpy.run_path(str(SITE / "check_links.py"))["dead"]


@pytest.fixture
def site(tmp_path):
    (tmp_path / "sub").mkdir()
    links = '<a href="sub/b.html#part">b</a><a href="#top">up</a><a href="https://x.org/y">x</a>'
    (tmp_path / "a b.html").write_text(f'<h1 id="top">A</h1>{links}')
    (tmp_path / "sub" / "b.html").write_text('<h2 id="part">B</h2><a href="../a%20b.html">a</a>')
    return tmp_path


def test_links_that_lead_somewhere(site):
    assert dead(site) == []


@pytest.mark.parametrize(
    "link, words", [("gone.html", "is dead"), ("sub/b.html#gone", "no such anchor"), ("#gone", "no such anchor")]
)
def test_a_dead_link_is_found(site, link, words):
    page = site / "a b.html"
    page.write_text(page.read_text() + f'<a href="{link}">x</a>')
    assert dead(site) == [f"a b.html: {link} {words}" if words == "is dead" else f"a b.html: {link} has {words}"]


def test_an_empty_folder_is_no_site(tmp_path):
    assert dead(tmp_path) == [f"no page in {tmp_path}"]


def test_the_contents_name_every_page_and_figures_keep_their_shape_where_a_page_is_narrower():
    conf = runpy.run_path(str(SITE / "conf.py"))
    pages = re.findall(r"(?m)^/(\S+)$", conf["_contents"]())
    assert len(pages) > 20 and all(list(PACKAGE_ROOT.glob(f"{page}.*")) for page in pages)
    # Their width and height stand in the page, and the theme shrinks the width alone.
    styles = [SITE / folder / name for folder in conf["html_static_path"] for name in conf["html_css_files"]]
    assert re.search(r"\.cell_output img \{[^}]*height: auto;", "".join(path.read_text() for path in styles))


def test_the_first_page_is_made_of_rows_and_metadata():
    conf = runpy.run_path(str(SITE / "conf.py"))
    text, parts = (SITE / "index.md").read_text(encoding="utf-8"), conf["_first_page"]()
    assert set(re.findall(r"<!-- \w+ -->", text)) == set(parts)
    assert not re.findall(r"\d\.\d\d", re.sub(r"arXiv \d+\.\d+|\([^)]*\)", "", text)), "its numbers come from rows"
    assert parts["<!-- claim -->"] == claim(read_rows(PACKAGE_ROOT / "data" / "results" / "fd.csv"))
    linked = re.findall(r"\]\(([^)#]+\.(?:ipynb|md|png))\)", text + parts["<!-- path -->"])
    assert len(linked) > 10 and all((SITE / link).exists() for link in linked)
    assert (SITE / "extra" / "index.html").read_text().count("notebooks/site/index.html") == 2, "where / leads"


def test_the_toy_is_a_ddim_step_and_the_right_ends_are_the_flow_s():
    toy = runpy.run_path(str(SITE / "toy.py"))
    made, schedule, mixture = toy["make"](), toy["SCHEDULE"], toy["MIXTURE"]
    times = torch.tensor([toy["BEGIN"], toy["END"]], dtype=torch.float64)
    x = schedule.alpha(times[0]) * made.starts
    untuned = drive(ddim(x, times, schedule, None), MixturePredictor(mixture, schedule)).x / schedule.alpha(times[1])
    at = toy["RATIOS"].tolist().index(1.0)
    torch.testing.assert_close(made.ends[at], untuned, rtol=1e-9, atol=1e-9)
    right = exact_flow(mixture, x, times[0], times[1], schedule) / schedule.alpha(times[1])
    torch.testing.assert_close(made.right, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.path[-1], right[0], rtol=1e-5, atol=1e-5)
    errors = made.errors
    assert errors.min() < 0.75 * errors[at] and errors[0] > errors[at], (
        "a cleaner time helps, and too clean a one harms"
    )


def test_the_toy_asks_nobody_and_shows_what_it_computed():
    toy = runpy.run_path(str(SITE / "toy.py"))
    made = toy["make"]()
    text = toy["html"](made)
    assert not re.search(r"src=|href=|fetch|import ", text) and len(text) < 60_000 and "\n\n" not in text
    data = json.loads(re.search(r"const toy = (\{.*\}), untuned", text)[1])
    assert [len(data[name]) for name in ("ends", "taus", "errors")] == [len(toy["RATIOS"])] * 3
    # From the pixels back to y.
    place = (torch.tensor(data["ends"][0], dtype=torch.float64) / (toy["SIDE"] / 2) - 1) * toy["REACH"]
    torch.testing.assert_close(place * torch.tensor([1.0, -1.0]), made.ends[0], rtol=0, atol=0.001)
    assert text.count("<circle") == len(made.cloud) + 2 * toy["COUNT"] + 1
