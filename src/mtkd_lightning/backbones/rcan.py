"""RCAN: groups of residual blocks with channel attention.

Zhang et al., Image Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018,
https://arxiv.org/abs/1807.02758. Reference code: yulunzhang/RCAN (no licence file); tensor names are those of
XPixelGroup/BasicSR (Apache-2.0), so its weight files load.
"""

from collections.abc import Mapping, Sequence

import torch
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
from mtkd_lightning.backbones.layouts import absorb_colour, count_of, renamed, scale_of, shape_of, width_of
from mtkd_lightning.errors import MTKDError

AUTHORS_NAMES = {
    r"head\.0\.": "conv_first.",
    r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.": r"body.\1.residual_group.\2.rcab.3.attention.1.",
    r"body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.": r"body.\1.residual_group.\2.rcab.3.attention.3.",
    r"body\.(\d+)\.body\.(\d+)\.body\.": r"body.\1.residual_group.\2.rcab.",
    r"body\.(\d+)\.body\.\d+\.(?=weight|bias)": r"body.\1.conv.",
    r"body\.\d+\.(?=weight|bias)": "conv_after_body.",
    r"tail\.0\.": "upsample.",
    r"tail\.1\.": "conv_last.",
}


class RCAN(Backbone):
    """RCAN. Taps: shallow, group0, group1, ..., deep.

    Args:
        scale: 2, 3 or 4.
        features: width.
        groups: residual groups.
        blocks: blocks in a group; 20 as published, 6 in the small student of the distillation papers.
        reduction: the channel attention squeezes to features // reduction channels.
        image_range: range that the network works in, 255 in all published weights.
        rgb_mean: colour in 0..1 that the network does not see, of DIV2K unless a file says otherwise.
    """

    def __init__(
        self,
        scale: int,
        features: int = 64,
        groups: int = 10,
        blocks: int = 20,
        reduction: int = 16,
        image_range: float = 255.0,
        rgb_mean: Sequence[float] = RGB_MEAN,
    ) -> None:
        check_scale(self, scale)
        super().__init__()
        if not 1 <= reduction <= features:
            raise MTKDError(f"RCAN cannot reduce {features} features by {reduction}; set reduction to 1..{features}")
        self.scale = scale
        self.features = features
        self.image_range = image_range
        self.mean_shift = MeanShift(image_range, rgb_mean)
        self.conv_first = conv3x3(3, features)
        self.body = nn.ModuleList(ResidualGroup(features, blocks, reduction) for _ in range(groups))
        self.conv_after_body = conv3x3(features, features)
        self.upsample = Upsample(scale, features)
        self.conv_last = conv3x3(features, 3)

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``features`` wide."""
        return uniform_taps("group", len(self.body), self.features)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Files of BasicSR's and of the authors' names, of any size."""
        if {"head.0.weight", "body.0.body.0.body.0.weight"} <= tensors.keys():
            tensors = renamed(tensors, AUTHORS_NAMES)
        elif not {"conv_after_body.weight", "body.0.residual_group.0.rcab.0.weight"} <= tensors.keys():
            return None
        arguments, tensors = absorb_colour(tensors)
        features = width_of(tensors)
        squeezed = shape_of(tensors, "body.0.residual_group.0.rcab.3.attention.1.weight", 4)[0]
        arguments |= {
            "scale": scale_of(tensors),
            "features": features,
            "groups": count_of(tensors, "body."),
            "blocks": count_of(tensors, "body.0.residual_group."),
            "reduction": features // squeezed,
        }
        return Published(arguments, tensors)

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
