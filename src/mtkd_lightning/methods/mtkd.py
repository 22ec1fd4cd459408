"""Stage 2 of MTKD: the student learns from the picture that the aggregator made of the teachers'.

Paper: Jiang, Feng, Zhang, Bull, "MTKD: Multi-Teacher Knowledge Distillation for Image Super-Resolution", ECCV 2024,
arXiv 2404.09571. Written from the paper. The paper's response term is a wavelet loss, the released configuration
uses plain L1: both are this class, ``method=mtkd`` and ``method=mtkd_released``.
"""

from collections.abc import Callable

from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class MTKD(Method):
    """Response of the teacher, and a little of the ground truth.

    Args:
        student: network that learns.
        teacher: an `Ensemble`, frozen.
        weights: ``response`` multiplies the distance to the teacher's picture, ``ground_truth`` (the paper's alpha) the
            L1 distance to the real one.
        response: ``(sr, teacher_sr) -> scalar``.
    """

    pictures_suffice = True

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        weights: dict[str, float],
        response: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(student, teacher)
        self.teacher: Teacher
        if set(weights) != {"response", "ground_truth"}:
            raise MTKDError(f"method.weights of MTKD has {sorted(weights)}; it takes exactly ground_truth and response")
        self.weights = dict(weights)
        self.response = response

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give ``response`` and ``ground_truth``."""
        sr = self.enlarge(batch)
        return {
            "response": self.weights["response"] * self.response(sr, self.teacher(batch.lr, batch.teacher_sr)),
            "ground_truth": self.weights["ground_truth"] * l1(sr, batch.hr),
        }
