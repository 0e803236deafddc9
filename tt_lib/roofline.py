"""How near to the device's limits a network runs: its achieved TFLOP/s beside the measured ceiling of matrix products.

Operations are counted by torch's own counter, two for a multiplication with its addition: matrix products, convolutions and
attention, and nothing else. A network's remaining operations (norms, activations, sums) take time and count nothing, so its
share of the ceiling says how much of the time goes to what the ceiling measures, at best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.benchmarks import fastest
from tt_lib.errors import choose
from tt_lib.models import Model
from tt_lib.predictors import make_predictor
from tt_lib.schedules import linear_betas
from tt_lib.speed import Tell, speed_row

# google/ddpm-celebahq-256: https://huggingface.co/google/ddpm-celebahq-256/blob/main/config.json
CELEBAHQ_256: dict[str, Any] = {
    "sample_size": 256, "in_channels": 3, "out_channels": 3, "block_out_channels": (128, 128, 256, 256, 512, 512),
    "layers_per_block": 2, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    "attention_head_dim": None,
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}  # fmt: skip
NETWORKS = ("ddpm-cifar10-32", "ddpm-celebahq-256")
"""Networks that are measured with random weights, as their speed does not depend on them."""


def make_network(name: str) -> Any:
    """A ``UNet2DModel`` with the architecture of one of :data:`NETWORKS` and random weights.

    Raises:
        BadValue: another name.
    """
    from diffusers import UNet2DModel

    from tt_lib.models import make_unet

    choose("network", name, NETWORKS)
    return make_unet("cifar10", 128) if name == "ddpm-cifar10-32" else UNet2DModel(**CELEBAHQ_256)


def count_flops(network: nn.Module, *inputs: Tensor) -> float:
    """Operations of one call, counted without computing anything (on torch's device ``meta``)."""
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(*(each.to("meta") for each in inputs))
    return float(counter.get_total_flops())


def flops_of(network: Any) -> float:
    """Operations of a UNet's evaluation of one image."""
    config = network.config
    return count_flops(network, torch.empty(1, config["in_channels"], config["sample_size"], config["sample_size"]), torch.zeros(1))


def measure_ceiling(
    device: torch.device, dtype: torch.dtype, *, size: int, repeats: int = 3
) -> dict[str, tuple[float, str]]:
    """What the device does at best: ``{what: (value, unit)}`` of a matrix product, a 3x3 convolution and a copy.

    Args:
        size: of the square matrices; the convolution and the copy are made as large as they are.
    """
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    channels, side = max(32, size // 16), 32
    batch = max(1, size * size // (channels * side * side))
    pixels = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    source, target = (torch.empty(8 * size * size, device=device, dtype=dtype) for _ in range(2))
    jobs: dict[str, tuple[Callable[[], Any], float, str]] = {
        f"matrix product {size}": (lambda: a @ b, 2 * size**3 / 1e12, "TFLOP/s"),
        f"3x3 convolution [{batch}, {channels}, {side}, {side}]": (
            lambda: nn.functional.conv2d(pixels, kernel, padding=1),
            2 * 9 * channels**2 * side * side * batch / 1e12,
            "TFLOP/s",
        ),
        f"copy of {source.nbytes / 2**20:.0f} MiB (read and written)": (
            lambda: target.copy_(source), 2 * source.nbytes / 1e9, "GB/s",
        ),
    }  # fmt: skip
    return {
        what: (amount * REPEATED / fastest(repeats, [_repeated(job)], device)[0], unit) for what, (job, amount, unit) in jobs.items()
    }


REPEATED = 10
"""Runs of a job between two looks at the clock, so that starting it costs little beside."""


def _repeated(job: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(REPEATED):
            job()

    return run


@torch.no_grad()
def measure_roofline(
    networks: dict[str, tuple[Any, int]], device: torch.device, *, compiled: bool, inception: tuple[Callable[[Tensor], Tensor], float, int] | None = None,
    size: int | None = None, repeats: int = 3, tell: Tell | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows for ``speed.csv``: the ceilings, and the achieved TFLOP/s of each network beside that of a matrix product.

    Precision is that of sampling: bfloat16 under autocast on a GPU, float32 on a CPU.

    Args:
        networks: ``{name: (UNet, images at a time)}``.
        compiled: compile them.
        inception: Inception's features as a function of uint8 pixels, its operations for one image, and images at a time.
        size: of the matrices [default: 8192 on a GPU, 512 on a CPU].
    """
    tell = tell or (lambda message: None)
    on_gpu = device.type == "cuda"
    dtype, precision = (torch.bfloat16, "bfloat16") if on_gpu else (torch.float32, "float32")
    tell("ceilings of the device")
    ceilings = measure_ceiling(device, dtype, size=size or (8192 if on_gpu else 512), repeats=repeats)
    rows = [speed_row(f"ceiling, {what}, {precision}", value, None, unit, device) for what, (value, unit) in ceilings.items()]
    best = next(iter(ceilings.values()))[0]

    def add(what: str, job: Callable[[], Any], flops: float, batch: int) -> None:
        tell(what)
        taken = fastest(repeats, [job], device)[0]
        rows.append(speed_row(f"{what}: peer a matrix product", flops * batch / taken / 1e12, best, "TFLOP/s", device))
        rows.append(speed_row(f"{what}, {flops / 1e9:.4g} GFLOP an image", batch / taken, None, "images/s", device))

    for name, (network, batch) in networks.items():
        add(roofline_name(name, batch, precision, compiled), _evaluation(network, batch, device, on_gpu, compiled), flops_of(network), batch)
    if inception:
        run, flops, batch = inception
        pixels = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
        add(roofline_name("inception-2015", batch, "float16" if on_gpu else "float32", compiled), lambda: run(pixels), flops, batch)
    return rows


def roofline_name(name: str, batch: int, precision: str, compiled: bool) -> str:
    """What the row of a network is called."""
    return f"network {name}, batch {batch}, {precision}, {'compiled' if compiled else 'eager'}"


def _evaluation(network: Any, batch: int, device: torch.device, on_gpu: bool, compiled: bool) -> Callable[[], Any]:
    """One evaluation of a batch by a UNet, as the sampler makes it."""
    network = network.to(device).eval().requires_grad_(False)
    side = network.config["sample_size"]
    shape = (network.config["in_channels"], side, side)
    predictor = make_predictor(Model(network, linear_betas(), shape, "roofline"), bf16=on_gpu, compile=compiled)
    x, t = torch.randn(batch, *shape, device=device), torch.tensor(0.501, dtype=torch.float64)
    return lambda: predictor(x, t, t)
