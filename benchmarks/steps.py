"""What a step of distillation costs beside a step of training the student alone, and where the rest goes.

EDSR-baseline student at x4, LR patch 32, batch 16, Adam, photographs of scikit-image; the variants take turns, and
the medians of their ratios to the scratch step are printed and written to ``steps.json``. Kept pictures are
bicubic ones (their content costs nothing); ``online`` runs the paper's three teachers, random weights, on every batch.

    python benchmarks/steps.py [repeats steps] [online]
"""

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import nn

from mtkd_lightning.config import CONF, build
from mtkd_lightning.data.batches import StepSampler, TrainingBatches
from mtkd_lightning.data.sources import Pictures, demo_photographs
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.methods.base import Method
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.cache import Settings, TeacherCache
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.typing import floats

SCALE, LR_PATCH, BATCH = 4, 32, 16
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_UP = 1


def main() -> None:
    """Measure, print and write."""
    numbers = [int(x) for x in sys.argv[1:] if x.isdigit()]
    repeats, steps = numbers if len(numbers) == 2 else (5, 6)
    with initialize_config_dir(str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = compose("config", ["preset=paper", "student=paper/edsr", "method=mtkd", "data.root=unused"])
        config.name = "steps"
        pictures = demo_photographs(SCALE, folder)
        variants: dict[str, Callable[[], tuple[Method, Pictures]]] = {
            "scratch": lambda: (Scratch(build(config.student)), pictures)
        }
        for count in (1, 2, 3, 4):
            kept = _kept(pictures, count, Path(folder) / "teachers")
            variants[f"mtkd, kept pictures of {count}"] = lambda kept=kept: (
                build(config.method, student=build(config.student), teacher=Teacher(GivenPicture())),
                kept,
            )
        if "online" in sys.argv:
            variants["mtkd, the paper's three teachers online"] = lambda: (_online(config), pictures)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        waits: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(repeats):
            for name, make in variants.items():
                step, wait = _run(*make(), steps=2 if "online" in name else steps)
                seconds[name].append(step)
                waits[name].append(wait)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "repeats": repeats,
        "steps": steps,
        "variants": {
            name: {
                "seconds": round(statistics.median(found), 4),
                "over_scratch": round(
                    statistics.median(a / b for a, b in zip(found, seconds["scratch"], strict=True)), 4
                ),
                "waiting_for_data": round(statistics.median(waits[name]), 4),
            }
            for name, found in seconds.items()
        },
    }
    print(json.dumps(result, indent=1))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def _kept(pictures: Pictures, count: int, folder: Path) -> Pictures:
    train, bicubic = pictures.train, Bicubic(SCALE)
    members = [TeacherCache(folder, Settings(), k).make(train, lambda: bicubic, DEVICE, str(k)) for k in range(count)]
    merger = Ensemble(dict.fromkeys(map(str, range(count))), Mean(SCALE, count))
    merged = TeacherCache(folder, Settings(), f"mean {count}").make(
        train.with_files(members), lambda: merger, DEVICE, "mean"
    )
    return replace(pictures, train=train.with_files([merged]))


def _online(config: Any) -> Method:
    members = {name: Teacher(build(node.backbone)) for name, node in config.teacher.members.items()}
    ensemble = Ensemble(members, build(config.aggregator, members=len(members)))
    method: Method = build(config.method, student=build(config.student), teacher=Teacher(ensemble))
    return method


def _run(method: Method, pictures: Pictures, steps: int) -> tuple[float, float]:
    """Seconds of a step, and the share of it that is spent on getting the batch."""
    torch.manual_seed(0)
    batches = TrainingBatches(pictures.train, batch_size=BATCH, lr_patch=LR_PATCH, seed=0)
    loader = iter(torch.utils.data.DataLoader(batches, batch_size=None, sampler=StepSampler(0, steps + WARM_UP)))
    network: nn.Module = method.to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=DEVICE.type == "cuda")
    waited, start = 0.0, 0.0
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            waited, start = 0.0, time.perf_counter()
        before = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - before
        batch = floats(batch._replace(**{k: v.to(DEVICE) for k, v in batch._asdict().items() if torch.is_tensor(v)}))
        optimizer.zero_grad()
        torch.stack(list(method(batch).values())).sum().backward()
        optimizer.step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    total = time.perf_counter() - start
    return total / steps, waited / total


if __name__ == "__main__":
    main()
