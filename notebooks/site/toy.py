"""The toy of the site's first page: one DDIM step on a mixture in the plane, whose ends follow its conditioning time.

Everything is drawn in y = x / alpha, where a step is a straight line. All ends are computed here, for each place of the
slider; the page's script only shows them, and asks the network for nothing.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor

from tt_lib.figures.style import BLUE, GREY, ORANGE, VERMILLION
from tt_lib.schedules import make_schedule
from tt_lib.toy import GaussianMixture, exact_trajectory

SCHEDULE = make_schedule("linear")
MIXTURE = GaussianMixture([0.4, 0.35, 0.25], [[1.0, 0.7], [-1.1, 0.4], [0.2, -1.1]], [0.13, 0.13, 0.13])
BEGIN, END = 0.4, 0.05
"""Times of the step."""
FIRST = (-0.75, 1.35)
"""The start, in y, whose trajectory is drawn."""
COUNT = 40
RATIOS = torch.arange(50, 111, 2, dtype=torch.float64) / 100
SIDE, REACH = 440, 1.75
"""Pixels of the picture's side, and how far it reaches from the middle."""


class Toy(NamedTuple):
    """Places in y: ``starts`` and true ends, ``right``, [N, 2]; the step's ``ends`` for each ratio [R, N, 2]; the
    ``path`` of the first [T, 2]; and a ``cloud`` of data [M, 2].
    """

    starts: Tensor
    right: Tensor
    ends: Tensor
    path: Tensor
    cloud: Tensor

    @property
    def errors(self) -> Tensor:
        """Root mean square distance of the ends from the right ones, [R]."""
        return (self.ends - self.right).square().sum(2).mean(1).sqrt()


def make() -> Toy:
    """The toy, the same every time."""
    generator = torch.Generator().manual_seed(0)
    alpha, sigma = SCHEDULE.alpha(BEGIN), SCHEDULE.sigma(BEGIN)
    noise = torch.randn(COUNT - 1, 2, dtype=torch.float64, generator=generator)
    others = alpha * MIXTURE.sample(COUNT - 1, generator) + sigma * noise
    x = torch.cat([alpha * torch.tensor([FIRST], dtype=torch.float64), others])
    times = torch.linspace(BEGIN, END, 40, dtype=torch.float64)
    true = exact_trajectory(MIXTURE, x, times, SCHEDULE, rtol=1e-8) / SCHEDULE.alpha(times)[:, None, None]
    length = SCHEDULE.sigma(END) / SCHEDULE.alpha(END) - sigma / alpha
    ends = torch.stack([x / alpha + length * MIXTURE.eps(x, BEGIN * ratio, SCHEDULE) for ratio in RATIOS])
    return Toy(x / alpha, true[-1], ends, true[:, 0], MIXTURE.sample(250, generator))


def _points(values: Tensor) -> list[list[float]]:
    """Places in pixels of the picture."""
    middle = SIDE / 2
    scaled = middle + values * torch.tensor([middle, -middle], dtype=torch.float64) / REACH
    return [[round(number, 1) for number in point] for point in scaled.tolist()]


def html(toy: Toy) -> str:
    """The toy as a slider and a picture in SVG, with its script; it needs no other file."""

    def dots(values: Tensor, radius: float, style: str, name: str = "") -> str:
        each = "".join(f'<circle cx="{x}" cy="{y}" r="{radius}"/>' for x, y in _points(values))
        return f'<g class="{name}" {style}>{each}</g>'

    untuned = RATIOS.tolist().index(1.0)
    lines = zip(_points(toy.ends[untuned]), _points(toy.right), strict=True)
    misses = "".join(f'<line x1="{a}" y1="{b}" x2="{c}" y2="{d}"/>' for (a, b), (c, d) in lines)
    path = " ".join(f"{x},{y}" for x, y in _points(toy.path))
    (x, y), (u, v) = _points(toy.starts[:1])[0], _points(toy.ends[untuned])[0]
    data = {
        "ends": [_points(ends) for ends in toy.ends],
        "taus": [f"{BEGIN * ratio:.3f}" for ratio in RATIOS.tolist()],
        "errors": [f"{error:.2f}" for error in toy.errors.tolist()],
    }
    says = f"τ = {data['taus'][untuned]} = t: plain DDIM. The ends miss by {data['errors'][untuned]}."
    label = "A plane with three clusters of data. Straight blue steps end between them; a dashed curve leads into one."
    return f"""<figure class="tt-toy" id="tt-toy">
<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{label}">
<rect width="{SIDE}" height="{SIDE}" fill="white"/>
{dots(toy.cloud, 2, 'fill="#CCCCCC"')}
<g class="miss" stroke="{ORANGE}" stroke-width="1.2">{misses}</g>
{dots(toy.right, 3.2, f'fill="none" stroke="{GREY}" stroke-width="1.2"')}
{dots(toy.ends[untuned], 3.2, f'fill="{BLUE}"', "end")}
<polyline points="{path}" fill="none" stroke="{VERMILLION}" stroke-width="2.5" stroke-dasharray="7 4"/>
<line class="step" x1="{x}" y1="{y}" x2="{u}" y2="{v}" stroke="{BLUE}" stroke-width="2.5"/>
<circle cx="{x}" cy="{y}" r="5"/>
<text x="{x + 10}" y="{y + 5}" font-size="14" font-family="sans-serif">start</text>
</svg>
<label>conditioning time τ
<input type="range" min="0" max="{len(RATIOS) - 1}" value="{untuned}" aria-describedby="tt-toy-says"></label>
<p id="tt-toy-says" role="status">{says}</p>
<script>
(function () {{
  const toy = {json.dumps(data, separators=(",", ":"))}, untuned = {untuned};
  const here = document.getElementById("tt-toy"), slider = here.querySelector("input");
  const all = (selector) => here.querySelectorAll(selector);
  slider.addEventListener("input", function () {{
    const k = Number(slider.value);
    toy.ends[k].forEach(function ([x, y], i) {{
      const end = all(".end circle")[i], miss = all(".miss line")[i];
      end.setAttribute("cx", x); end.setAttribute("cy", y);
      miss.setAttribute("x1", x); miss.setAttribute("y1", y);
    }});
    const [x, y] = toy.ends[k][0], step = here.querySelector(".step");
    step.setAttribute("x2", x); step.setAttribute("y2", y);
    const as = (word) => ": the network takes its input to be " + word + " than it is.";
    const what = k === untuned ? " = t: plain DDIM." : as(k < untuned ? "cleaner" : "noisier");
    here.querySelector("p").textContent = "τ = " + toy.taus[k] + what + " The ends miss by " + toy.errors[k] + ".";
  }});
}})();
</script>
</figure>"""
