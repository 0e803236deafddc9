"""The choices of a tuning run."""

from __future__ import annotations

from dataclasses import dataclass

from tt_lib.errors import BadValue, choose

OBJECTIVES = ("consistency", "truncation")
STRATEGIES = ("sequential", "parallel")
OPTIMISERS = ("adam", "search")
VALUES = ("ratio", "offset")


def check_range(name: str, pair: tuple[float, float]) -> None:
    """Raise :class:`BadValue` unless ``pair`` is a range of tau / t that tau = t lies in."""
    if not 0 < pair[0] <= 1 <= pair[1]:
        raise BadValue(f"{name} are the smallest and largest tau / t and must enclose 1, got {pair}")


def check_freeze_last(count: int) -> None:
    """Raise :class:`BadValue` unless ``count`` is a number of steps."""
    if count < 0:
        raise BadValue(f"freeze_last must be 0 or more, got {count}")


def full_name(plain: str, freeze_last: int, default: int) -> str:
    """What results rows call a timing: ``consistency-sequential``, ``consistency-parallel-freeze2`` and so on.

    Tables may put more options into a name, see :mod:`tt_lib.study.cells`.

    How many steps keep their own time changes results most, so rows tell it apart where it is not the default.
    """
    return plain + ("" if freeze_last == default else f"-freeze{freeze_last}")


@dataclass(frozen=True)
class TuneConfig:
    """Defaults are those of the authors' code (Xia et al. 2024), but for batch and number of images, which it
    takes from its data loader.

    Attributes:
        objective: ``consistency``, the paper's, or ``truncation``, the distance to a fine solution.
        strategy: ``sequential``, states from running the tuned sampler; or ``parallel``, states from
            noising the images, all steps in one batch.
        optimiser: ``adam``, or ``search``: a scan of values and a parabola, without gradients.
        iterations: Adam's iterations, for each step.
        batch: images in one of Adam's iterations.
        lr: Adam's learning rate.
        betas: Adam's decay rates.
        value: what is learnt, ``ratio`` (tau / t, from 1) or ``offset`` (tau - t, from 0).
        bounds: smallest and largest tau / t; None leaves only the network's own range of times. A search
            needs a range and takes ``search_range`` where there are no bounds.
        search_range: the range of tau / t that a search scans.
        freeze_last: how many of the last steps keep tau = t: 1 in the authors' code, 0 to tune all.
        substeps: steps of the fine solution that the truncation objective is measured against.
        sweeps: rounds of a parallel tuning of a multistep solver: its states depend on the taus before.
        seed: of noise and batches.
        gate: a step keeps its tuned tau only if that lowers its truncation error on held-out images, see
            :mod:`tt_lib.tuning.tuner`.
    """

    objective: str = "consistency"
    strategy: str = "sequential"
    optimiser: str = "adam"
    iterations: int = 500
    batch: int = 64
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    value: str = "ratio"
    bounds: tuple[float, float] | None = None
    search_range: tuple[float, float] = (0.7, 1.3)
    freeze_last: int = 1
    substeps: int = 16
    sweeps: int = 2
    seed: int = 0
    gate: bool = False

    def __post_init__(self) -> None:
        choose("objective", self.objective, OBJECTIVES)
        choose("strategy", self.strategy, STRATEGIES)
        choose("optimiser", self.optimiser, OPTIMISERS)
        choose("value", self.value, VALUES)
        for name in ("iterations", "batch", "substeps", "sweeps"):
            if getattr(self, name) < 1:
                raise BadValue(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise BadValue(f"the learning rate must be positive, got {self.lr}")
        check_freeze_last(self.freeze_last)
        for name in ("bounds", "search_range"):
            pair = getattr(self, name)
            if pair is not None:
                check_range(name, pair)

    @property
    def name(self) -> str:
        """See :func:`full_name`; a gate makes another timing, too."""
        plain = full_name(f"{self.objective}-{self.strategy}", self.freeze_last, TuneConfig.freeze_last)
        return f"{plain},gate=true" if self.gate else plain
