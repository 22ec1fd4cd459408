"""What every method has: a student, perhaps a teacher, and named terms with their weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch


class Method(nn.Module, ABC):
    """Turns a batch into weighted loss terms.

    The student (and adapters of the method's own) are children; the teacher is not, see `Teacher`.

    Args:
        student: network that learns.
        teacher: frozen; None for a method without one.
        weights: of each of the class's ``terms``.

    Raises:
        MTKDError: a weight is missing, unknown or negative.
    """

    needs_teacher: ClassVar[bool] = True
    pictures_suffice: ClassVar[bool] = False
    """Whether it only looks at the teacher's pictures of the batch, so that where they are kept no teacher runs."""
    terms: ClassVar[tuple[str, ...]] = ()
    """Of the loss, those that have a weight."""

    def __init__(
        self, student: nn.Module, teacher: Teacher | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.weights = dict(weights or {})
        if self.weights.keys() != set(self.terms):
            raise MTKDError(
                f"method.weights of {type(self).__name__} has {', '.join(sorted(self.weights)) or 'nothing'}; it takes "
                f"exactly {', '.join(sorted(self.terms)) or 'none'}"
            )
        for name, weight in self.weights.items():
            if not weight >= 0:
                raise MTKDError(f"method.weights.{name}={weight}: a weight is 0 or more")

    @abstractmethod
    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Loss terms of a batch in 0..1, each a scalar that already carries its weight."""

    def enlarge(self, batch: SRBatch) -> Tensor:
        """The student's picture (b, 3, scale * h, scale * w)."""
        sr: Tensor = self.student(batch.lr)
        return sr

    def describe(self) -> str:
        """What the user should see before the training starts; empty if there is nothing."""
        return ""

    def weighted(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply each term by its weight."""
        return {name: self.weights[name] * value for name, value in values.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.teacher is not None:
            self.teacher.apply_to_tensors(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def kept_picture(batch: SRBatch) -> Tensor | None:
    """The part of what the teacher made of the whole photograph, (b, 3, scale * h, scale * w); None where none is kept.

    For a method that runs its teacher, too: of a patch alone the teacher knows no surroundings, and makes a worse
    picture, so that methods are compared fairly only where all take their response from the same one.
    """
    return None if batch.teacher_sr is None else batch.teacher_sr[:, 0]
