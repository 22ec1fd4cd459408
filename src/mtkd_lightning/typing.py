"""The batch that flows from the data to a method."""

from typing import NamedTuple

import torch
from torch import Tensor


class SRBatch(NamedTuple):
    """Pictures of one batch, RGB, NCHW.

    A loader gives uint8 tensors (they travel to the device four times faster); a method sees float32 in 0..1.

    Attributes:
        lr: low-resolution pictures (b, 3, h, w).
        hr: ground truth (b, 3, scale * h, scale * w).
        name: one name per picture.
        teacher_sr: pictures that teachers made before the training (b, k, 3, scale * h, scale * w), uint8 or uint16,
            in the order of those teachers; None where all teachers are networks that run online.
    """

    lr: Tensor
    hr: Tensor
    name: list[str]
    teacher_sr: Tensor | None = None


def floats(batch: SRBatch) -> SRBatch:
    """Levels of 8 or 16 bit to float32 in 0..1, where they are; pictures in channels_last."""
    lr, hr = (_float(x, torch.channels_last) for x in (batch.lr, batch.hr))
    return SRBatch(lr, hr, batch.name, None if batch.teacher_sr is None else _float(batch.teacher_sr))


def _float(levels: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    return levels.to(torch.float32, memory_format=layout) / (65535 if levels.dtype == torch.uint16 else 255)
