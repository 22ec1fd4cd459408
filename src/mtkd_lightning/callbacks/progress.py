"""How a training shows where it is: a bar in a terminal, a line at each validation elsewhere."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

log = logging.getLogger(__name__)


def progress(label: str) -> Callback:
    """Choose by whether someone looks at a terminal."""
    return Bar(label) if sys.stderr.isatty() else Lines(label)


class Bar(TQDMProgressBar):
    """Lightning's bar with the network's name, the loss terms, validation PSNR and the time left."""

    def __init__(self, label: str) -> None:
        super().__init__(refresh_rate=10)
        self.label = label

    def init_validation_tqdm(self) -> Tqdm:
        """Keep the few seconds of a validation from adding a line."""
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Name the network where Lightning counts epochs: here all of a training is one."""
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(self.label)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Loss terms and PSNR."""
        return _shown(trainer, pl_module)


class Lines(ProgressBar):
    """One line at each validation: steps, loss terms, PSNR, time left."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def disable(self) -> None:
        """Nothing: ranks but the first, which Lightning asks for silence, do not log what is only said."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of this sitting."""
        self._start = time.perf_counter(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line."""
        if trainer.state.fn != "fit":
            return
        began, first = self._start
        step, steps = trainer.global_step, trainer.max_steps
        left = (time.perf_counter() - began) / max(1, step - first) * (steps - step)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in _shown(trainer, pl_module).items())
        log.info("%s: step %d of %d, %s, %d:%02d left", self.label, step, steps, shown, left // 60, left % 60)


def _shown(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    """Loss terms as last logged, and what the last validation found."""
    terms: dict[str, float] = pl_module.shown  # type: ignore[assignment]
    return {**terms, **trainer.progress_bar_metrics}
