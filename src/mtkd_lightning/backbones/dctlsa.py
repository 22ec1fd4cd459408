"""DCTLSA: densely connected stages of window attention whose cost is linear in the size of the window.

Zeng et al., Densely Connected Transformer With Linear Self-Attention for Lightweight Image Super-Resolution, IEEE
Transactions on Instrumentation and Measurement 2023, https://doi.org/10.1109/TIM.2023.3304672. Reference code:
zengkun301/DCTLSA (Apache-2.0 by its README), whose tensor names are kept, so its weight files load. Deviations:
pictures with a side of 8 or less, which the reference cannot pad to its window of 16, are mirrored more than once.
"""

from collections import OrderedDict
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
    mirror_pad,
    uniform_taps,
)
from mtkd_lightning.backbones.layouts import shape_of
from mtkd_lightning.backbones.swinir import merge, partition
from mtkd_lightning.errors import MTKDError


class DCTLSA(Backbone):
    """DCTLSA. Taps: shallow, block0, block1, ..., deep; a block is a stage.

    Args:
        scale: 2, 3 or 4.
        features: width.
        blocks: stages; each sees the outputs of all before it.
        heads: attention heads, a divisor of features.
        window_size: side of the attention windows.

    Raises:
        MTKDError: heads that do not divide features, or a size below 1.
    """

    def __init__(self, scale: int, features: int = 55, blocks: int = 6, heads: int = 5, window_size: int = 16) -> None:
        check_scale(self, scale)
        super().__init__()
        if min(features, blocks, heads, window_size) < 1:
            raise MTKDError(
                f"DCTLSA got features={features}, blocks={blocks}, heads={heads}, window_size={window_size}; "
                "set each to 1 or more"
            )
        if features % heads:
            raise MTKDError(f"DCTLSA cannot split {features} features into {heads} heads; heads must divide features")
        self.scale = scale
        self.features = features
        self.blocks = blocks
        self.heads = heads
        self.window_size = window_size
        self.fea_conv = conv3x3(3, features)
        for k in range(blocks):
            self.add_module(f"B{k + 1}", Stage(features, heads, window_size))
        for k in range(1, blocks):
            self.add_module(f"c{k}", Fusion(k + 1, features))
        self.c = Fusion(blocks, features)
        self.LR_conv = conv3x3(features, features)
        self.upsampler = nn.Sequential(conv3x3(features, 3 * scale**2), nn.PixelShuffle(scale))

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``features`` wide."""
        return uniform_taps("block", self.blocks, self.features)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Files of any size; heads and window are known of the published size alone."""
        qkv = "B1.body.0.transformer_body.0.blocks.0.attn.qkv.weight"
        if not {"fea_conv.weight", "c.0.weight", qkv} <= tensors.keys():
            return None
        features, fused = shape_of(tensors, "c.0.weight", 4)[:2]
        size = {"features": features, "blocks": fused // features}
        arguments = size | {"scale": isqrt(shape_of(tensors, "upsampler.0.weight", 4)[0] // 3)}
        unknown = {}
        if size == {"features": 55, "blocks": 6}:
            arguments |= {"heads": 5, "window_size": 16}
        else:
            published = "in the published network (55 features, 6 blocks)"
            unknown = {"heads": f"5 {published}", "window_size": f"16 {published}"}
        return Published(arguments, dict(tensors), unknown, assumed=frozenset({"heads", "window_size"}))

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """Shallow feature plus what all stages make of it."""
        # The stages work on pixels: in this layout they need no copies.
        shallow = keep("shallow", self.fea_conv(lr.contiguous(memory_format=torch.channels_last)))
        x = shallow
        seen = [shallow]
        for k in range(self.blocks):
            if k:
                x = self.get_submodule(f"c{k}")(torch.cat(seen, 1))
            x = keep(f"block{k}", self.get_submodule(f"B{k + 1}")(x))
            seen.append(x)
        deep: Tensor = shallow + self.LR_conv(self.c(torch.cat(seen[1:], 1)))
        return deep

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """Convolution and pixel shuffle; ``lr`` is not used."""
        sr: Tensor = self.upsampler(deep)
        return sr


class Fusion(nn.Sequential):
    """Concatenated features to as many as one of them has."""

    def __init__(self, count: int, features: int) -> None:
        super().__init__(nn.Conv2d(count * features, features, 1), nn.LeakyReLU(0.05, inplace=True))


class Stage(nn.Module):
    """Two modules, one after the other."""

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(_nested(WindowModule(features, heads, window)) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features of the same shape."""
        out: Tensor = self.body(x)
        return out


class WindowModule(nn.Module):
    """A normalisation and two blocks, the second on shifted windows, which wrap around the borders without a mask.

    Each module pads its own input and crops its output: padding once around the network gives another picture.
    """

    def __init__(self, features: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(features)))
        self.blocks = nn.Sequential(*(Block(features, heads, window, shift) for shift in (0, window // 2)))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to the same shape."""
        height, width = x.shape[-2:]
        x = mirror_pad(x, self.window).permute(0, 2, 3, 1)
        x = self.blocks(self.patch_embed(x))[:, :height, :width]
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Attention, then a perceptron that is added to its input; channels last."""

    def __init__(self, features: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.attn = LinearAttention(features, heads)
        hidden = 2 * features
        layers = OrderedDict(fc1=nn.Linear(features, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, features))
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to the same shape; h and w are multiples of the window."""
        height, width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self.attn(partition(self.attn.localize(x), self.window))
        x = merge(x + self.mlp(x), height, width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x


class LinearAttention(nn.Module):
    """Self-attention whose keys are normalised over the tokens, so that keys and values are multiplied first."""

    within_heads: Tensor

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            OrderedDict(
                pointwise_prenorm_0=nn.BatchNorm2d(features),
                pointwise_conv_0=nn.Conv2d(features, features, 1, bias=False),
                depthwise_conv=nn.Conv2d(features, features, 3, padding=1, groups=features, bias=False),
                pointwise_prenorm_1=nn.BatchNorm2d(features),
                pointwise_conv_1=nn.Conv2d(features, features, 1, bias=False),
            )
        )
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)
        size = features // heads
        blocks = torch.block_diag(*(torch.full((size, size), size**-0.5) for _ in range(heads)))
        self.register_buffer("within_heads", blocks, persistent=False)

    def localize(self, x: Tensor) -> Tensor:
        """The input of attention, with what the neighbours of each pixel add to it; (b, h, w, c) to the same shape."""
        x = x.permute(0, 3, 1, 2)
        return (x + self.local(x)).permute(0, 2, 3, 1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Attention inside windows (n, tokens, c), added to its input."""
        # Faster than one wide product, a cut into heads and small products: a product of whole widths holds that of
        # every head on its diagonal, and the projection is cheaper on it than on the tokens.
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q, k, v = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        context = (k.softmax(1).transpose(1, 2) @ v) * self.within_heads
        return x + torch.baddbmm(self.proj.bias, q, context @ self.proj.weight.t())


def _nested(module: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(transformer_body=nn.Sequential(module)))
