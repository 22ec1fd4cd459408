"""What the framework costs: the demo student's training step through Lightning over the same step in plain PyTorch.

Both do the same work on the same batches: the same student, method (MTKD with kept pictures, bicubic ones, for their
content costs nothing), optimiser, schedule and moving average. They take turns step by step (on a GPU in blocks of
steps), so that whatever else the machine does meets both alike; a repeat is a training of its own. The medians of their
milliseconds a step and of the ratio of two turns that follow each other, and the range of the repeats' medians, are
printed and written to ``framework_overhead.json``.

    python benchmarks/framework_overhead.py [repeats turns]
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from common import DEVICE, TURN, Loop, Timing, Timings, advance, arguments, over, parts, publish, synchronize
from mtkd_lightning.config import CONF, build
from mtkd_lightning.data.batches import StepSampler, TrainingBatches
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.methods.base import Method
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import GivenPicture, Teacher
from mtkd_lightning.training import train
from steps import distillation, merged

WARM_UP = 5  # turns


class Turns(Callback):
    """Takes the time of each turn, and lets the plain loop have its own after it."""

    def __init__(self, plain: Iterator[float]) -> None:
        self.timings: list[tuple[Timing, Timing]] = []
        self._plain = plain
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a turn of the framework, which began where the plain one ended."""
        if (batch_idx + 1) % TURN:
            return
        synchronize()
        framework = Timing((time.perf_counter() - self._start) / TURN, 0.0)
        self.timings.append((framework, advance(self._plain)))
        self._start = time.perf_counter()


def main() -> None:
    """Measure, print and write."""
    (repeats, turns), _ = arguments(5, 50)
    with initialize_config_dir(str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = compose(
            "config",
            [
                f"training.distillation.steps={(turns + WARM_UP) * TURN}",
                "training.distillation.validate_every=1000000",
                "training.distillation.checkpoint_every=1000000",
                f"trainer.accelerator={'gpu' if DEVICE.type == 'cuda' else 'cpu'}",
            ],
            return_hydra_config=True,
        )
        HydraConfig.instance().set_config(config)
        found: Pictures = build(config.data)
        pictures = replace(found, train=merged(found.train, 1, Path(folder) / "teachers"))
        recipe: Recipe = build(config.training.distillation)
        timings = []
        for repeat in range(repeats):
            both = Turns(_plain(_method(config), recipe, pictures))
            _framework(_method(config), recipe, pictures, config, Path(folder) / str(repeat), both)
            timings.append(list(zip(*both.timings[WARM_UP:], strict=True)))
    framework, plain = (list(each) for each in zip(*timings, strict=True))
    publish(
        __file__,
        {
            "repeats": repeats,
            "turns": turns,
            "plain_ms": _milliseconds(plain),
            "framework_ms": _milliseconds(framework),
            **over("plain", framework, plain),
        },
    )


def _milliseconds(timings: Timings) -> float:
    return round(1000 * statistics.median(timing.step for timing in itertools.chain(*timings)), 2)


def _method(config: Any) -> Method:
    seed_everything(0, verbose=False)
    return distillation(config, Teacher(GivenPicture()))


def _plain(method: Method, recipe: Recipe, pictures: Pictures) -> Iterator[float]:
    batches = TrainingBatches(pictures.train, batch_size=recipe.batch_size, lr_patch=recipe.lr_patch, seed=recipe.seed)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=StepSampler(0, recipe.steps), pin_memory=DEVICE.type == "cuda"
    )
    method.to(device=DEVICE, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    weights: list[torch.Tensor] = list(method.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = recipe.optimizer(weights, lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.scheduler(step / recipe.steps))
    decay = recipe.ema_decay
    assert decay is not None
    for batch in loader:
        optimizer.zero_grad()
        (batch,) = parts(batch, Loop(recipe.batch_size))
        torch.stack(list(method(batch).values())).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - decay)
        yield 0.0


def _framework(method: Method, recipe: Recipe, pictures: Pictures, config: Any, run: Path, turns: Turns) -> None:
    def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
        made: Trainer = build(config.trainer, callbacks=[*callbacks, turns], **arguments)
        return made

    train(method, recipe, pictures, trainer=trainer, run=run, checkpoint=None, config={}, label="benchmark")


if __name__ == "__main__":
    main()
