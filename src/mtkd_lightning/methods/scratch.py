"""Plain supervised training, the twin that every distilled student is compared with; it also trains the teachers."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method
from mtkd_lightning.typing import SRBatch


class Scratch(Method):
    """Distance to the ground truth.

    Args:
        student: network that learns.
        weights: none.
        loss: ``(sr, hr) -> scalar``, L1 by default.
    """

    needs_teacher = False

    def __init__(
        self,
        student: nn.Module,
        weights: Mapping[str, float] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = l1,
    ) -> None:
        super().__init__(student, weights=weights)
        self.loss = loss

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give ``ground_truth``."""
        return {"ground_truth": self.loss(self.enlarge(batch), batch.hr)}
