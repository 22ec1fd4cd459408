"""The one LightningModule: sums a method's terms, logs them, validates the student, builds the optimiser."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from mtkd_lightning import artifacts
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import float32_convolutions
from mtkd_lightning.methods.base import Method, kept_picture
from mtkd_lightning.metrics.functional import Protocol
from mtkd_lightning.metrics.image import ImagePSNR, ImageSSIM
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Ensemble
from mtkd_lightning.typing import SRBatch


class SRModule(LightningModule):
    """Trains ``method.student`` as a recipe says.

    A step is a pure function of (weights, optimiser state, recipe.seed, step): the batch comes from the step's
    number, and so does every random draw inside it. That is what makes a resumed run equal an uninterrupted one.

    Attributes:
        shown: terms of the last step that was logged, in this process, by the names in the log.
    """

    def __init__(self, method: Method, recipe: Recipe, protocol: Protocol) -> None:
        super().__init__()
        self.method: Method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = recipe
        self.shown: dict[str, float] = {}
        self.psnr = ImagePSNR(protocol)
        self.ssim = ImageSSIM(protocol)
        self.psnr_to_teacher = ImagePSNR(protocol)

    def on_train_batch_start(self, batch: SRBatch, batch_idx: int) -> None:
        """Seed the step (ranks differ: their samples do, too)."""
        seed = hash((self.recipe.seed, batch_idx, self.global_rank))
        torch.default_generator.manual_seed(seed)
        # Not torch.manual_seed, which notes a stack trace at every call for each kind of device that is not in use.
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: SRBatch, batch_idx: int) -> Tensor:
        """Sum of the terms."""
        terms = self.method(batch)
        loss = torch.stack(list(terms.values())).sum()
        step, part = divmod(batch_idx + 1, self.trainer.accumulate_grad_batches)
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if part == 0 and (step % interval == 0 or step == self.recipe.steps):
            # Reading a value waits for the device, so not at every step; and not with prog_bar=True, for then Lightning
            # reads it anew at every step until the next one is logged.
            self.shown = {f"train/{name}": term.item() for name, term in terms.items()}
            self._refuse_nan(batch)
            self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, sync_dist=True)
            self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return loss

    def validation_step(self, batch: SRBatch, batch_idx: int) -> Tensor:
        """Enlarge one whole picture, in float32 whatever the training's precision; give it to callbacks."""
        eager = torch.compiler.set_stance("force_eager")  # every picture has another size
        with eager, torch.autocast(self.device.type, enabled=False), float32_convolutions():
            sr = self.method.enlarge(batch)
        index: int = self.trainer.val_dataloaders.sampler[batch_idx]  # type: ignore[union-attr]
        self.psnr.update(sr, batch.hr, [index])
        self.ssim.update(sr, batch.hr, [index])
        if (taught := self._given_by_teacher(batch)) is not None:
            self.psnr_to_teacher.update(sr, taught, [index])
        return sr

    def on_validation_epoch_end(self) -> None:
        """Log the means over pictures."""
        for name, metric in (("psnr", self.psnr), ("ssim", self.ssim)):
            self.log(f"val/{name}", metric.compute().float(), prog_bar=True)
            metric.reset()
        if self.psnr_to_teacher.ids:
            self.log("val/psnr_to_teacher", self.psnr_to_teacher.compute().float())
            self.psnr_to_teacher.reset()

    def configure_optimizers(self) -> Any:
        """Build the recipe's optimiser over what learns, with its schedule stepped at every update."""
        learns = [p for p in self.parameters() if p.requires_grad]
        optimizer = self.recipe.optimizer(learns, lr=self.recipe.learning_rate)
        # A fused optimiser unscales gradients inside its step, where they can neither be clipped nor measured.
        plugin, fused = self.trainer.precision_plugin, optimizer.defaults.get("fused")
        if fused and isinstance(plugin, MixedPrecision) and (plugin.scaler or self.trainer.gradient_clip_val):
            optimizer = self.recipe.optimizer(learns, lr=self.recipe.learning_rate, fused=False)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.recipe.scheduler(step / self.recipe.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the last good checkpoint: never replace it by one with a broken weight."""
        artifacts.refuse_broken(checkpoint["state_dict"], f"the checkpoint of step {self.global_step}")

    def _given_by_teacher(self, batch: SRBatch) -> Tensor | None:
        """The picture that the student learns from, where it was made before; running a teacher would cost too much."""
        teacher = self.method.teacher
        if teacher is None or (isinstance(teacher.net, Ensemble) and teacher.net.takes_pictures):
            return None
        return kept_picture(batch)

    def _refuse_nan(self, batch: SRBatch) -> None:
        if not all(map(_is_finite, self.shown.values())):
            raise MTKDError(
                f"the loss is not finite at step {self.global_step}: {self.shown}, on {sorted(set(batch.name))}. "
                f"{artifacts.STEADIER}"
            )


def _is_finite(value: float) -> bool:
    return value - value == 0
