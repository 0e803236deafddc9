"""The site's links are checked (`make site` builds it)."""

import re
import runpy

import pytest

from tt_lib.files import PACKAGE_ROOT

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
    pages = re.findall(r"(?m)^(?:notebooks|data)/\S+$", conf["_contents"]())
    assert len(pages) > 20 and not [page for page in pages if not list(PACKAGE_ROOT.glob(f"{page}.*"))]
    # Their width and height stand in the page, and the theme shrinks the width alone.
    styles = [SITE / folder / name for folder in conf["html_static_path"] for name in conf["html_css_files"]]
    assert re.search(r"\.cell_output img \{[^}]*height: auto;", "".join(path.read_text() for path in styles))
