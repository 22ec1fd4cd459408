"""What AT and FAKD share: response distillation, plus a distance of features at some depths."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mtkd_lightning.backbones.base import Backbone
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method, kept_picture
from mtkd_lightning.methods.taps import Taps, describe_pairs, pair_taps
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class FeatureMethod(Method):
    """L1 to the teacher's picture and to the real one, and ``distance`` summed over pairs of features.

    Args:
        student: network that learns.
        teacher: one network, no `Ensemble`; it runs on every batch, for its features.
        weights: of ``response``, ``ground_truth`` and ``feature``.
        taps: relative depths, or pairs {student tap: teacher tap}; see `pair_taps`.

    Raises:
        MTKDError: weights or taps that do not fit, or a network that shows no features.
    """

    terms = ("response", "ground_truth", "feature")

    def __init__(self, student: Backbone, teacher: Teacher, weights: Mapping[str, float], taps: Taps) -> None:
        super().__init__(student, teacher, weights)
        self.student: Backbone
        self.teacher: Teacher
        self.pairs = pair_taps(student, teacher, taps)

    @staticmethod
    @abstractmethod
    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar of features (b, c, h, w) and (b, any, h, w), with gradient in the first alone."""

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give ``response``, ``ground_truth`` and ``feature``."""
        own_taps, taught_taps = zip(*self.pairs, strict=True)
        sr, own = self.student.forward_features(batch.lr, own_taps)
        made, taught = self.teacher.features(batch.lr, taught_taps)
        kept = kept_picture(batch)
        return self.weighted(
            {
                "response": l1(sr, made if kept is None else kept),
                "ground_truth": l1(sr, batch.hr),
                "feature": torch.stack([self.distance(own[s], taught[t]) for s, t in self.pairs]).sum(),
            }
        )

    def describe(self) -> str:
        """The pairs of features."""
        return describe_pairs(self.student, self.teacher, self.pairs)
