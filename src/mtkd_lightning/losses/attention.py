"""Attention transfer: where a feature is strong, whatever its channels say.

Zagoruyko, Komodakis, Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928, in the form that
super-resolution uses: the code of FAKD, Vincent-Hoo/Knowledge-Distillation-for-Super-resolution (no licence seen; none
of it is used). Deviations from the original: L1 of the maps in place of the L2 norm of their difference (paper) or of
its mean square, and the sum over channels in place of their mean (code).
"""

import torch
from torch import Tensor

from mtkd_lightning.losses.features import check_sizes
from mtkd_lightning.losses.pixel import l1


def attention_map(feature: Tensor) -> Tensor:
    """Sum of squares over the channels of (b, c, h, w), scaled to length 1 over (h, w); float32 (b, h, w)."""
    energy = feature.float().square().sum(1)
    return energy / (torch.linalg.vector_norm(energy, dim=(1, 2), keepdim=True) + 1e-6)


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |map_S - map_T| over pixels and pictures, a float32 scalar without gradient in ``teacher``.

    A map's values go with 1 / sqrt(h * w), and so does the distance.

    Args:
        student: (b, c, h, w).
        teacher: (b, any, h, w).

    Raises:
        MTKDError: the sizes differ.
    """
    check_sizes(student, teacher)
    return l1(attention_map(student), attention_map(teacher.detach()))
