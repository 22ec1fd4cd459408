"""What the framework costs: the demo student's training step through Lightning over the same step in plain PyTorch.

Both do the same work on the same batches: the same student, method (MTKD with its three teachers online), optimiser,
schedule and moving average. They take turns step by step, so that whatever else the machine does meets both alike; a
repeat is a training of its own. The medians of their milliseconds a step and of the ratio of two steps that follow
each other are printed and written to ``framework_overhead.json``.

    python benchmarks/framework_overhead.py [repeats steps]
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from common import DEVICE, arguments, publish, seconds, synchronize
from mtkd_lightning.config import CONF, build
from mtkd_lightning.data.batches import StepSampler, TrainingBatches
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.evaluation import on_device
from mtkd_lightning.methods.base import Method
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.training import train

WARM_UP = 5


class Turns(Callback):
    """Takes the time of each step, and lets the plain loop make its own after it."""

    def __init__(self, plain: Iterator[None]) -> None:
        self.plain = plain
        self.seconds: list[tuple[float, float]] = []
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a step of the framework, which began where the plain one ended."""
        synchronize()
        framework = time.perf_counter() - self._start
        plain = seconds(lambda: next(self.plain))
        if batch_idx >= WARM_UP:
            self.seconds.append((framework, plain))
        self._start = time.perf_counter()


def main() -> None:
    """Measure, print and write."""
    (repeats, steps), _ = arguments(5, 50)
    with initialize_config_dir(str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = compose(
            "config",
            [
                f"training.distillation.steps={steps + WARM_UP}",
                "training.distillation.validate_every=1000000",
                "training.distillation.checkpoint_every=1000000",
                f"trainer.accelerator={'gpu' if DEVICE.type == 'cuda' else 'cpu'}",
            ],
            return_hydra_config=True,
        )
        HydraConfig.instance().set_config(config)
        pictures = build(config.data)
        recipe: Recipe = build(config.training.distillation)
        found = []
        for repeat in range(repeats):
            turns = Turns(_plain(_method(config), recipe, pictures))
            _framework(_method(config), recipe, pictures, config, Path(folder) / str(repeat), turns)
            found.append(turns.seconds)
    ratios = [statistics.median(a / b for a, b in pairs) for pairs in found]
    framework, plain = (statistics.median(x) for x in zip(*itertools.chain(*found), strict=True))
    publish(
        __file__,
        {
            "repeats": repeats,
            "steps": steps,
            "plain_ms": round(1000 * plain, 2),
            "framework_ms": round(1000 * framework, 2),
            "ratio_median": round(statistics.median(ratios), 4),
            "ratios": [round(x, 4) for x in ratios],
        },
    )


def _method(config: Any) -> Method:
    seed_everything(0, verbose=False)
    members = {name: Teacher(build(node.backbone)) for name, node in config.teacher.members.items()}
    ensemble = Ensemble(members, build(config.aggregator, members=len(members)))
    method: Method = build(config.method, student=build(config.student), teacher=Teacher(ensemble))
    return method


def _plain(method: Method, recipe: Recipe, pictures: Pictures) -> Iterator[None]:
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
        torch.stack(list(method(on_device(batch, DEVICE)).values())).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - decay)
        yield


def _framework(method: Method, recipe: Recipe, pictures: Pictures, config: Any, run: Path, turns: Turns) -> None:
    def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
        made: Trainer = build(config.trainer, callbacks=[*callbacks, turns], **arguments)
        return made

    train(method, recipe, pictures, trainer=trainer, run=run, checkpoint=None, config={}, label="benchmark")


if __name__ == "__main__":
    main()
