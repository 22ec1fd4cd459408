"""What the framework costs: the demo student's training step through Lightning over the same step in plain PyTorch.

Both do the same work on the same batches: the same student, method (MTKD with its three teachers online), optimiser,
schedule and moving average. They take turns, several times; the medians of their seconds a step and the ratio are
printed and written to ``framework_overhead.json``.

    python benchmarks/framework_overhead.py [repeats steps]
"""

import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, seed_everything

from mtkd_lightning.config import CONF, build
from mtkd_lightning.data.batches import StepSampler, TrainingBatches
from mtkd_lightning.methods.base import Method
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.training import train
from mtkd_lightning.typing import SRBatch

WARM_UP = 5


class Clock(Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Measure, print and write."""
    repeats, steps = (int(x) for x in (sys.argv[1:] or ("5", "50")))
    with initialize_config_dir(str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = compose(
            "config",
            [
                "+experiment=rcan_multi_teacher",
                f"training.distillation.steps={steps + WARM_UP}",
                "training.distillation.validate_every=1000000",
                "training.distillation.checkpoint_every=1000000",
                "trainer.accelerator=cpu",
            ],
            return_hydra_config=True,
        )
        HydraConfig.instance().set_config(config)
        pictures = build(config.data)
        recipe: Recipe = build(config.training.distillation)
        seconds: dict[str, list[float]] = {"plain": [], "framework": []}
        for repeat in range(repeats):
            seconds["plain"].append(_plain(_method(config), recipe, pictures))
            seconds["framework"].append(
                _framework(_method(config), recipe, pictures, config, Path(folder) / str(repeat))
            )
    plain, framework = (statistics.median(seconds[name]) for name in ("plain", "framework"))
    ratios = [b / a for a, b in zip(seconds["plain"], seconds["framework"], strict=True)]
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "repeats": repeats,
        "steps": steps,
        "plain_ms": round(1000 * plain, 2),
        "framework_ms": round(1000 * framework, 2),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }
    print(json.dumps(result, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def _method(config: object) -> Method:
    seed_everything(0, verbose=False)
    members = {name: Teacher(build(node.backbone)) for name, node in config.teacher.members.items()}
    ensemble = Ensemble(members, build(config.aggregator, members=len(members)))
    return build(config.method, student=build(config.student), teacher=Teacher(ensemble))


def _plain(method: Method, recipe: Recipe, pictures: object) -> float:
    batches = TrainingBatches(pictures.train, batch_size=recipe.batch_size, lr_patch=recipe.lr_patch, seed=recipe.seed)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=StepSampler(0, recipe.steps))
    method.to(memory_format=torch.channels_last).train()
    weights = list(method.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = recipe.optimizer(weights, lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.scheduler(step / recipe.steps))
    ends = []
    for batch in loader:
        lr, hr = (x.to(torch.float32, memory_format=torch.channels_last) / 255 for x in (batch.lr, batch.hr))
        optimizer.zero_grad()
        torch.stack(list(method(SRBatch(lr, hr, batch.name)).values())).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - recipe.ema_decay)
        ends.append(time.perf_counter())
    return _step(ends)


def _framework(method: Method, recipe: Recipe, pictures: object, config: object, run: Path) -> float:
    clock = Clock()

    def trainer(**arguments: object) -> object:
        arguments["callbacks"].append(clock)
        return build(config.trainer, **arguments)

    train(method, recipe, pictures, trainer=trainer, run=run, checkpoint=None, config={}, label="benchmark")
    return _step(clock.ends)


def _step(ends: list[float]) -> float:
    return (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP)


if __name__ == "__main__":
    main()
