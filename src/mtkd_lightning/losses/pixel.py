"""Pixel losses.

Source: the L1 term of EDSR (Lim et al., CVPRW 2017, https://arxiv.org/abs/1707.02921) and of every method
here; written from the definition, no deviation.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from mtkd_lightning.errors import MTKDError


def difference(sr: Tensor, target: Tensor) -> Tensor:
    """`sr - target` in float32, whatever autocast is on.

    Raises:
        MTKDError: if the shapes differ (broadcasting would compare wrong pictures in silence).
    """
    if sr.shape != target.shape:
        raise MTKDError(
            f"a loss got sr of shape {tuple(sr.shape)} and a target of shape {tuple(target.shape)};"
            " both must be the same: check scale and crops"
        )
    return sr.float() - target.float()


def l1(sr: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over all pixels, channels and pictures; a float32 scalar."""
    return difference(sr, target).abs().mean()


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in the precision of the tensors, for losses; shapes without memory ("meta") have no autocast at all."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
