"""EDSR: residual blocks without normalisation.

Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017,
https://arxiv.org/abs/1707.02921. Reference code: sanghyun-son/EDSR-PyTorch (MIT); tensor names are those of
XPixelGroup/BasicSR (Apache-2.0), so its weight files load.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.backbones.base import (
    RGB_MEAN,
    Backbone,
    Keep,
    MeanShift,
    Published,
    Upsample,
    check_scale,
    conv3x3,
    uniform_taps,
)
from mtkd_lightning.backbones.layouts import absorb_colour, count_of, renamed, scale_of, width_of

AUTHORS_NAMES = {
    r"head\.0\.": "conv_first.",
    r"body\.(\d+)\.body\.0\.": r"body.\1.conv1.",
    r"body\.(\d+)\.body\.2\.": r"body.\1.conv2.",
    r"body\.\d+\.(?=weight|bias)": "conv_after_body.",
    r"tail\.0\.": "upsample.",
    r"tail\.1\.": "conv_last.",
}


class EDSR(Backbone):
    """EDSR. Taps: shallow, block0, block1, ..., deep.

    Args:
        scale: 2, 3 or 4.
        features: width; 64 in the baseline, 256 in the large network.
        blocks: residual blocks; 16 in the baseline, 32 in the large network.
        res_scale: factor on the residuals; 1 in the baseline, 0.1 in the large network.
        image_range: range that the network works in, 255 in all published weights.
        rgb_mean: colour in 0..1 that the network does not see, of DIV2K in all published weights.
    """

    def __init__(
        self,
        scale: int,
        features: int = 64,
        blocks: int = 16,
        res_scale: float = 1.0,
        image_range: float = 255.0,
        rgb_mean: Sequence[float] = RGB_MEAN,
    ) -> None:
        check_scale(self, scale)
        super().__init__()
        self.scale = scale
        self.features = features
        self.res_scale = res_scale
        self.image_range = image_range
        self.mean_shift = MeanShift(image_range, rgb_mean)
        self.conv_first = conv3x3(3, features)
        self.body = nn.ModuleList(ResidualBlock(features, res_scale) for _ in range(blocks))
        self.conv_after_body = conv3x3(features, features)
        self.upsample = Upsample(scale, features)
        self.conv_last = conv3x3(features, 3)

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``features`` wide."""
        return uniform_taps("block", len(self.body), self.features)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Files of BasicSR's and of the authors' names; res_scale is known of the two published sizes alone."""
        if {"head.0.weight", "body.0.body.0.weight"} <= tensors.keys():
            tensors = renamed(tensors, AUTHORS_NAMES)
        elif not {"conv_after_body.weight", "body.0.conv1.weight"} <= tensors.keys():
            return None
        arguments, tensors = absorb_colour(tensors)
        size = {"features": width_of(tensors), "blocks": count_of(tensors, "body.")}
        arguments |= size | {"scale": scale_of(tensors)}
        unknown = {}
        if size == {"features": 256, "blocks": 32}:
            arguments["res_scale"] = 0.1
        elif size != {"features": 64, "blocks": 16}:
            unknown["res_scale"] = "1.0 in the published baseline (64 features, 16 blocks), 0.1 in the large network"
        return Published(arguments, tensors, unknown, assumed=frozenset({"res_scale"}))

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """Shallow feature plus what the body makes of it."""
        shallow = keep("shallow", self.conv_first(self.mean_shift.remove(lr)))
        x = shallow
        for k, block in enumerate(self.body):
            x = keep(f"block{k}", block(x))
        deep: Tensor = shallow + self.conv_after_body(x)
        return deep

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """Upsampler and last convolution; ``lr`` is not used."""
        return self.mean_shift.restore(self.conv_last(self.upsample(deep)))


class ResidualBlock(nn.Module):
    """Two convolutions with a ReLU between them, scaled and added to the input."""

    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = conv3x3(features, features)
        self.conv2 = conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        return torch.add(x, self.conv2(F.relu(self.conv1(x), inplace=True)), alpha=self.res_scale)
