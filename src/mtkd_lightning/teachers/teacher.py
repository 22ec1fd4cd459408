"""Frozen teachers, and the ensemble that makes one of several."""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn


class Teacher:
    """A network from LR to SR that can only be read.

    It is no ``nn.Module`` on purpose: what walks a module's children (checkpoints, optimisers, DDP's buckets,
    ``train()``) cannot reach it. The network has no gradient, stays in eval mode and runs under ``no_grad``;
    ``net.reconstruct`` remains differentiable in its input for methods that need that.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, lr: Tensor) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) to (b, 3, scale * h, scale * w), both in 0..1."""
        sr: Tensor = self.net(lr)
        return sr

    def apply_to_tensors(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the module that holds this teacher, to another device for instance."""
        self.net._apply(fn)


class Ensemble(nn.Module):
    """Named members, in an order that is part of the result, and the aggregator of their pictures.

    Trained as it stands it is stage 1 of MTKD: the members are teachers, the aggregator alone has parameters.
    Wrapped in a `Teacher` it is what stage 2 learns from.
    """

    def __init__(self, members: Mapping[str, Teacher], aggregator: nn.Module) -> None:
        super().__init__()
        self.members = dict(members)
        self.aggregator = aggregator

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) with every member, and merge: (b, 3, scale * h, scale * w)."""
        images = torch.stack([member(lr) for member in self.members.values()], dim=1)
        sr: Tensor = self.aggregator(images)
        return sr

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for member in self.members.values():
            member.apply_to_tensors(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
