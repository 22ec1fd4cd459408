"""How fast a training goes, how steep its loss is, and whether it breaks down."""

import logging
import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mtkd_lightning.artifacts import STEADIER

log = logging.getLogger(__name__)

FALL = 1.0  # dB on the validation pictures that a training which goes well does not lose


class Monitor(Callback):
    """Logs samples per second and the gradient's norm at the steps that are logged anyway, and says a fall of PSNR.

    Other steps are left alone: a norm passes over all gradients. Validations do not count as time. What was logged up
    to a checkpoint is on disk with it: a run that goes on from there does not log it again.

    Args:
        samples: in one step, of all processes.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._since = 0.0
        self._step = 0
        self._paused = 0.0
        self._behind = False
        self._best = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since, self._step = time.perf_counter(), trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write what is logged, and soon what this very step still logs."""
        self._write(trainer)
        self._behind = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Write what was logged after a checkpoint at the same step."""
        if self._behind:
            self._write(trainer)
            self._behind = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on; warn if the training has broken down."""
        self._since += time.perf_counter() - self._paused
        if (psnr := trainer.callback_metrics.get("val/psnr")) is not None:
            self._warn_if_fallen(trainer.global_step, psnr.item())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log, where it is time: gradients are summed, unscaled and not yet clipped here."""
        step = trainer.global_step + 1
        if step % trainer.log_every_n_steps and step != trainer.max_steps:  # type: ignore[attr-defined]
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        now = time.perf_counter()
        rate = self.samples * (step - self._step) / (now - self._since)
        self._since, self._step = now, step
        pl_module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))
        pl_module.log("train/samples_per_second", rate)

    def _warn_if_fallen(self, step: int, psnr: float) -> None:
        if fell := psnr < self._best - FALL:
            log.warning(
                "step %d: validation PSNR fell to %.2f dB, it had been %.2f: the training is not stable. %s",
                *(step, psnr, self._best, STEADIER),
            )
        self._best = psnr if fell else max(self._best, psnr)  # one warning a fall

    @staticmethod
    def _write(trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
