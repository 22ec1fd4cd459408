"""PSNR and SSIM over a set of pictures: the mean over images, exact under any number of processes."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.metrics.functional import Protocol, psnr, ssim


class ImageMetric(Metric):
    """Mean over images of a score that each image has by itself.

    Scores are kept by image id: a picture that a sampler repeats to even out processes counts once, and the
    result does not depend on batch size, order or number of processes.

    Args:
        protocol: how two pictures are compared.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    scores: list[Tensor]
    ids: list[Tensor]

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(dist_sync_fn=_gather)
        self.protocol = protocol
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("ids", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Score of each picture, (b,)."""

    def update(self, sr: Tensor, hr: Tensor, index: Tensor | Sequence[int]) -> None:
        """Add a batch.

        Args:
            sr: outputs, RGB 0..1, (b, 3, h, w).
            hr: ground truths of the same shape.
            index: id of each picture in its set, b whole numbers.

        Raises:
            MTKDError: if there is not one id for each picture, or the pictures cannot be compared.
        """
        ids = torch.as_tensor(index, dtype=torch.int64, device=sr.device).flatten()
        if len(ids) != len(sr):
            raise MTKDError(f"{type(self).__name__} got {len(ids)} ids for {len(sr)} pictures; give one for each")
        self.scores.append(self.score(sr, hr))
        self.ids.append(ids)

    def compute(self) -> Tensor:
        """Mean over images, a float64 scalar.

        Raises:
            MTKDError: if there was no image.
        """
        scores = self._by_id()
        if not scores:
            raise MTKDError(f"{type(self).__name__} has seen no image; update it before asking for the mean")
        return torch.tensor(list(scores.values()), dtype=torch.float64, device=self.device).mean()

    def values(self) -> dict[int, float]:
        """Score of every image seen by any process, in the order of ids; every process must make the call."""
        with self.sync_context(dist_sync_fn=_gather):
            return self._by_id()

    def _by_id(self) -> dict[int, float]:
        if len(self.ids) == 0:
            return {}
        ids, scores = dim_zero_cat(self.ids).tolist(), dim_zero_cat(self.scores).tolist()
        return {int(index): score for index, score in sorted(zip(ids, scores, strict=True))}


class ImagePSNR(ImageMetric):
    """Mean PSNR in dB; infinite if one picture is perfect."""

    def score(self, sr: Tensor, hr: Tensor) -> Tensor:
        """PSNR of each picture, (b,)."""
        return psnr(sr, hr, self.protocol)


class ImageSSIM(ImageMetric):
    """Mean SSIM, at most 1."""

    def score(self, sr: Tensor, hr: Tensor) -> Tensor:
        """SSIM of each picture, (b,)."""
        return ssim(sr, hr, self.protocol)


def _gather(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather as float64 (ids are exact up to 2**53): without images, a process has a state of any type."""
    return gather_all_tensors(state.double(), group)
