"""A linear probe: how much of the classes can be read off features that were learnt without them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tt_lib.datasets import Images
from tt_lib.metrics.features import full_precision
from tt_lib.metrics.networks import FeatureNetwork

PENALTY = 1e-3
"""On half the sum of the squared weights, beside the mean cross entropy."""
ITERATIONS = 200


def linear_probe(network: FeatureNetwork, train: Images, test: Images) -> float:
    """Share of the ``test`` images that logistic regression on frozen features of the ``train`` images gets right.

    The features are those that distances are taken in, one view of each image, standardised; the regression is solved by
    L-BFGS on all images at once, so nothing in it is random.

    Args:
        network: in eval mode; the probe is computed where it is.
    """
    device = network.mean.device
    with full_precision():
        known, asked = (_features(network, images.pixels.to(device)) for images in (train, test))
    mean, deviation = known.mean(0), known.std(0).clamp(min=1e-6)
    weights = fit_logistic((known - mean) / deviation, train.labels.to(device), len(train.classes))
    answers = _scores((asked - mean) / deviation, weights).argmax(1)
    return (answers == test.labels.to(device)).double().mean().item()


def fit_logistic(features: Tensor, labels: Tensor, classes: int, penalty: float = PENALTY) -> Tensor:
    """Weights of multinomial logistic regression, float32 [D + 1, classes]; the last row are the biases.

    Args:
        features: float32 [N, D], standardised.
        labels: int64 [N].
        penalty: see :data:`PENALTY`; biases have none.
    """
    weights = torch.zeros(features.shape[1] + 1, classes, device=features.device, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        found = F.cross_entropy(_scores(features, weights), labels) + penalty / 2 * weights[:-1].square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        solver.step(loss)
    return weights.detach()


def _scores(features: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], features, weights[:-1])


@torch.no_grad()
def _features(network: FeatureNetwork, pixels: Tensor, batch: int = 1000) -> Tensor:
    return torch.cat([network(part) for part in pixels.split(batch)])
