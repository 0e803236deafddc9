"""Contrast and detail of images of which both are known."""

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.metrics.images import beside_fine


def noise(seed: int) -> torch.Tensor:
    return 0.2 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_detail_is_split_into_shared_and_foreign():
    fine = noise(0)
    same = {"contrast": 1, "detail": 1, "shared": 1, "foreign": 0, "apart": 0}
    assert beside_fine(fine, fine) == pytest.approx(same, abs=1e-6)
    half = {"contrast": 0.5, "detail": 0.5, "shared": 0.5, "foreign": 0, "apart": 0.1}
    assert beside_fine(fine / 2, fine) == pytest.approx(half, abs=0.01)
    noisy = beside_fine(fine / 2 + noise(1), fine)
    assert noisy["shared"] == pytest.approx(0.5, abs=0.1) and noisy["foreign"] == pytest.approx(1, abs=0.1)
    # A slope has no detail but at its edge; what lies outside [-1, 1] is cut off.
    slope = torch.linspace(-0.5, 0.5, 64).expand(4, 3, 64, 64)
    assert beside_fine(slope, slope.sign() * noise(0).repeat(1, 1, 4, 4))["detail"] < 0.1
    assert beside_fine(slope.sign() * 3, slope.sign())["contrast"] == pytest.approx(1)
    with pytest.raises(BadValue, match="one shape"):
        beside_fine(fine, fine[:2])
