"""Inception-2015 features (2,048 numbers, the last pooling layer): the ones that FID is defined with.

The network is pytorch-fid's port of the TensorFlow graph of 2015-12-05 (Heusel et al. 2017). Its weights
(91 MB) are not part of this project and are never fetched by it: they are used where they are at hand.

Images are scaled to 299x299 as pytorch-fid scales them: bilinear, without antialiasing, on floats. clean-fid (Parmar
et al. 2022, arXiv 2104.11222) scales with Pillow's antialiased bicubic filter: its numbers and its references are on
another scale, so statistics are read only from files of this project, which name the features that they are of.

On a GPU the same network is several times faster in float16, channels last and compiled
(:func:`tt_lib.metrics.features.make_fast`); the activations fit the range of float16.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import atomic_path, file_hash

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
HASH_PREFIX = "6726825d"
"""The first eight digits of the weights' SHA-256, which their name carries."""
ENVIRONMENT = "TT_INCEPTION"
DIMENSION = 2048


class InceptionFeatures(nn.Module):
    """pytorch-fid's Inception-2015 as a function of uint8 images, in eval mode.

    Args:
        weights: a file of weights of this architecture, official or not.

    Attributes:
        sha256: hash of the weights' file.

    Raises:
        CorruptFile: a damaged file, or weights of another network.
    """

    def __init__(self, weights: Path) -> None:
        from pytorch_fid import inception

        super().__init__()
        self.sha256 = file_hash(weights)
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            # pytorch-fid knows only how to download its weights: it gets those we have read.
            with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
                self.network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[DIMENSION]])
        except (RuntimeError, OSError, EOFError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise CorruptFile(f"{weights} holds no Inception weights ({error}); fetch {URL} again") from error
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, 2048] of uint8 pixels [B, 3, H, W]; scaled to 299x299 as pytorch-fid does.

        Raises:
            BadValue: pixels of another type or shape.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise BadValue(f"Inception takes uint8 pixels [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
        return self.network(pixels.float() / 255)[0].flatten(1)


def find_inception(path: Path | str | None = None) -> Path:
    """The weights: ``path``, else ``$TT_INCEPTION`` (each a file or its folder), else torch hub's cache.

    Raises:
        MissingFile: it is not there; the message says where it comes from and where to put it.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    given = path or os.environ.get(ENVIRONMENT)
    place = Path(given).expanduser() if given else cache
    if place.is_dir():
        place = place / FILE
    if not place.is_file():
        raise MissingFile(
            f"the Inception-2015 weights are not at {place}; FID needs the file {FILE}: "
            f"fetch {URL} and put it at {cache}, or set {ENVIRONMENT} to where it is"
        )
    return place


def load_inception(path: Path | str | None = None) -> InceptionFeatures:
    """The official Inception-2015 features.

    Args:
        path: the weights, see :func:`find_inception`.

    Raises:
        MissingFile: no weights.
        CorruptFile: other weights than the official ones, or a damaged file.
    """
    weights = find_inception(path)
    sha256 = file_hash(weights)
    if not sha256.startswith(HASH_PREFIX):
        raise CorruptFile(
            f"{weights} has sha256 {sha256}, which should begin with {HASH_PREFIX}: "
            f"it is damaged or another file; fetch {URL} again"
        )
    return InceptionFeatures(weights)


def plant_random_inception(home: Path | str, seed: int = 0) -> Path:
    """Write random weights of the true architecture where torch hub looks for the official ones; returns the file.

    For measuring speed where the official weights are not at hand, and for tests: distances in such features mean
    nothing. The convolutions are drawn so that activations keep their size (He et al. 2015), as in a trained network.

    Args:
        home: what ``TORCH_HOME`` is set to.
    """
    from pytorch_fid import inception

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The FID variant changes only the pooling, so the parameters are torchvision's, with 1008 classes.
        network = inception._inception_v3(num_classes=1008, aux_logits=False)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    place = Path(home) / "hub" / "checkpoints" / FILE
    with atomic_path(place) as temporary:
        torch.save(network.state_dict(), temporary)
    return place
