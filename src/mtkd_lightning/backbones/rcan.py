"""RCAN: groups of residual blocks with channel attention.

Zhang et al., Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018,
https://arxiv.org/abs/1807.02758. Reference code: yulunzhang/RCAN (no licence file); tensor names are those of
XPixelGroup/BasicSR (Apache-2.0), so its weight files load.
"""

import torch
from torch import Tensor, nn

from mtkd_lightning.backbones.base import (
    Backbone,
    Keep,
    MeanShift,
    Upsample,
    check_scale,
    conv3x3,
    uniform_taps,
)
from mtkd_lightning.errors import MTKDError


class RCAN(Backbone):
    """RCAN. Taps: shallow, group0, group1, ..., deep.

    Args:
        scale: 2, 3 or 4.
        features: width.
        groups: residual groups.
        blocks: blocks in a group; 20 as published, 6 in the small student of the distillation papers.
        reduction: the channel attention squeezes to features // reduction channels.
        image_range: range that the network works in, 255 in all published weights.
    """

    def __init__(
        self,
        scale: int,
        features: int = 64,
        groups: int = 10,
        blocks: int = 20,
        reduction: int = 16,
        image_range: float = 255.0,
    ) -> None:
        check_scale(self, scale)
        super().__init__()
        if not 1 <= reduction <= features:
            raise MTKDError(f"RCAN cannot reduce {features} features by {reduction}; set reduction to 1..{features}")
        self.scale = scale
        self.features = features
        self.mean_shift = MeanShift(image_range)
        self.conv_first = conv3x3(3, features)
        self.body = nn.ModuleList(ResidualGroup(features, blocks, reduction) for _ in range(groups))
        self.conv_after_body = conv3x3(features, features)
        self.upsample = Upsample(scale, features)
        self.conv_last = conv3x3(features, 3)

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``features`` wide."""
        return uniform_taps("group", len(self.body), self.features)

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """Shallow feature plus what the body makes of it."""
        shallow = keep("shallow", self.conv_first(self.mean_shift.remove(lr)))
        x = shallow
        for k, group in enumerate(self.body):
            x = keep(f"group{k}", group(x))
        deep: Tensor = shallow + self.conv_after_body(x)
        return deep

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """Upsampler and last convolution; ``lr`` is not used."""
        return self.mean_shift.restore(self.conv_last(self.upsample(deep)))


class ResidualGroup(nn.Module):
    """Blocks and a convolution, added to the input."""

    def __init__(self, features: int, blocks: int, reduction: int) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(*(AttentionBlock(features, reduction) for _ in range(blocks)))
        self.conv = conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        return torch.add(x, self.conv(self.residual_group(x)))


class AttentionBlock(nn.Module):
    """Two convolutions and channel attention, added to the input."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.rcab = nn.Sequential(
            conv3x3(features, features),
            nn.ReLU(inplace=True),
            conv3x3(features, features),
            ChannelAttention(features, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        return torch.add(x, self.rcab(x))


class ChannelAttention(nn.Module):
    """Multiplies each channel by a gate in 0..1 that depends on the means of all channels."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        squeezed = features // reduction
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(features, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        return torch.mul(x, self.attention(x))
