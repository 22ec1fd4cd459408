"""LKDN: distillation blocks of blueprint convolutions with large-kernel attention.

Xie et al., Large Kernel Distillation Network for Efficient Single Image Super-Resolution, CVPR workshops (NTIRE)
2023, https://arxiv.org/abs/2407.14340. Reference code: stella-von/LKDN (MIT), whose tensor names are kept, so its
weight files load. Deviations: the plain network alone, without the branches that its authors add in training and
merge afterwards.
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
    uniform_taps,
)
from mtkd_lightning.backbones.layouts import shape_of
from mtkd_lightning.errors import MTKDError

REPEATS = 4
"""How often the picture is repeated on channels before the first convolution."""


class LKDN(Backbone):
    """LKDN. Taps: shallow, block0, block1, ..., deep.

    Args:
        scale: 2, 3 or 4.
        features: width; 56 in LKDN, 42 in LKDN-S.
        blocks: 8 in LKDN, 5 in LKDN-S.

    Raises:
        MTKDError: a size that leaves a layer without channels.
    """

    def __init__(self, scale: int, features: int = 56, blocks: int = 8) -> None:
        check_scale(self, scale)
        super().__init__()
        if features < 2 or blocks < 1:
            raise MTKDError(f"LKDN got features={features}, blocks={blocks}; it needs 2 features and a block at least")
        self.scale = scale
        self.features = features
        self.blocks = blocks
        self.fea_conv = Blueprint(3 * REPEATS, features)
        for k in range(blocks):
            self.add_module(f"B{k + 1}", Block(features))
        self.c1 = nn.Conv2d(features * blocks, features, 1)
        self.c2 = Blueprint(features, features)
        self.upsampler = nn.Sequential(conv3x3(features, 3 * scale**2), nn.PixelShuffle(scale))

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``features`` wide."""
        return uniform_taps("block", self.blocks, self.features)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Files of LKDN and LKDN-S of any size.

        Raises:
            MTKDError: the branches of training are not merged.
        """
        if not {"fea_conv.pw.weight", "B1.c1_d.weight", "B1.atten.depthwise_dilated.weight"} <= tensors.keys():
            return None
        if "upsampler.0.weight" not in tensors or any(".rep1x1." in name for name in tensors):
            raise MTKDError(
                "this LKDN has the branches of its training (rep1x1, upsampler.conv1x1); "
                "merge them with its authors' script, or take the merged file that they publish"
            )
        features, fused = shape_of(tensors, "c1.weight", 4)[:2]
        arguments = {
            "scale": isqrt(shape_of(tensors, "upsampler.0.weight", 4)[0] // 3),
            "features": features,
            "blocks": fused // features,
        }
        return Published(arguments, dict(tensors))

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """Shallow feature plus what all blocks make of it."""
        # Depthwise convolutions and normalisation over channels are faster in this layout.
        lr = lr.contiguous(memory_format=torch.channels_last)
        shallow = keep("shallow", self.fea_conv(torch.cat([lr] * REPEATS, 1)))
        x = shallow
        outputs = []
        for k in range(self.blocks):
            x = keep(f"block{k}", self.get_submodule(f"B{k + 1}")(x))
            outputs.append(x)
        deep: Tensor = shallow + self.c2(F.gelu(self.c1(torch.cat(outputs, 1))))
        return deep

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """Convolution and pixel shuffle; ``lr`` is not used."""
        sr: Tensor = self.upsampler(deep)
        return sr


class Blueprint(nn.Module):
    """A pointwise convolution, then one in space for each channel."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.pw = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.dw = nn.Conv2d(channels_out, channels_out, 3, padding=1, groups=channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels_in, h, w) to (b, channels_out, h, w)."""
        out: Tensor = self.dw(self.pw(x))
        return out


class Block(nn.Module):
    """Four times half of the width is set aside while the rest is refined; then attention, added to the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        self.c1_d = nn.Conv2d(features, half, 1)
        self.c1_r = Blueprint(features, features)
        self.c2_d = nn.Conv2d(features, half, 1)
        self.c2_r = Blueprint(features, features)
        self.c3_d = nn.Conv2d(features, half, 1)
        self.c3_r = Blueprint(features, features)
        self.c4 = Blueprint(features, half)
        self.c5 = nn.Conv2d(4 * half, features, 1)
        self.atten = LargeKernelAttention(features)
        self.c6 = nn.Conv2d(features, features, 1)
        self.pixel_norm = nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        r1 = F.gelu(self.c1_r(x))
        r2 = F.gelu(self.c2_r(r1))
        r3 = F.gelu(self.c3_r(r2))
        distilled = torch.cat([self.c1_d(x), self.c2_d(r1), self.c3_d(r2), self.c4(r3)], 1)
        out = self.c6(self.atten(self.c5(F.gelu(distilled))))
        return x + self.pixel_norm(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LargeKernelAttention(nn.Module):
    """Multiplies by a gate that sees 17x17 pixels of its channel."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(features, features, 1)
        self.depthwise = nn.Conv2d(features, features, 5, padding=2, groups=features)
        self.depthwise_dilated = nn.Conv2d(features, features, 5, padding=6, dilation=3, groups=features)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        return torch.mul(x, self.depthwise_dilated(self.depthwise(self.pointwise(x))))
