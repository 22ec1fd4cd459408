"""Exponential moving average of the student's weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class EMA(Callback):
    """Averages the trained tensors after each step, and validates the average.

    Running statistics are averaged, too; whole numbers are taken as they are. The average is part of the checkpoint.

    Args:
        decay: share of the old average that a step keeps; 0.999 in MTKD's released recipe.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin at the initial weights, or at what a checkpoint holds."""
        state = _tensors(pl_module)
        self.average = {
            name: self.average[name].to(x.device) if name in self.average else x.detach().clone()
            for name, x in state.items()
        }

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the average towards the new weights, in one fused operation."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a part of a batch, the weights are as they were
        live = _tensors(pl_module)
        floating = [name for name, x in live.items() if x.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[name] for name in floating], [live[name].detach() for name in floating], 1 - self.decay
        )
        for name in live.keys() - floating:
            self.average[name].copy_(live[name])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the student."""
        self._live = {name: x.detach().clone() for name, x in _tensors(pl_module).items()}
        _copy(self.average, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the live weights back."""
        _copy(self._live, pl_module)
        self._live = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the student: it is the result, also of a run resumed behind its last step."""
        _copy(self.average, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Give the average to the checkpoint."""
        return dict(self.average)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average from a checkpoint."""
        self.average = dict(state_dict)


def _tensors(pl_module: LightningModule) -> dict[str, Tensor]:
    return pl_module.method.state_dict(keep_vars=True)  # type: ignore[union-attr]


@torch.no_grad()
def _copy(source: dict[str, Tensor], pl_module: LightningModule) -> None:
    for name, x in _tensors(pl_module).items():
        x.copy_(source[name])
