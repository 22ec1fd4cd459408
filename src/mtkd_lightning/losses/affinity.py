"""Spatial affinity: how alike the features of every two pixels are.

He et al., FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution, ICIP 2020,
https://doi.org/10.1109/ICIP40778.2020.9190917. Reference code: Vincent-Hoo/Knowledge-Distillation-for-Super-resolution
(no licence seen; none of it is used). Deviation: the reference adds 1e-7 to a feature's length before it divides by it,
which makes a gradient without bounds of a feature that is 0; here such a pixel has none.
"""

from typing import Any

import torch
from torch import Tensor

from mtkd_lightning.losses.features import check_sizes
from mtkd_lightning.losses.pixel import without_autocast

# Of an affinity matrix at once: with the 1024 columns of a 32x32 feature they stay in a core's cache.
ROWS = 256


def affinity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |A_S - A_T| over pairs of pixels and pictures, a float32 scalar; A (h * w, h * w) holds cosines.

    Once differentiable in ``student``, no gradient in ``teacher``. No matrix A is kept: memory grows with h * w.

    Args:
        student: (b, c, h, w).
        teacher: (b, any, h, w).

    Raises:
        MTKDError: the sizes differ.
    """
    check_sizes(student, teacher)
    with without_autocast(student.device):
        distance: Tensor = AffinityDistance.apply(_directions(student), _directions(teacher))  # type: ignore[no-untyped-call]
        return distance


class AffinityDistance(torch.autograd.Function):
    """The distance of unit vectors (b, c, n) and (b, k, n), which makes its gradient along with the loss.

    A_S - A_T is one product of both features, stacked; the gradient in S is 2 S sign(A_S - A_T) / (b * n * n).
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Give the mean over pairs and pictures."""
        # A picture at a time stays in a CPU's cache; a GPU wants few and large products.
        at_once = 1 if student.device.type == "cpu" else len(student)
        pieces = zip(student.split(at_once), teacher.split(at_once), strict=True)
        totals, gradients = zip(*(_total_and_gradient(*piece) for piece in pieces), strict=True)
        ctx.share = 1 / (len(student) * student.shape[-1] ** 2)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(totals).sum() * ctx.share

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        """Give the gradient of the student, and none of the teacher."""
        (gradient,) = ctx.saved_tensors
        return gradient * (outer * (2 * ctx.share)), None


def _total_and_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sum |A_S - A_T|, and S sign(A_S - A_T)."""
    left = torch.cat([student, teacher], 1).transpose(1, 2)
    right = torch.cat([student, -teacher], 1)
    total, gradient = student.new_zeros(()), torch.zeros_like(student)
    for start in range(0, student.shape[-1], ROWS):
        stop = start + ROWS
        # From the diagonal on: what lies beyond the square there stands for its mirror image, too.
        rows = left[:, start:stop] @ right[:, :, start:]
        rows[..., ROWS:] *= 2
        # By rows, as the sum of all in one go is not exact.
        total += torch.linalg.vector_norm(rows, 1, dim=-1).sum()
        signs = rows.sign_()
        gradient[..., start:stop] += student[..., start:] @ signs.transpose(1, 2)
        gradient[..., stop:] += student[..., start:stop] @ signs[..., ROWS:]
    return total, gradient


def _directions(feature: Tensor) -> Tensor:
    """(b, c, h, w) to unit vectors (b, c, h * w) in float32; 0, without gradient, where the feature is 0."""
    feature = feature.float().flatten(2)
    length = torch.linalg.vector_norm(feature, dim=1, keepdim=True)
    return feature / length.masked_fill(length == 0, torch.inf)
