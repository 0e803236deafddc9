"""One drawing of a value as a picture, as a strip and as a player without a network."""

import base64
import io
import re

import pytest
from PIL import Image

from tt_lib.errors import BadValue
from tt_lib.figures.frames import ICONS, picture, player, player_html, strip

WORDS = "A line that rises more steeply from picture to picture."


def draw(axes, value, shift=0):
    axes.plot([0, 1], [shift, shift + value], label="a line")
    axes.set(xlim=(0, 1), ylim=(0, 4), xlabel="x", ylabel="y", title=str(value))


def test_a_picture_and_a_strip_show_their_values_with_one_legend():
    one, many = picture(draw, 2, 1), strip(draw, (1, 2, 3))
    assert list(one.axes[0].lines[0].get_ydata()) == [1, 3]
    assert [list(axes.lines[0].get_ydata()) for axes in many.axes] == [[0, 1], [0, 2], [0, 3]]
    assert [axes.get_ylabel() for axes in many.axes] == ["y", "", ""]
    assert [axes.get_xlabel() for axes in many.axes] == ["", "x", ""]
    assert [[text.get_text() for text in figure.legends[0].texts] for figure in (one, many)] == [["a line"]] * 2


def test_a_player_holds_a_picture_for_each_value_and_needs_no_network():
    text = player_html(draw, (1, 2, 3), WORDS)
    sources = re.findall(r'frames\[\d\] = "data:image/png;base64,([^"]*)"', text)
    pictures = [base64.b64decode(source.replace("\\\n", "")) for source in sources]
    assert len(set(pictures)) == 3 and all(Image.open(io.BytesIO(each)).width > 500 for each in pictures)
    # What stands there before a script runs is the first of them.
    shown = re.search(rf'<img alt="{WORDS}" style="[^"]*" src="data:image/png;base64,([^"]*)"', text)
    assert base64.b64decode(shown[1]) == pictures[0]
    assert "http" not in text and "<link" not in text and "fa-" not in text
    assert all(icon in text for icon in ICONS.values())
    assert text == player_html(draw, (1, 2, 3), WORDS), "a stored notebook changes only where its figures do"


def test_a_player_says_in_words_what_it_shows(capsys):
    player(draw, (1, 2), WORDS)
    assert f"'text/plain': '<Player: {WORDS}>'" in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda: strip(draw, ()), lambda: player_html(draw, (), WORDS)])
def test_no_value_is_an_error(make):
    with pytest.raises(BadValue, match="no value to draw"):
        make()
