"""Response distillation, KD: the student learns from the ground truth and from the teacher's picture.

Source: the definition that the SR distillation papers compare with ("logits KD"; FAKD, ICIP 2020,
https://github.com/Vincent-Hoo/Knowledge-Distillation-for-Super-resolution; DUKD, https://github.com/yun224/DUKD):
L1 to the ground truth plus L1 to the teacher's picture. With ``aggregator=mean`` the teacher is the plain mean of
several networks. Written from the definition.
"""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class KD(Method):
    """Distance to the teacher's picture, and L1 to the real one.

    Args:
        student: network that learns.
        teacher: a network or an `Ensemble`, frozen.
        weights: of ``response`` and ``ground_truth``.
        response: ``(sr, teacher_sr) -> scalar``.
    """

    pictures_suffice = True
    terms = ("response", "ground_truth")

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        weights: Mapping[str, float],
        response: Callable[[Tensor, Tensor], Tensor] = l1,
    ) -> None:
        super().__init__(student, teacher, weights)
        self.teacher: Teacher
        self.response = response

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give ``response`` and ``ground_truth``."""
        sr = self.enlarge(batch)
        return self.weighted(
            {
                "response": self.response(sr, self.teacher(batch.lr, batch.teacher_sr)),
                "ground_truth": l1(sr, batch.hr),
            }
        )
