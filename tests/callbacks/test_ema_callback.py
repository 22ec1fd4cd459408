"""The average against a loop written by hand, through a real trainer."""

import copy
import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.data.batches import TrainingBatches, WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.sources import Pictures, folders
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.metrics.functional import Protocol, psnr
from mtkd_lightning.recipe import Recipe, cosine
from mtkd_lightning.training import train

STEPS, DECAY, RATE = 6, 0.8, 2e-2


class Net(EDSR):
    """With a buffer that every training step changes, as running statistics do."""

    def __init__(self) -> None:
        super().__init__(scale=2, features=4, blocks=1)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    def forward(self, lr: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return super().forward(lr)


@pytest.fixture
def pictures(tmp_path, picture) -> Pictures:
    for i in range(2):
        write_png(tmp_path / "pictures/train" / f"{i}.png", np.roll(picture, 20 * i, axis=1))
    write_png(tmp_path / "pictures/validation/0.png", picture[:40, :40])
    return folders(tmp_path / "pictures", 2, tmp_path / "cache")


def recipe(decay: float | None) -> Recipe:
    intervals = {"validate_every": 2, "checkpoint_every": 4}
    return Recipe(STEPS, 2, 8, RATE, torch.optim.Adam, partial(cosine, final=0.1), seed=1, ema_decay=decay, **intervals)


def run(net: nn.Module, pictures: Pictures, folder: Path, decay: float | None = DECAY) -> dict[str, Any]:
    trainer = partial(Trainer, accelerator="cpu", devices=1, log_every_n_steps=1)
    return train(
        Scratch(net), recipe(decay), pictures, trainer=trainer, run=folder, checkpoint=None, config={}, label="test"
    )


def by_hand(net: nn.Module, pictures: Pictures) -> tuple[list[nn.Module], list[nn.Module]]:
    """The live and the average network after each step."""
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    average = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    batches = TrainingBatches(pictures.train, batch_size=2, lr_patch=8, seed=1)
    lives, averages = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * cosine(step / STEPS, final=0.1)
        lr, hr, *_ = batches[step]
        optimizer.zero_grad()
        l1(net(lr / 255), hr / 255).backward()
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(average.parameters(), net.parameters(), strict=True):
                mean.copy_(DECAY * mean + (1 - DECAY) * new)
            average.seen.copy_(net.seen)
        lives.append(copy.deepcopy(net))
        averages.append(copy.deepcopy(average))
    return lives, averages


def score(net: nn.Module, pictures: Pictures) -> float:
    lr, hr, *_ = WholePictures(pictures.validation)[0]
    with torch.no_grad():
        return psnr(net.eval()(lr / 255), hr / 255, Protocol(2)).item()


def validated(folder: Path) -> dict[int, float]:
    with (folder / "curves/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]) + 1: float(row["val/psnr"]) for row in rows if row["val/psnr"]}


def assert_same(net: nn.Module, expected: nn.Module) -> None:
    for name, x in expected.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], x, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(2)
    return Net()


def test_the_average_is_left_in_the_student(net, pictures, tmp_path):
    lives, averages = by_hand(net, pictures)
    run(net, pictures, tmp_path / "run")
    assert_same(net, averages[-1])
    assert net.seen == STEPS
    assert max((x - y).abs().max().item() for x, y in zip(net.parameters(), lives[-1].parameters(), strict=True)) > 1e-3


def test_the_average_is_validated(net, pictures, tmp_path):
    lives, averages = by_hand(net, pictures)
    record = run(net, pictures, tmp_path / "run")
    seen = validated(tmp_path / "run")
    for step in (2, 4):
        assert seen[step] == pytest.approx(score(averages[step - 1], pictures), abs=0.02)
        assert seen[step] != pytest.approx(score(lives[step - 1], pictures), abs=0.1)
    assert record["metrics"]["val/psnr"] == pytest.approx(score(averages[-1], pictures), abs=0.02)


def test_without_decay_the_last_weights_are_kept(net, pictures, tmp_path):
    lives, _ = by_hand(net, pictures)
    run(net, pictures, tmp_path / "run", decay=None)
    assert_same(net, lives[-1])


def test_the_checkpoint_has_both(net, pictures, tmp_path):
    lives, averages = by_hand(net, pictures)
    run(net, pictures, tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    live, average = Net(), Net()
    live.load_state_dict({k.removeprefix("method.student."): x for k, x in checkpoint["state_dict"].items()})
    average.load_state_dict({k.removeprefix("student."): x for k, x in checkpoint["callbacks"]["EMA"].items()})
    assert_same(live, lives[3])
    assert_same(average, averages[3])
