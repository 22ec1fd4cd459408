"""DUKD: the student learns from the teacher on pictures that have no ground truth, too.

Paper: Zhang, Li, Li, Chen, Tu, Wang, Jing, Lin, Hu, "Data Upcycling Knowledge Distillation for Image
Super-Resolution", https://arxiv.org/abs/2309.14162. Released code: https://github.com/yun224/DUKD (no licence file
seen). Written from the definitions; details are those of the released code: the places of the pieces are drawn once for
the whole batch, label consistency is asked of the pieces alone, and pictures are reduced without rounding.

Deviations from the released code:
* One optimiser step a batch, of the sum of all terms. The code takes two and does not clear the gradients between them,
  so that those of the first step count twice.
* Operations are undone in the reverse order. The code undoes them in the order in which they were done, which gives
  another picture wherever a transposition meets exactly one flip.
* An LR patch that is no multiple of the scale is cropped to one before it is reduced.
"""

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn

from mtkd_lightning.data.resize import resize_matrix
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import l1, without_autocast
from mtkd_lightning.methods.base import Method, kept_picture
from mtkd_lightning.teachers.teacher import Teacher
from mtkd_lightning.typing import SRBatch

OPERATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda pictures: 1 - pictures,
    lambda pictures: pictures.flip(-1),
    lambda pictures: pictures.flip(-2),
    lambda pictures: pictures.transpose(-2, -1),
)
"""Those of label consistency in their order; each is its own inverse."""

SMALLEST = 4
"""Side of the smallest LR patch that zoom-out may make: half an attention window, mirrored to a whole one."""


class DUKD(Method):
    """Response and ground truth, on the batch and on what it zooms in and out to.

    Zoom-in: pieces of the HR patches, as large as the LR patches, are enlarged. The teacher sees them as they are, the
    student after random invertible operations, which are undone on what it makes. Zoom-out: the LR patches are reduced
    by the scale and enlarged; here they themselves are the ground truth. All patches are square.

    Args:
        student: network that learns.
        teacher: a network or an `Ensemble` that runs at every step, frozen.
        weights: of ``ground_truth``, ``response``, ``zoom_in``, ``zoom_out`` and ``zoom_out_ground_truth``. Where the
            last two are 0, zoom-out is not computed and not given.
        patches: pieces that are drawn of each HR patch, of its scale x scale.
        probability: of each operation for each piece.

    Raises:
        MTKDError: a teacher whose pictures are given, a probability outside 0..1; when called, more pieces than there
            are or patches too small for zoom-out.
    """

    terms = ("ground_truth", "response", "zoom_in", "zoom_out", "zoom_out_ground_truth")

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        weights: Mapping[str, float],
        patches: int = 1,
        probability: float = 0.3,
    ) -> None:
        super().__init__(student, teacher, weights)
        self.teacher: Teacher
        if getattr(teacher.net, "takes_pictures", False):
            raise MTKDError(
                "DUKD shows its teacher pictures that are made at every step, so it must run it: a teacher that is a "
                "folder of pictures cannot do. Choose members that are networks with teacher.only=[<name>, ...]"
            )
        if not 0 <= probability <= 1:
            raise MTKDError(f"method.probability={probability}: it lies in 0..1, and is 0.3 in the released code")
        self.patches = patches
        self.probability = probability

    def forward(self, batch: SRBatch) -> dict[str, Tensor]:
        """Give the terms."""
        scale = batch.hr.shape[-1] // batch.lr.shape[-1]
        pieces = zoom_in(batch.hr, scale, self.patches)
        # Drawn on the CPU, so that a seed gives the same ones on every device.
        drawn = torch.rand(len(OPERATIONS), len(pieces), device="cpu") < self.probability
        drawn = drawn.to(pieces.device, non_blocking=True)

        # One pass of the student, but not of the teacher, whose passes over large batches are slower on a CPU.
        both = self.student(torch.cat([batch.lr, operate(pieces, drawn)]))
        sr, operated = both.split([len(batch.lr), len(pieces)])
        kept = kept_picture(batch)
        values = {
            "ground_truth": l1(sr, batch.hr),
            "response": l1(sr, self.teacher(batch.lr) if kept is None else kept),
            "zoom_in": l1(operate(operated.float(), drawn, undo=True), self.teacher(pieces)),
        }
        if self.weights["zoom_out"] or self.weights["zoom_out_ground_truth"]:
            reduced, ground_truth = zoom_out(batch.lr, scale)
            sr = self.student(reduced)
            values["zoom_out"] = l1(sr, self.teacher(reduced))
            values["zoom_out_ground_truth"] = l1(sr, ground_truth)
        return self.weighted(values)


def zoom_in(hr: Tensor, scale: int, count: int) -> Tensor:
    """Cut HR (b, 3, scale * h, scale * w) into scale x scale pieces and draw: (count * b, 3, h, w).

    The same ``count`` different places are drawn for all pictures of the batch.

    Raises:
        MTKDError: there are not so many.
    """
    if not 1 <= count <= scale**2:
        raise MTKDError(f"method.patches={count}: at x{scale} an HR patch has 1 to {scale**2} pieces of LR size")
    pieces = hr.unflatten(-2, (scale, -1)).unflatten(-1, (scale, -1))
    places = torch.randperm(scale**2, device="cpu")[:count].tolist()
    return torch.cat([pieces[:, :, place // scale, :, place % scale] for place in places])


def zoom_out(lr: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Reduce LR (b, 3, h, w) by the scale as LR was made of HR, neither rounded nor clipped.

    Returns:
        (b, 3, h // scale, w // scale), and the part of ``lr`` that it was made of.

    Raises:
        MTKDError: a side becomes smaller than 4.
    """
    height, width = (side // scale for side in lr.shape[-2:])
    if min(height, width) < SMALLEST:
        raise MTKDError(
            f"zoom-out makes {height}x{width} of LR patches of {lr.shape[-2]}x{lr.shape[-1]} at x{scale}, and networks "
            f"want {SMALLEST}x{SMALLEST}: set training.distillation.lr_patch={SMALLEST * scale} or more, or leave it "
            "out with method.weights.zoom_out=0 method.weights.zoom_out_ground_truth=0"
        )
    lr = lr[..., : height * scale, : width * scale]
    rows, columns = (_reduction(side, scale, lr.device, lr.dtype) for side in (height, width))
    with without_autocast(lr.device):
        return rows @ lr @ columns.T, lr


def operate(pictures: Tensor, drawn: Tensor, undo: bool = False) -> Tensor:
    """Apply each operation to the pictures (b, c, h, h) for which it is drawn (operations, b), or undo all that."""
    steps = list(zip(OPERATIONS, drawn, strict=True))
    for operation, chosen in reversed(steps) if undo else steps:
        pictures = torch.where(chosen[:, None, None, None], operation(pictures), pictures)
    return pictures


@cache
def _reduction(side: int, scale: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(resize_matrix(side * scale, side), device=device, dtype=dtype)
