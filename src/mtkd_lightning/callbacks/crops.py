"""The same regions of validation pictures again and again, as the student learns to draw them."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from mtkd_lightning.loggers import log_pictures
from mtkd_lightning.typing import SRBatch

GAIN = 8  # of an error map: an error of 1/8 is white
ZOOM = 2


class Crops(Callback):
    """Draws LR, teacher, student, HR and errors side by side, of the most detailed region of each picture.

    Args:
        count: pictures, the first ones of the validation set.
        every: steps between drawings, each at the next validation then; None draws at every validation.
        side: of a region in HR pixels.
    """

    def __init__(self, count: int, every: int | None = None, side: int = 96) -> None:
        self.count = count
        self.every = every
        self.side = side
        self._drawn_at: int | None = None
        self._caption = ""
        self._strips: dict[str, NDArray[np.uint8]] | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether to draw."""
        step, before = trainer.global_step, self._drawn_at
        due = before is None or (step > before and (step >= trainer.max_steps or step - before >= (self.every or 1)))
        self._strips = {} if due and trainer.is_global_zero else None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: SRBatch, batch_idx: int, *_: Any
    ) -> None:
        """Draw one picture; ``outputs`` is the student's."""
        if self._strips is None or batch_idx >= self.count:
            return
        scale = batch.hr.shape[-1] // batch.lr.shape[-1]
        region = most_detailed(batch.hr, self.side)
        cells = {"LR": nn.functional.interpolate(batch.lr, scale_factor=scale)[..., *region]}
        if (made := batch.teacher_sr) is not None:
            # One picture is what the student learns from; several are what an aggregator merges.
            names = ["teacher"] if made.shape[1] == 1 else [f"member {index + 1}" for index in range(made.shape[1])]
            cells |= {name: made[:, index][..., *region] for index, name in enumerate(names)}
        cells |= {"student": outputs[..., *region], "HR": batch.hr[..., *region]}
        errors = {f"|{name} - HR|": cells[name] - cells["HR"] for name in ("teacher", "student") if name in cells}
        cells |= {name: (GAIN * x).abs().mean(1, keepdim=True).expand(-1, 3, -1, -1) for name, x in errors.items()}
        self._caption = f"{', '.join(cells)} (x{GAIN})"
        self._strips[batch.name[0]] = _levels(torch.cat(list(cells.values()), dim=-1))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the pictures over."""
        if self._strips:
            for logger in trainer.loggers:
                log_pictures(logger, "crops", self._strips, self._caption, trainer.global_step)
            self._drawn_at = trainer.global_step
        self._strips = None


def most_detailed(hr: Tensor, side: int) -> tuple[slice, slice]:
    """Rows and columns of the square of a picture (1, 3, h, w) that varies most, on a grid of half its side."""
    side = min(side, *hr.shape[-2:])
    gray = hr.mean(1, keepdim=True)
    step = max(1, side // 2)
    spread = nn.functional.avg_pool2d(gray.square(), side, step) - nn.functional.avg_pool2d(gray, side, step).square()
    top, left = divmod(int(spread[0, 0].argmax()), spread.shape[-1])
    return slice(step * top, step * top + side), slice(step * left, step * left + side)


def _levels(image: Tensor) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = (image[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return levels.repeat(ZOOM, 0).repeat(ZOOM, 1)
