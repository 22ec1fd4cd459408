"""Frozen teachers, and the ensemble that makes one of several."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
        self._passes = 0

    @property
    def passes(self) -> int:
        """Pictures or patches that its networks have enlarged so far, each network counted: what teaching cost."""
        members = getattr(self.net, "members", {}).values()
        return self._passes + sum(member.passes for member in members if member)

    @torch.no_grad()
    def __call__(self, lr: Tensor, teacher_sr: Tensor | None = None) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) to (b, 3, scale * h, scale * w), both in 0..1.

        ``teacher_sr`` (b, k, 3, scale * h, scale * w) are the pictures for a network that takes such, see `Ensemble`.
        """
        self._count(lr)
        sr: Tensor = self.net(lr) if teacher_sr is None else self.net(lr, teacher_sr)
        return sr

    @torch.no_grad()
    def features(self, lr: Tensor, taps: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Enlarge ``lr`` and give features by tap, see `Backbone.forward_features`; only for such a network."""
        self._count(lr)
        found: tuple[Tensor, dict[str, Tensor]] = self.net.forward_features(lr, taps)  # type: ignore[operator]
        return found

    def _count(self, lr: Tensor) -> None:
        if not isinstance(self.net, Ensemble | GivenPicture):
            self._passes += len(lr)

    def apply_to_tensors(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow the module that holds this teacher, to another device for instance."""
        self.net._apply(fn)


class Ensemble(nn.Module):
    """Named members, in an order that is part of the result, and the aggregator of their pictures.

    A member is a teacher, or None: then its picture is given. Trained as it stands the ensemble is stage 1 of MTKD: the
    aggregator alone has parameters. Wrapped in a `Teacher` it is what stage 2 learns from.
    """

    def __init__(self, members: Mapping[str, Teacher | None], aggregator: nn.Module) -> None:
        super().__init__()
        self.members = dict(members)
        self.aggregator = aggregator

    @property
    def takes_pictures(self) -> bool:
        """Whether a member's picture has to be given."""
        return None in self.members.values()

    def forward(self, lr: Tensor, teacher_sr: Tensor | None = None) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) with every member, and merge: (b, 3, scale * h, scale * w).

        ``teacher_sr`` (b, k, 3, scale * h, scale * w) are the pictures of the k members that are None, in their order.
        """
        given = iter(() if teacher_sr is None else teacher_sr.unbind(1))
        return self.merge([next(given) if member is None else member(lr) for member in self.members.values()])

    def merge(self, images: Sequence[Tensor]) -> Tensor:
        """Merge pictures that the members have made, in their order, each (b, 3, scale * h, scale * w)."""
        sr: Tensor = self.aggregator(torch.stack(list(images), dim=1))
        return sr

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for member in filter(None, self.members.values()):
            member.apply_to_tensors(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class GivenPicture(nn.Module):
    """A teacher that is no network: gives the picture number ``index`` of those that are given."""

    takes_pictures = True

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index

    def forward(self, lr: Tensor, teacher_sr: Tensor) -> Tensor:
        """(b, k, 3, H, W) to (b, 3, H, W)."""
        return teacher_sr[:, self.index]
