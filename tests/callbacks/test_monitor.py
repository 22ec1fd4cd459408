from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from mtkd_lightning.callbacks.monitor import Monitor

CLOCK = SimpleNamespace(now=0.0, perf_counter=lambda: CLOCK.now)


class Slope(LightningModule):
    """Its gradient at every step is (3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)

    def training_step(self, batch, batch_idx):
        CLOCK.now += 0.01 * (1 + batch_idx)
        return (self.weight * torch.tensor([3.0, 4.0])).sum()

    def validation_step(self, batch, batch_idx):
        CLOCK.now += 0.2

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(12, 1))

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Seen(Callback):
    def __init__(self) -> None:
        self.logged: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
        if metrics and metrics != next(reversed(self.logged.values()), None):
            self.logged[trainer.global_step] = metrics


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*", "ignore:.*log_every_n_steps.*"
)
def test_norm_before_clipping_and_speed_without_validations(monkeypatch):
    monkeypatch.setattr("mtkd_lightning.callbacks.monitor.time", CLOCK)
    seen = Seen()
    trainer = Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=2, val_check_interval=2, limit_val_batches=1,
        num_sanity_val_steps=0, gradient_clip_val=0.1, callbacks=[Monitor(samples=8), seen],
    )  # fmt: skip
    trainer.fit(Slope())
    rates = {step: metrics["train/samples_per_second"] for step, metrics in seen.logged.items()}
    assert rates == pytest.approx({2: 16 / 0.03, 4: 16 / 0.07, 5: 8 / 0.05})
    for metrics in seen.logged.values():
        assert metrics["train/gradient_norm"] == pytest.approx(5)
