"""What every method has: a student, perhaps a teacher, and named terms."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self

from torch import Tensor, nn

from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class Method(nn.Module, ABC):
    """Turns a batch into weighted loss terms.

    The student (and adapters of the method's own) are children; the teacher is not, see `Teacher`.
    """

    needs_teacher: ClassVar[bool] = True
    pictures_suffice: ClassVar[bool] = False
    """Whether it only looks at the teacher's pictures, which can be made once."""

    def __init__(self, student: nn.Module, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def enlarge(self, batch: SRBatch) -> Tensor:
        """The student's picture (b, 3, scale * h, scale * w)."""
        sr: Tensor = self.student(batch.lr)
        return sr

    @abstractmethod
    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Loss terms of a batch in 0..1, each a scalar that already carries its weight."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.teacher is not None:
            self.teacher.apply_to_tensors(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
