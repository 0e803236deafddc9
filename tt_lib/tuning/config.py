"""The choices of a tuning step by step."""

from __future__ import annotations

from dataclasses import dataclass

from tt_lib.errors import BadValue, check_range, check_type, check_types, choose
from tt_lib.noise import check_seeds

OBJECTIVES = ("consistency", "truncation")
STRATEGIES = ("sequential", "parallel")
OPTIMISERS = ("adam", "search")
VALUES = ("ratio", "offset")


@dataclass(frozen=True)
class TuneConfig:
    """The options of a tuning step by step.

    The defaults are those of the authors' code (Xia et al. 2024), where the batch is that of the data loader.

    Attributes:
        objective: ``consistency``, the paper's, or ``truncation``, the distance to a converged solution.
        strategy: ``sequential``, states from running the tuned sampler; or ``parallel``, states from
            noising the images, all steps in one batch.
        optimiser: ``adam``, or ``search``: a scan of values and a parabola, without gradients.
        iterations: Adam's iterations, for each step.
        batch: images in one of Adam's iterations.
        lr: Adam's learning rate.
        value: what is tuned, ``ratio`` (tau / t, from 1) or ``offset`` (tau - t, from 0).
        bounds: smallest and largest tau / t. None leaves Adam the network's own range of times; a search scans
            :data:`tt_lib.tuning.optimisers.SEARCH_RANGE`.
        freeze_last: how many of the last steps keep tau = t: 1 in the authors' code, 0 to tune all.
        substeps: steps of the converged solution of an interval, for the truncation objective and the gate.
        seed: of noise and batches.
        gate: a step keeps its tuned tau only if that lowers its truncation error on held-out images, see
            :mod:`tt_lib.tuning.tuner`.

    Raises:
        BadValue: an option that is unknown or out of range.
    """

    objective: str = "consistency"
    strategy: str = "sequential"
    optimiser: str = "adam"
    iterations: int = 500
    batch: int = 64
    lr: float = 2e-3
    value: str = "ratio"
    bounds: tuple[float, float] | None = None
    freeze_last: int = 1
    substeps: int = 16
    seed: int = 0
    gate: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        choose("objective", self.objective, OBJECTIVES)
        choose("strategy", self.strategy, STRATEGIES)
        choose("optimiser", self.optimiser, OPTIMISERS)
        choose("value", self.value, VALUES)
        for name, most in {"iterations": 1_000_000, "batch": 100_000, "substeps": 1000}.items():
            check_range(name, getattr(self, name), 1, most)
        check_range("freeze_last", self.freeze_last, 0)
        if not self.lr > 0:
            raise BadValue(f"the learning rate must be positive, got {self.lr}")
        check_seeds(self.seed)
        if self.bounds is not None:
            if not isinstance(self.bounds, (list, tuple)) or len(self.bounds) != 2:
                raise BadValue(f"bounds are two numbers, the smallest and largest tau / t, got {self.bounds!r}")
            for bound in self.bounds:
                check_type("each of the bounds", bound, float)
            low, high = self.bounds
            if not 0 < low <= 1 <= high or low == high:
                raise BadValue(
                    f"bounds are the smallest and largest tau / t: they must differ and enclose 1, got {self.bounds}"
                )

    @property
    def name(self) -> str:
        """Objective and strategy, the name of its timings."""
        return f"{self.objective}-{self.strategy}"
