"""What a step of stage 1 costs beside its aggregator's own work.

The step: a batch with kept pictures of three members, at x4, LR patch 32, batch 8 (preset=cpu), the L1 of what the
aggregator makes of them, backward, Adam. Beside it the aggregator's forward and backward alone, on members' pictures
that lie on the device as floats, with a gradient that is given, and Adam. They take turns step by step (on a GPU in
blocks of steps), a repeat is trainings of their own; the medians of their seconds and of the ratio, and the range of
the repeats' medians, are printed and written to ``stage1.json``.

    python benchmarks/stage1.py [repeats turns] [aggregator ...]

Aggregators are those of conf/aggregator: ``dctswin`` is the paper's, by default it is ``dctswin_repaired_compact``.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import DEVICE, Loop, adam, arguments, config, publish, summary, train_in_turns, training, with_kept
from mtkd_lightning.config import build
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.aggregation import Aggregation
from mtkd_lightning.teachers.teacher import Ensemble

SCALE, LR_PATCH, BATCH, MEMBERS = 4, 32, 8, 3
LOOP = Loop(BATCH, LR_PATCH, average=None)


def main() -> None:
    """Measure, print and write."""
    (repeats, turns), names = arguments(5, 8)
    with tempfile.TemporaryDirectory() as folder:
        pictures = with_kept(demo_photographs(SCALE, folder).train, MEMBERS, Path(folder) / "teachers")
        result = {name: _compare(name, pictures, repeats, turns) for name in names or ["dctswin_repaired_compact"]}
    publish(__file__, {"repeats": repeats, "turns": turns, "aggregators": result})


def _compare(name: str, pictures: PairedImages, repeats: int, turns: int) -> dict[str, Any]:
    variants = {
        "step": lambda: training(_stage1(_aggregator(name)), pictures, LOOP),
        "alone": lambda: _alone(_aggregator(name)),
    }
    found = train_in_turns(variants, repeats, turns)
    return {name: summary("alone", timings, found["alone"]) for name, timings in found.items()}


def _aggregator(name: str) -> nn.Module:
    made: nn.Module = build(config("preset=cpu", f"aggregator={name}").aggregator, members=MEMBERS)
    return made


def _stage1(aggregator: nn.Module) -> Aggregation:
    return Aggregation(Ensemble(dict.fromkeys("abc"), aggregator))


def _alone(aggregator: nn.Module) -> Iterator[float]:
    torch.manual_seed(0)
    side = SCALE * LR_PATCH
    pictures = torch.rand(BATCH, MEMBERS, 3, side, side, device=DEVICE)
    gradient = torch.full((BATCH, 3, side, side), 1 / (BATCH * 3 * side**2), device=DEVICE)  # of a mean
    aggregator.to(device=DEVICE, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = adam(list(aggregator.parameters()), LOOP.adam)
    while True:
        optimizer.zero_grad()
        aggregator(pictures).backward(gradient)
        optimizer.step()
        yield 0.0


if __name__ == "__main__":
    main()
