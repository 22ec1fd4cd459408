"""The batch that flows from the data to a method."""

from typing import NamedTuple

from torch import Tensor


class SRBatch(NamedTuple):
    """Pictures of one batch, RGB, NCHW.

    A loader gives uint8 tensors (they travel to the device four times faster); a method sees float32 in 0..1.

    Attributes:
        lr: low-resolution pictures (b, 3, h, w).
        hr: ground truth (b, 3, scale * h, scale * w).
        name: one name per picture.
    """

    lr: Tensor
    hr: Tensor
    name: list[str]
