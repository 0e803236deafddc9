"""The site's links are checked (`make site` builds it)."""

import re
import runpy

import pytest

from tt_lib.files import PACKAGE_ROOT

dead = runpy.run_path(str(PACKAGE_ROOT / "notebooks" / "site" / "check_links.py"))["dead"]


@pytest.fixture
def site(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a b.html").write_text(
        '<h1 id="top">A</h1><a href="sub/b.html#part">b</a><a href="#top">up</a><a href="https://x.org/y">x</a>'
    )
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
    (found,) = dead(site)
    assert found.startswith("a b.html: ") and words in found


def test_an_empty_folder_is_no_site(tmp_path):
    assert dead(tmp_path) != []


def test_figures_keep_their_shape_where_a_page_is_narrower():
    """Their width and height stand in the page, and the theme shrinks the width alone."""
    folder = PACKAGE_ROOT / "notebooks" / "site"
    conf = runpy.run_path(str(folder / "conf.py"))
    styles = "".join(
        (folder / place / name).read_text() for place in conf["html_static_path"] for name in conf["html_css_files"]
    )
    assert re.search(r"\.cell_output img \{[^}]*height: auto;", styles)
