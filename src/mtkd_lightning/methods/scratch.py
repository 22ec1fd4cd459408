"""Plain supervised training, the twin that every distilled student is compared with; it also trains the teachers."""

from torch import Tensor

from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method
from mtkd_lightning.typing import SRBatch


class Scratch(Method):
    """L1 to the ground truth."""

    needs_teacher = False

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give ``ground_truth``."""
        return {"ground_truth": l1(self.enlarge(batch), batch.hr)}
