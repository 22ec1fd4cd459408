"""Detail loss: L1 distance of two pictures once the means of their blocks are taken out, and a little of those means.

Source: our own, from ``experiments/compact_x4``. An error that is nearly the same all over a picture is tiny, but its
gradient adds up over all pixels in every parameter: in a short training by plain L1 it is nearly all that reaches them.
The LR picture shows such errors, so that a hundredth of their weight mends them as well.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import difference, without_autocast


class DetailLoss(nn.Module):
    """Mean |e - m| plus ``low_weight`` times mean |m|, where e = sr - target and m has the mean of e in each block.

    Computed in float32 with autocast off. No parameters, an empty state dict.

    Args:
        block: side of a block in pixels; those at the right and lower border hold what is left.
        low_weight: multiplies the term of the means.

    Raises:
        MTKDError: for a block below 2 pixels, whose mean is the pixel, or a negative weight.
    """

    def __init__(self, block: int = 8, low_weight: float = 0.01) -> None:
        super().__init__()
        if block < 2:
            raise MTKDError(f"the detail loss got block={block}; it needs 2 pixels or more")
        if not low_weight >= 0:
            raise MTKDError(f"the detail loss got low_weight={low_weight}; a weight is 0 or more")
        self.block, self.low_weight = block, low_weight

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Loss of pictures (b, c, h, w), a float32 scalar."""
        with without_autocast(sr.device):
            error = difference(sr, target)
            means = F.avg_pool2d(error, self.block, ceil_mode=True)
            means = means.repeat_interleave(self.block, -2).repeat_interleave(self.block, -1)
            means = means[..., : error.shape[-2], : error.shape[-1]]
            loss: Tensor = (error - means).abs().mean() + self.low_weight * means.abs().mean()
            return loss

    def extra_repr(self) -> str:
        """Settings, as they appear in the printed module."""
        return f"block={self.block}, low_weight={self.low_weight}"
