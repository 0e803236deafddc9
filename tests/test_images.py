"""Contrast and detail of images of which both are known."""

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.metrics.images import beside_fine, contrast, finest_detail


def board(size=8):
    """A chessboard [1, 1, size, size] of -1 and 1: nothing is finer."""
    place = torch.arange(size)
    return (2.0 * ((place[:, None] + place) % 2) - 1)[None, None]


def test_detail_is_what_a_mean_over_neighbours_takes_away():
    slope = torch.linspace(-0.5, 0.5, 8).expand(1, 1, 8, 8)
    inside = finest_detail(slope).reshape(8, 8)[1:-1, 1:-1]
    assert inside.abs().max() < 1e-6, "a slope has none"
    inside = finest_detail(board()).reshape(8, 8)[1:-1, 1:-1]
    # The mean of a square of nine is a ninth of its middle, with its sign.
    assert torch.allclose(inside, board()[0, 0, 1:-1, 1:-1].double() * 8 / 9)
    assert contrast(3 * board()).item() == contrast(board()).item() == pytest.approx(1, abs=0.01)


def test_beside_fine_splits_detail_into_shared_and_foreign():
    generator = torch.Generator().manual_seed(0)
    fine = 0.2 * torch.randn(4, 3, 16, 16, generator=generator)
    assert beside_fine(fine, fine) == pytest.approx(
        {"contrast": 1, "detail": 1, "shared": 1, "foreign": 0, "apart": 0}, abs=1e-6
    )
    half = beside_fine(fine / 2, fine)
    assert (
        half["detail"] == pytest.approx(0.5, abs=0.01)
        and half["shared"] == pytest.approx(0.5, abs=0.01)
        and half["foreign"] < 0.02
    )
    noise = 0.2 * torch.randn(4, 3, 16, 16, generator=generator)
    noisy = beside_fine(fine / 2 + noise, fine)
    assert noisy["shared"] == pytest.approx(0.5, abs=0.1) and noisy["foreign"] == pytest.approx(1, abs=0.1)
    with pytest.raises(BadValue, match="one shape"):
        beside_fine(fine, fine[:2])
