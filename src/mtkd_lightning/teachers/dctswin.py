"""DCTSwin: the knowledge aggregation network of MTKD, from several teachers' images to a better one.

Jiang, Feng, Zhang, Bull, MTKD: Multi-Teacher Knowledge Distillation for Image Super-Resolution, ECCV 2024,
https://arxiv.org/abs/2404.09571. The released code, YuxuanJJ/MTKD, extends BasicSR (Apache-2.0). The defaults are
the released network with its oddities: the cosine transform is not normalised (inputs of the attention are 16 to
256 times larger than in Swin); the region picture of the shift mask passes through the same transform, so the mask
parts other pairs than a spatial one; and it is applied in blocks without a shift, too (for any image whose size is
not the one that the network was configured for, as in the authors' training). With ``orthonormal=True``,
``mask=False`` and ``mean_skip=True`` this is mended, and training starts at the mean of the teachers instead of at
grey. Deviation: the range of the output (/ 255 + mean colour), which the release restores in its trainer, is
restored in ``forward``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.backbones.base import Keep, MeanShift, Upsample, check_scale, conv3x3, mirror_pad
from mtkd_lightning.backbones.swinir import SwinBlock, SwinTrunk, apart, shift_regions
from mtkd_lightning.errors import MTKDError


class DCTSwin(SwinTrunk):
    """Aggregates the images of ``members`` teachers, always in the same order, into one.

    Args:
        scale: 2, 3 or 4; the network works at 1/scale of the images' size.
        members: number of teachers, 1 or more.
        embed_dim: width.
        depths: blocks in each group.
        num_heads: attention heads in each group.
        window_size: side of the windows that are transformed and attended to.
        mlp_ratio: width of the hidden layer of the blocks' perceptron, relative to embed_dim.
        drop_path_rate: probability of skipping the last block in training, linearly less for those before.
        features: width of the upsampler.
        orthonormal: use the orthonormal cosine transform.
        mask: part frequencies by the transformed region picture, as the release does.
        mean_skip: add the output to a mean of the members. It starts at the plain mean: the last convolution starts
            at zero, and the members' shares, which are learned and sum to 1, start equal.
    """

    def __init__(
        self,
        scale: int,
        members: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (4, 4),
        num_heads: Sequence[int] = (6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.1,
        features: int = 64,
        orthonormal: bool = False,
        mask: bool = True,
        mean_skip: bool = False,
    ) -> None:
        def block(heads: int, shifted: bool, drop_path: float) -> DCTBlock:
            return DCTBlock(embed_dim, heads, window_size, shifted, mlp_ratio, drop_path, orthonormal, mask)

        check_scale(self, scale)
        if members < 1:
            raise MTKDError(f"DCTSwin cannot aggregate {members} members; set members to 1 or more")
        super().__init__(3 * members * scale**2, embed_dim, depths, num_heads, drop_path_rate, block)
        self.scale = scale
        self.members = members
        self.size_multiple = window_size * scale
        self.mean_skip = mean_skip
        self.mean_shift = MeanShift(255.0)
        self.conv_before_upsample = nn.Sequential(conv3x3(embed_dim, features), nn.LeakyReLU())
        self.upsample = Upsample(scale, features)
        self.conv_last = conv3x3(features, 3)
        if mean_skip:
            self.shares = nn.Parameter(torch.zeros(members))
            nn.init.zeros_(self.conv_last.weight)
            nn.init.zeros_(self.conv_last.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Members' images (b, members, 3, H, W) in 0..1, of any size, to one (b, 3, H, W); not clamped."""
        if images.shape[1] != self.members:
            raise MTKDError(f"DCTSwin is for the images of {self.members} members, not {images.shape[1]}")
        if not self.mean_skip:
            return self.mean_shift.restore(self.raw(images))
        beyond_mean = (self.shares - self.shares.mean()).view(1, -1, 1, 1, 1)
        return images.mean(1) + (beyond_mean * images).sum(1) + self.raw(images)

    def raw(self, images: Tensor) -> Tensor:
        """The network alone, (b, members, 3, H, W) to (b, 3, H, W); as released, 0..255 less the mean colour."""
        height, width = images.shape[-2:]
        x = F.pixel_unshuffle(mirror_pad(images.flatten(1, 2), self.size_multiple), self.scale)
        out: Tensor = self.conv_last(self.upsample(self.conv_before_upsample(self.trunk(x, Keep()))))
        return out[..., :height, :width]


class DCTBlock(SwinBlock):
    """A Swin block whose attention sees, per channel, the frequencies of a window instead of its positions."""

    dct: Tensor
    idct: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        shifted: bool,
        mlp_ratio: float,
        drop_path: float,
        orthonormal: bool,
        mask: bool,
    ) -> None:
        super().__init__(dim, heads, window, shifted, mlp_ratio, drop_path)
        dct, idct = dct_matrices(window, orthonormal)
        self.register_buffer("dct", dct.float(), persistent=False)
        self.register_buffer("idct", idct.float(), persistent=False)
        self.masks = None
        if mask:
            # In blocks without a shift, all windows have the same constant region picture: the mask parts the DC
            # coefficient from all others. Rounded, for whether two coefficients are equal must not hang on the last
            # bit.
            regions = shift_regions(window, self.shift)[: 4 if shifted else 1]
            self.masks = apart((regions @ dct.T).round(decimals=6))

    def attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention among the 2-D cosine coefficients of windows (n, positions, c), transformed back."""
        return self.idct @ super().attend(self.dct @ windows, mask)


def dct_matrices(size: int, orthonormal: bool) -> tuple[Tensor, Tensor]:
    """The 2-D cosine transform (type II) of flattened windows and its inverse, float64 (size^2, size^2).

    Not orthonormal means without any factor but the 2 of the definition: the DC of ones is 4 size^2.
    """
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    gain = torch.ones(size, dtype=torch.float64)
    if not orthonormal:
        gain = gain * math.sqrt(2 * size)
        gain[0] *= math.sqrt(2)
    forward, inverse = gain[:, None] * basis, basis.T / gain
    return torch.kron(forward, forward), torch.kron(inverse, inverse)
