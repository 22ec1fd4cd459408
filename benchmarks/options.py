"""What each option of a training step is worth: on against off, one at a time from the defaults.

A student is trained alone on photographs of scikit-image at x4, LR patch 32, batch 16. The defaults: float32,
channels_last, fused Adam, an average of the weights moved by one call for all tensors, no compilation, no workers, the
batch in one part. The variants take turns step by step (on a GPU in blocks of steps), a repeat is trainings of their
own; the medians of their seconds a step and of the ratios to the default, and the range of the repeats' medians, are
printed and written to ``options.json``, also those of the update alone for Adam and the average, which are a small part
of a step. Seconds that compilation takes (in the first repeat; the others find its files) are apart.

    python benchmarks/options.py [repeats turns] [student ...]

Students are those of conf/student: by default paper/edsr (EDSR-baseline) and demo/edsr, of 32 features and 8 blocks.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from common import (
    DEVICE,
    Loop,
    Timings,
    adam,
    arguments,
    compiles,
    config,
    in_turns,
    move,
    publish,
    seconds,
    summary,
    train_in_turns,
    training,
)
from mtkd_lightning.config import build
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.scratch import Scratch

SCALE = 4
DEFAULT = Loop()
OPTIONS = {
    "channels_last off": replace(DEFAULT, channels_last=False),
    "bf16 autocast": replace(DEFAULT, bf16=True),
    "bf16 autocast, channels_last off": replace(DEFAULT, bf16=True, channels_last=False),
    "foreach Adam": replace(DEFAULT, adam="foreach"),
    "for-loop Adam": replace(DEFAULT, adam="for-loop"),
    "average by a for-loop": replace(DEFAULT, average="for-loop"),
    "no average": replace(DEFAULT, average=None),
    "2 workers": replace(DEFAULT, workers=2),
    "batch in 2 parts": replace(DEFAULT, parts=2),
    "batch in 4 parts": replace(DEFAULT, parts=4),
}
COMPILED = {
    "compiled": replace(DEFAULT, compiled=True),
    "compiled, bf16 autocast": replace(DEFAULT, compiled=True, bf16=True),
}


def main() -> None:
    """Measure, print and write."""
    (repeats, turns), students = arguments(5, 5)
    loops = {"default": DEFAULT, **OPTIONS, **(COMPILED if compiles() else {})}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # empty, so that the first compilation is a whole one
        pictures = demo_photographs(SCALE, folder).train
        result = {
            name: _measure(config("preset=cpu", f"student={name}").student, pictures, loops, repeats, turns)
            for name in students or ("paper/edsr", "demo/edsr")
        }
    publish(
        __file__,
        {
            "repeats": repeats,
            "turns": turns,
            "compiler": "there" if compiles() else "no compiler",
            "students": result,
        },
    )


def _measure(student: Any, pictures: PairedImages, loops: dict[str, Loop], repeats: int, turns: int) -> dict[str, Any]:
    def start(loop: Loop) -> Iterator[float]:
        return training(Scratch(build(student)), pictures, loop)

    found = train_in_turns({name: partial(start, loop) for name, loop in loops.items()}, repeats, turns, warm_up=2)
    return {
        "variants": {name: _summary(timings, found["default"], loops[name]) for name, timings in found.items()},
        "update_ms": _updates(student, repeats),
    }


def _summary(timings: Timings, default: Timings, loop: Loop) -> dict[str, Any]:
    found = summary("default", timings, default)
    found["samples_per_second"] = round(loop.batch_size / found["seconds"], 1)
    return found | ({"warm_up_seconds": round(timings[0][0].warm_up, 1)} if loop.compiled else {})


def _updates(student: Any, repeats: int) -> dict[str, float]:
    """Milliseconds of one update by each kind of Adam and of average."""
    weights: list[Tensor] = list(build(student).to(DEVICE).parameters())
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    average = [weight.detach().clone() for weight in weights]
    updates: dict[str, Callable[[], object]] = {
        f"{kind} Adam": adam(weights, kind).step for kind in ("fused", "foreach", "for-loop")
    }
    updates |= {f"average by {kind}": partial(move, average, weights, kind) for kind in ("foreach", "for-loop")}

    def run(update: Callable[[], object]) -> float:
        update()
        return seconds(lambda: [update() for _ in range(20)]) / 20

    found = in_turns({name: partial(run, update) for name, update in updates.items()}, repeats)
    return {name: round(1000 * statistics.median(x), 3) for name, x in found.items()}


if __name__ == "__main__":
    main()
