"""Stage 1 of MTKD: the student is an `Ensemble`, of which the aggregator learns."""

from torch import Tensor

from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.typing import SRBatch


class Aggregation(Scratch):
    """L1 of the merged picture to the ground truth."""

    def enlarge(self, batch: SRBatch) -> Tensor:
        """Merge the members' pictures, those that the batch brings along among them."""
        sr: Tensor = self.student(batch.lr, batch.teacher_sr)
        return sr
