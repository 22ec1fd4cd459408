"""SwinIR: residual groups of shifted-window attention.

Liang et al., SwinIR: Image Restoration Using Swin Transformer, ICCVW 2021, https://arxiv.org/abs/2108.10257;
its blocks are those of Liu et al., Swin Transformer, ICCV 2021, https://arxiv.org/abs/2103.14030. Reference code:
JingyunLiang/SwinIR (Apache-2.0), whose tensor names are kept, so its weight files load. Deviations:
super-resolution only (no denoising, real-world or three-convolution variants); the mask of a shifted window depends
only on which edges of the image it touches, so four masks, made once, serve every size.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.backbones.base import (
    Backbone,
    Keep,
    MeanShift,
    Published,
    Upsample,
    check_scale,
    conv3x3,
    uniform_taps,
)
from mtkd_lightning.backbones.layouts import count_of, scale_of, shape_of, width_of
from mtkd_lightning.errors import MTKDError

OTHER_VARIANTS = {
    "absolute_pos_embed": "an absolute position embedding",
    "conv_after_body.0.weight": "three convolutions after the groups (3conv)",
    "conv_up1.weight": "the upsampler of the real-world variant (nearest+conv)",
}
"""Tensors that only the variants have that are not supported."""


class SwinTrunk(nn.Module):
    """Image-like input to deep feature: convolution, residual groups of Swin blocks, convolution, skip.

    Args:
        channels_in: channels of the input.
        embed_dim: width.
        depths: blocks in each group; every second block works on shifted windows.
        num_heads: attention heads in each group, divisors of embed_dim.
        drop_path_rate: the last block is skipped with this probability in training, the first with 0, those
            between linearly.
        block: makes a block from (heads, shifted, drop_path).

    Raises:
        MTKDError: depths and num_heads of different length, or heads that do not divide embed_dim.
    """

    def __init__(
        self,
        channels_in: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        drop_path_rate: float,
        block: "Callable[[int, bool, float], SwinBlock]",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if len(depths) != len(num_heads):
            raise MTKDError(
                f"{name} got {len(depths)} depths and {len(num_heads)} num_heads; give one of each per group"
            )
        for heads in num_heads:
            if embed_dim % heads:
                raise MTKDError(
                    f"{name} cannot split embed_dim {embed_dim} into {heads} heads; num_heads must divide it"
                )
        count = sum(depths)
        drop_paths = iter([drop_path_rate * k / max(count - 1, 1) for k in range(count)])
        self.conv_first = conv3x3(channels_in, embed_dim)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(embed_dim)))
        self.layers = nn.ModuleList()
        for depth, heads in zip(depths, num_heads, strict=True):
            blocks = [block(heads, k % 2 == 1, next(drop_paths)) for k in range(depth)]
            self.layers.append(ResidualGroup(embed_dim, blocks))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = conv3x3(embed_dim, embed_dim)

    def trunk(self, x: Tensor, keep: Keep) -> Tensor:
        """(b, channels_in, h, w) to (b, embed_dim, h, w); h and w are multiples of the window."""
        shallow = keep("shallow", self.conv_first(x))
        x = self.patch_embed(shallow.permute(0, 2, 3, 1))
        for k, group in enumerate(self.layers):
            x = group(x)
            keep(f"group{k}", x.permute(0, 3, 1, 2))
        deep: Tensor = shallow + self.conv_after_body(self.norm(x).permute(0, 3, 1, 2))
        return deep


class SwinIR(Backbone, SwinTrunk):
    """SwinIR. Taps: shallow, group0, group1, ..., deep.

    The defaults are the classical network; the lightweight one has embed_dim 60, four groups of six blocks
    and the upsampler "pixelshuffledirect".

    Args:
        scale: 2, 3 or 4.
        embed_dim: width.
        depths: blocks in each group.
        num_heads: attention heads in each group.
        window_size: side of the attention windows.
        mlp_ratio: width of the hidden layer of the blocks' perceptron, relative to embed_dim.
        upsampler: "pixelshuffle" (convolutions of 64 features) or "pixelshuffledirect" (one convolution).
        drop_path_rate: probability of skipping the last block in training, linearly less for those before.
        image_range: range that the network works in, 1 in all published weights.
    """

    def __init__(
        self,
        scale: int,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        upsampler: str = "pixelshuffle",
        drop_path_rate: float = 0.1,
        image_range: float = 1.0,
    ) -> None:
        def block(heads: int, shifted: bool, drop_path: float) -> SwinBlock:
            return SwinBlock(embed_dim, heads, window_size, shifted, mlp_ratio, drop_path)

        check_scale(self, scale)
        super().__init__(3, embed_dim, depths, num_heads, drop_path_rate, block)
        self.scale = scale
        self.size_multiple = window_size
        self.embed_dim = embed_dim
        self.mean_shift = MeanShift(image_range)
        self.conv_before_upsample: nn.Module = nn.Identity()
        self.conv_last: nn.Module = nn.Identity()
        if upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(conv3x3(embed_dim, 64), nn.LeakyReLU())
            self.upsample: nn.Module = Upsample(scale, 64)
            self.conv_last = conv3x3(64, 3)
        elif upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv3x3(embed_dim, 3 * scale**2), nn.PixelShuffle(scale))
        else:
            raise MTKDError(f"SwinIR has no upsampler '{upsampler}'; set it to pixelshuffle or pixelshuffledirect")

    @property
    def tap_channels(self) -> dict[str, int]:
        """All taps are ``embed_dim`` wide."""
        return uniform_taps("group", len(self.layers), self.embed_dim)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Files of the authors' and BasicSR's names, of any size.

        Raises:
            MTKDError: a variant other than the classical and the lightweight one.
        """
        blocks = "layers.{}.residual_group.blocks."
        table = "attn.relative_position_bias_table"
        if f"{blocks.format(0)}0.{table}" not in tensors:
            return None
        variants = [what for name, what in OTHER_VARIANTS.items() if name in tensors]
        if not count_of(tensors, "upsample."):
            variants.append("no upsampler (denoising or JPEG)")
        if variants:
            raise MTKDError(f"a SwinIR with {' and '.join(variants)}; supported are classical and lightweight SR")
        embed_dim = width_of(tensors)
        groups = [blocks.format(k) for k in range(count_of(tensors, "layers."))]
        tables = [shape_of(tensors, f"{group}0.{table}", 2) for group in groups]
        classical = count_of(tensors, "conv_before_upsample.") > 0
        arguments = {
            "scale": scale_of(tensors) if classical else isqrt(shape_of(tensors, "upsample.0.weight", 4)[0] // 3),
            "embed_dim": embed_dim,
            "depths": tuple(count_of(tensors, group) for group in groups),
            "num_heads": tuple(heads for _, heads in tables),
            "window_size": (isqrt(tables[0][0]) + 1) // 2,
            "mlp_ratio": shape_of(tensors, f"{groups[0]}0.mlp.fc1.weight", 2)[0] / embed_dim,
            "upsampler": "pixelshuffle" if classical else "pixelshuffledirect",
        }
        return Published(arguments, dict(tensors))

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """The trunk on an image without its mean colour."""
        return self.trunk(self.mean_shift.remove(lr), keep)

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """The convolutions around the upsampler; ``lr`` is not used."""
        return self.mean_shift.restore(self.conv_last(self.upsample(self.conv_before_upsample(deep))))


class ResidualGroup(nn.Module):
    """Swin blocks and a convolution, added to the input; channels last."""

    def __init__(self, dim: int, blocks: "Sequence[SwinBlock]") -> None:
        super().__init__()
        self.residual_group = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))
        self.conv = conv3x3(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to the same shape."""
        return torch.add(x, self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class SwinBlock(nn.Module):
    """Window attention, then a perceptron, each normalised before and added to its input; channels last.

    Published files hold two tensors a block that follow from the sizes; strict loading passes over them.
    """

    masks: Tensor | None

    def __init__(self, dim: int, heads: int, window: int, shifted: bool, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        layers = OrderedDict(fc1=_linear(dim, hidden), act=nn.GELU(), fc2=_linear(hidden, dim))
        self.mlp = nn.Sequential(layers)
        masks = apart(shift_regions(window, self.shift)) if self.shift else None
        self.register_buffer("masks", masks, persistent=False)
        self.register_load_state_dict_pre_hook(_drop_derived)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to the same shape; h and w are multiples of the window."""
        x = x + self._drop(self._attention(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside windows (n, tokens, c); mask (m, tokens, tokens), m a divisor of n."""
        out: Tensor = self.attn(windows, mask)
        return out

    def _attention(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        mask = self.masks
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            if mask is not None:
                mask = mask[_window_kinds(height // self.window, width // self.window, x.device)]
        x = merge(self.attend(partition(x, self.window), mask), height, width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def _drop(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x
        stay = 1 - self.drop_path
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(stay).div_(stay)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside a window, with a learned bias per head and relative position."""

    relative_position: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = _linear(dim, 3 * dim)
        self.proj = _linear(dim, dim)
        self.register_buffer("relative_position", _relative_position(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, tokens, c) to the same shape; of mask (m, tokens, tokens), one is added to every m-th window."""
        n, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table.index_select(0, self.relative_position)
        bias = bias.view(1, tokens, tokens, self.heads).permute(0, 3, 1, 2).contiguous()
        if mask is not None:
            bias = bias + mask[:, None]
        if bias.requires_grad:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (logits.unflatten(0, (-1, bias.shape[0])) + bias).flatten(0, 1).softmax(-1)
            x = weights @ v
        else:
            # Faster, but not where the bias needs a gradient. A copy is made only for several masks and pictures.
            bias = bias.to(q.dtype).expand(n // bias.shape[0], -1, -1, -1, -1).flatten(0, 1)
            x = F.scaled_dot_product_attention(q, k, v, bias)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(n, tokens, channels))
        return out


def partition(x: Tensor, window: int) -> Tensor:
    """Cut (b, h, w, c) into windows (b * h/window * w/window, window^2, c), row by row."""
    b, height, width, channels = x.shape
    x = x.view(b, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window**2, channels)


def merge(windows: Tensor, height: int, width: int) -> Tensor:
    """Put windows together again: the inverse of ``partition``."""
    window = int(windows.shape[1] ** 0.5)
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def shift_regions(window: int, shift: int) -> Tensor:
    """Region numbers in the four kinds of window of a rolled picture, float64 (4, window^2).

    Tokens of different regions were not neighbours before the roll. The kinds are those of a picture of two by
    two windows: inside, last column, last row, corner. Without a shift, all is one region (number 8).
    """
    edge = torch.zeros(2 * window, dtype=torch.float64)
    edge[window:] = 1
    edge[-shift:] = 2
    return partition((3 * edge[:, None] + edge)[None, :, :, None], window)[..., 0]


def apart(regions: Tensor) -> Tensor:
    """Additive masks (k, n, n) that part the tokens whose region number (k, n) differs."""
    return torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)


def _window_kinds(rows: int, columns: int, device: torch.device) -> Tensor:
    last_row = torch.arange(rows, device=device) == rows - 1
    last_column = torch.arange(columns, device=device) == columns - 1
    return (2 * last_row[:, None] + last_column).flatten()


def _relative_position(window: int) -> Tensor:
    """Row of the bias table for every pair of tokens, (window^4)."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down, right = row[:, None] - row + window - 1, column[:, None] - column + window - 1
    return (down * (2 * window - 1) + right).flatten()


def _linear(channels_in: int, channels_out: int) -> nn.Linear:
    layer = nn.Linear(channels_in, channels_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _drop_derived(block: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in ("attn_mask", "attn.relative_position_index"):
        state.pop(prefix + name, None)
