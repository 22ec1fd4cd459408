"""Ends a search's job early where it does worse than others did."""

from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, LightningModule, Trainer

from mtkd_lightning.sweep_plan import is_search, overrides_of


def pruning() -> list[Callback]:
    """Give what a job of a search needs, and nothing elsewhere."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN or not is_search(hydra):
        return []
    from mtkd_lightning.search import Trial  # Optuna, an extra

    return [Pruning(Trial(hydra.sweeper, overrides_of(hydra)).report)]


class Pruning(Callback):
    """Reports each validation but the last, which may end the training.

    Args:
        report: takes step and PSNR-Y in dB; raises to end the training.
    """

    def __init__(self, report: Callable[[int, float], None]) -> None:
        self.report = report

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report PSNR-Y; of one process alone, for all ranks of a job would have to end together."""
        if trainer.state.fn == "fit" and trainer.global_step < trainer.max_steps and trainer.world_size == 1:
            self.report(trainer.global_step, float(trainer.callback_metrics["val/psnr"]))
