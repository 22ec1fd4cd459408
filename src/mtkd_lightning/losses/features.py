"""What the losses of features have in common."""

from torch import Tensor

from mtkd_lightning.errors import MTKDError


def check_sizes(student: Tensor, teacher: Tensor) -> None:
    """Refuse features (b, c, h, w) that differ in more than their channels.

    Raises:
        MTKDError: names both shapes.
    """
    if student.ndim != 4 or teacher.ndim != 4 or (student[:, 0].shape != teacher[:, 0].shape):
        raise MTKDError(
            f"cannot compare a student's feature of shape {tuple(student.shape)} with a teacher's of shape "
            f"{tuple(teacher.shape)}: all but the channels must be the same; choose taps of the size of the LR picture"
        )
