"""SMFANet+: convolutions modulated by a coarse summary of the picture.

Zheng et al., SMFANet: A Lightweight Self-Modulation Feature Aggregation Network for Efficient Image
Super-Resolution, ECCV 2024, https://eccv2024.ecva.net/virtual/2024/poster/309. Reference code: Zheng-MJ/SMFANet
(Apache-2.0), whose tensor names are kept, so its weight files load. Deviations: pictures with a side below 8, which
the reference cannot take, are mirrored up to 8.
"""

from collections.abc import Mapping
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.backbones.base import (
    Backbone,
    Keep,
    Published,
    check_scale,
    conv3x3,
    exporting,
    mirror_to,
    uniform_taps,
)
from mtkd_lightning.backbones.layouts import count_of, shape_of
from mtkd_lightning.errors import MTKDError

CELL = 8
"""Side of the cells, in LR pixels, that the modulation summarises."""


class SMFANetPlus(Backbone):
    """SMFANet+. Taps: shallow, block0, block1, ..., deep.

    Args:
        scale: 2, 3 or 4.
        features: width; 48 in SMFANet+, 36 in SMFANet.
        blocks: 12 in SMFANet+, 8 in SMFANet.
        expansion: width of the hidden layer of the feed-forward part, relative to features.

    Raises:
        MTKDError: a size that leaves a layer without channels.
    """

    def __init__(self, scale: int, features: int = 48, blocks: int = 12, expansion: float = 2.0) -> None:
        check_scale(self, scale)
        super().__init__()
        hidden = round(features * expansion)
        if features < 1 or blocks < 1 or hidden < 4:
            raise MTKDError(
                f"SMFANetPlus got features={features}, blocks={blocks}, expansion={expansion}; it needs a feature "
                "and a block at least, and features * expansion of 4 or more"
            )
        self.scale = scale
        self.features = features
        self.to_feat = conv3x3(3, features)
        self.feats = nn.Sequential(*(Block(features, hidden) for _ in range(blocks)))
        self.to_img = nn.Sequential(conv3x3(features, 3 * scale**2), nn.PixelShuffle(scale))

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``features`` wide."""
        return uniform_taps("block", len(self.feats), self.features)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Files of SMFANet and SMFANet+ of any size."""
        if not {"to_feat.weight", "feats.0.smfa.alpha", "feats.0.pcfn.conv_0.weight"} <= tensors.keys():
            return None
        hidden, features = shape_of(tensors, "feats.0.pcfn.conv_0.weight", 4)[:2]
        arguments = {
            "scale": isqrt(shape_of(tensors, "to_img.0.weight", 4)[0] // 3),
            "features": features,
            "blocks": count_of(tensors, "feats."),
            "expansion": hidden / features,
        }
        return Published(arguments, dict(tensors))

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """Shallow feature plus what the blocks make of it."""
        height, width = lr.shape[-2:]
        for side in (-2, -1):
            if exporting() or lr.shape[side] < CELL:
                lr = mirror_to(lr, side, torch.sym_max(lr.shape[side], CELL))
        # Lengths of pixels and depthwise convolutions are much faster in this layout.
        lr = lr.contiguous(memory_format=torch.channels_last)
        shallow = keep("shallow", self.to_feat(lr))
        x = shallow
        for k, block in enumerate(self.feats):
            x = keep(f"block{k}", block(x))
        return (shallow + x)[..., :height, :width]

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """Convolution and pixel shuffle; ``lr`` is not used."""
        sr: Tensor = self.to_img(deep)
        return sr


class Block(nn.Module):
    """Self-modulation, then a feed-forward part; each sees pixels of unit length and is added to its input."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.smfa = SelfModulation(features)
        self.pcfn = FeedForward(features, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        x = x + self.smfa(F.normalize(x))
        return x + self.pcfn(F.normalize(x))


class SelfModulation(nn.Module):
    """Half of the features multiplied by a gate per cell and channel, plus local detail from the other half."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear_0 = nn.Conv2d(features, 2 * features, 1)
        self.linear_1 = nn.Conv2d(features, features, 1)
        self.linear_2 = nn.Conv2d(features, features, 1)
        self.lde = LocalDetail(features)
        self.dw_conv = nn.Conv2d(features, features, 3, padding=1, groups=features)
        self.alpha = nn.Parameter(torch.ones(1, features, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape; sides of at least CELL."""
        height, width = x.shape[-2:]
        detail, x = self.linear_0(x).chunk(2, dim=1)
        peaks = self.dw_conv(_peaks(x))
        spread = _variance(x)
        gate = F.gelu(self.linear_1(peaks * self.alpha + spread * self.belt))
        out: Tensor = self.linear_2(x * _spread(gate, height, width) + self.lde(detail))
        return out


class LocalDetail(nn.Module):
    """A grouped convolution and two pointwise ones."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv_0 = nn.Sequential(
            nn.Conv2d(features, 2 * features, 3, padding=1, groups=features),
            nn.Conv2d(2 * features, 2 * features, 1),
        )
        self.conv_1 = nn.Conv2d(2 * features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        out: Tensor = self.conv_1(F.gelu(self.conv_0(x)))
        return out


class FeedForward(nn.Module):
    """Two pointwise convolutions; between them a quarter of the channels is convolved in space."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(features, hidden, 1)
        self.conv_1 = conv3x3(hidden // 4, hidden // 4)
        self.conv_2 = nn.Conv2d(hidden, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        x = F.gelu(self.conv_0(x))
        quarter = self.conv_1.in_channels
        x = torch.cat([F.gelu(self.conv_1(x[:, :quarter])), x[:, quarter:]], 1)
        out: Tensor = self.conv_2(x)
        return out


def _peaks(x: Tensor) -> Tensor:
    """Largest value of each channel in each cell; where cells do not fit the sides, they are larger and overlap."""
    height, width = x.shape[-2:]
    if not exporting():
        return F.adaptive_max_pool2d(x, (height // CELL, width // CELL))
    for side in (-2, -1):
        x = _largest(x, side)
    return x


def _largest(x: Tensor, side: int) -> Tensor:
    """The largest in each cell along a side, without a branch on its size: a cell has less than 2 CELL pixels."""
    size = x.shape[side]
    count = size // CELL
    cell = torch.arange(count, device=x.device)[:, None]
    first, last = cell * size // count, ((cell + 1) * size + count - 1) // count - 1
    pixel = torch.minimum(first + torch.arange(2 * CELL - 1, device=x.device), last)
    return x.index_select(side, pixel.flatten()).unflatten(side, (count, 2 * CELL - 1)).amax(side)


def _spread(gate: Tensor, height: int, width: int) -> Tensor:
    """Each cell's value to its pixels."""
    if not exporting():
        return F.interpolate(gate, (height, width))
    for side, size in ((-2, height), (-1, width)):
        count = gate.shape[side]
        pixel = torch.arange(size, device=gate.device, dtype=torch.float32) * (count / size)
        gate = gate.index_select(side, pixel.long())
    return gate


def _variance(x: Tensor) -> Tensor:
    """Unbiased variance of each channel (b, c, 1, 1); ten times faster on a CPU than ``Tensor.var``."""
    count = x.shape[-2] * x.shape[-1]
    return (x - x.mean((-2, -1), keepdim=True)).square().mean((-2, -1), keepdim=True) * (count / (count - 1))
