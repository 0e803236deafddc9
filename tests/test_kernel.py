"""The kernel distance and precision and recall: against definitions written out, known laws, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.metrics.kernel import _unbiased, kernel_distance, precision_recall

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_one_block_is_the_definition():
    a, b = normal(6).double(), normal(6, seed=1).double() + 1

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within = sum(kernel(x[i], x[j]) for x in (a, b) for i in range(6) for j in range(6) if i != j) / 30
    across = sum(kernel(x, y) for x in a for y in b) / 36
    assert _unbiased(a, b) == pytest.approx(within - 2 * across)


def test_it_is_unbiased_where_the_law_is_the_same():
    values = [
        kernel_distance(normal(60, seed=2 * i), normal(60, seed=2 * i + 1), blocks=2, size=60)[0] for i in range(200)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200) and min(values) < 0 < max(values)


def test_it_does_not_depend_on_the_number_but_on_the_distance():
    reference = normal(4000, seed=1)
    near, far = (kernel_distance(normal(4000, seed=2) + shift, reference, blocks=20, size=500) for shift in (0.1, 0.5))
    assert near[2] < far[1]
    fewer = kernel_distance(normal(4000, seed=2)[:400] + 0.5, reference, blocks=40, size=100)
    assert fewer[0] == pytest.approx(far[0], rel=0.25)
    assert kernel_distance(normal(50) + 0.5, normal(50), seed=3) == kernel_distance(
        normal(50) + 0.5, normal(50), seed=3
    )


def test_the_interval_covers_the_value_of_the_whole_law():
    """Blocks that do not overlap: a draw of 400 from 40,000."""
    reference, samples = normal(40_000, seed=1), normal(40_000, seed=2) * 1.2
    truth = kernel_distance(samples, reference, blocks=20, size=2000)[0]
    inside = [
        low <= truth <= high
        for _, low, high in (kernel_distance(samples, reference, blocks=10, size=200, seed=seed) for seed in range(60))
    ]
    assert 0.85 <= np.mean(inside) <= 1


def test_precision_and_recall_by_hand():
    """On a line, k = 1: the balls of 0, 1, 10 reach 1, 1 and 9 far; those of 0.5, 11.5 reach 11 far."""
    reference, samples = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[0.5], [20.0]])
    assert precision_recall(samples, reference, k=1) == (0.5, 1.0)
    # The other way round: 0.5's ball reaches 19.5 and covers all, and of the samples only 0.5 lies in a real ball.
    assert precision_recall(reference, samples, k=1) == (1.0, 0.5)


def test_few_kinds_are_precise_and_poor_copies_are_not():
    real = torch.cat([normal(300, seed=1), normal(300, seed=2) + 20])
    one_kind, noisy = normal(600, seed=3), torch.cat([normal(300, seed=4), normal(300, seed=5) + 20]) * 4
    precision, recall = precision_recall(one_kind, real)
    assert precision > 0.9 and 0.4 < recall < 0.55
    assert precision_recall(noisy, real)[0] < 0.4
    assert min(precision_recall(torch.cat([normal(300, seed=6), normal(300, seed=7) + 20]), real)) > 0.9


def test_bad_input():
    for call in (kernel_distance, precision_recall):
        with pytest.raises(BadValue, match=r"\[5, 3\] and \[5, 2\]"):
            call(normal(5), normal(5, 2))
        with pytest.raises(BadValue, match="NaN"):
            call(normal(5) * float("nan"), normal(5))
    with pytest.raises(BadValue, match="got 1 of 5"):
        kernel_distance(normal(5), normal(5), blocks=1)
    with pytest.raises(BadValue, match="more than 3 vectors on both sides, got 5 and 3"):
        precision_recall(normal(5), normal(3))


def test_vectors_without_a_feature():
    with pytest.raises(BadValue, match="features must be"):
        kernel_distance(torch.ones(9, 0), torch.ones(9, 0))
