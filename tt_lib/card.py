"""The data card: what each shipped file is, which command made it, and its hash."""

from __future__ import annotations

from pathlib import Path

from tt_lib.files import file_hash, read_json

CARD_HEAD = """# Data card

What lies in this folder. This page is written by `tt card` and compared with the files in the test suite.

- `pretrained/`: networks, float16. A diffusion network is a folder that diffusers itself can load
  (`UNet2DModel.from_pretrained`) with `tt_model.json` beside it (schedule, training, hash); a network of features is a folder
  with `config.json` (its test accuracy, or that of a linear probe; recipe, hash).
- `stats/`: mean and covariance of a data set's features: the reference that Fréchet distances are taken against; and, as
  `-bank`, the features of some of its images, for the kernel distance and precision and recall.
- `timings/`: tuned conditioning times, one JSON file for each sampler, with how they were tuned.
- `gamma/`: what Analytic-DDIM and Analytic-DDPM know of a network, one JSON file for each grid, NFE and timing.
- `tables/`: the cells that `tt table` fills in.
- `results/`: rows. Every number that the README, a notebook or a figure shows comes from one of these files.

No image of CIFAR-10 is in this repository. The networks were trained on it (Krizhevsky 2009, *Learning Multiple Layers of
Features from Tiny Images*), so they inherit its contents and its biases: 32x32 photographs of ten classes, collected from
the web in the 2000s.

| file | bytes | made by | sha256 |
| --- | ---: | --- | --- |
"""
FOLDERS = ("gamma", "pretrained", "stats", "timings")


def data_card(data: Path) -> str:
    """The text of ``data/README.md`` for what lies in ``data``."""
    files = sorted(path for folder in FOLDERS for path in (data / folder).rglob("*") if path.is_file())
    lines = [
        f"| `{path.relative_to(data).as_posix()}` | {path.stat().st_size:,} | {_made_by(path)} | `{file_hash(path)}` |\n"
        for path in files
        if not path.name.startswith(".")
    ]
    return CARD_HEAD + "".join(lines)


def _made_by(path: Path) -> str:
    """The command in the file's own provenance, or in the card beside it."""
    for candidate in (path, path.parent / "tt_model.json", path.parent / "config.json"):
        command = _command(candidate)
        if command:
            return f"`{command}`"
    return ""


def _command(path: Path) -> str:
    if path.suffix == ".json" and path.is_file():
        content = read_json(path)
        return content.get("command") or content.get("provenance", {}).get("command", "")
    if path.parent.name == "stats" and path.suffix == ".safetensors":
        from tt_lib.metrics.bank import load_bank
        from tt_lib.metrics.statistics import FeatureStatistics

        if path.stem.endswith("-bank"):
            return load_bank(path).meta.get("command", "")
        return FeatureStatistics.load(path).meta.get("command", "")
    return ""
