"""What the framework costs: the demo student's training step through Lightning over the same step in plain PyTorch.

Both do the same work on the same batches: the same student, method (MTKD with its three teachers online), optimiser,
schedule and moving average. They take turns, several times; the medians of their seconds a step and the ratio are
printed and written to ``framework_overhead.json``.

    python benchmarks/framework_overhead.py [repeats steps]
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from common import DEVICE, arguments, in_turns, publish, ratio, synchronize
from mtkd_lightning.config import CONF, build
from mtkd_lightning.data.batches import StepSampler, TrainingBatches
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.evaluation import on_device
from mtkd_lightning.methods.base import Method
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.training import train

WARM_UP = 5


class Clock(Callback):
    """Seconds of a step, of all but the first few."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._start = 0.0
        self.seconds = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time."""
        self.note(batch_idx + 1)

    def note(self, done: int) -> None:
        """Say how many steps are done."""
        if done == WARM_UP:
            synchronize()
            self._start = time.perf_counter()
        if done == self.steps:
            synchronize()
            self.seconds = (time.perf_counter() - self._start) / (done - WARM_UP)


def main() -> None:
    """Measure, print and write."""
    (repeats, steps), _ = arguments(5, 50)
    with initialize_config_dir(str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = compose(
            "config",
            [
                "+experiment=rcan_multi_teacher",
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
        found = in_turns(
            {
                "plain": lambda: _plain(_method(config), recipe, pictures),
                "framework": lambda: _framework(_method(config), recipe, pictures, config, Path(folder)),
            },
            repeats,
        )
    publish(
        __file__,
        {
            "repeats": repeats,
            "steps": steps,
            "plain_ms": round(1000 * statistics.median(found["plain"]), 2),
            "framework_ms": round(1000 * statistics.median(found["framework"]), 2),
            "ratio_median": round(ratio(found["framework"], found["plain"]), 4),
            "ratios": [round(b / a, 4) for a, b in zip(found["plain"], found["framework"], strict=True)],
        },
    )


def _method(config: Any) -> Method:
    seed_everything(0, verbose=False)
    members = {name: Teacher(build(node.backbone)) for name, node in config.teacher.members.items()}
    ensemble = Ensemble(members, build(config.aggregator, members=len(members)))
    method: Method = build(config.method, student=build(config.student), teacher=Teacher(ensemble))
    return method


def _plain(method: Method, recipe: Recipe, pictures: Pictures) -> float:
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
    clock = Clock(recipe.steps)
    for done, batch in enumerate(loader, start=1):
        optimizer.zero_grad()
        torch.stack(list(method(on_device(batch, DEVICE)).values())).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - decay)
        clock.note(done)
    return clock.seconds


def _framework(method: Method, recipe: Recipe, pictures: Pictures, config: Any, folder: Path) -> float:
    clock = Clock(recipe.steps)

    def trainer(callbacks: list[Callback], **arguments: Any) -> Trainer:
        made: Trainer = build(config.trainer, callbacks=[*callbacks, clock], **arguments)
        return made

    with tempfile.TemporaryDirectory(dir=folder) as run:
        train(method, recipe, pictures, trainer=trainer, run=Path(run), checkpoint=None, config={}, label="benchmark")
    return clock.seconds


if __name__ == "__main__":
    main()
