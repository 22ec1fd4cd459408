"""What the paper preset's step reaches of the device's speed in bfloat16, and what bounds it.

EDSR-baseline student at x4, LR patch 32, batch 16, bf16 autocast, channels_last, 2 workers, photographs of
scikit-image: alone, and by MTKD with kept pictures (bicubic ones, for their content costs nothing), eager and compiled.
They take turns for some seconds each, three times; medians of all turns, and the ratio to the scratch step with the
range of the three, are printed and written to ``gpu.json``. Beside them:

* ``of_matmul_rate``: floating point operations a second of the step's convolutions, forward and backward, over those of
  a product of two large square matrices in bf16 on the same device.
* ``time_in``: what a step's time goes to, by torch.profiler: kinds of work, as shares of the step, and ``idle``, in
  which the device waits for the processor. The largest is what bounds the step.

Meant for a GPU. Without one the CPU is measured, whose idle time is that outside of torch's operators.

    python benchmarks/gpu.py [seconds of a measurement]
"""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from common import DEVICE, TURN, Loop, advance, arguments, compiles, config, in_turns, publish, summary, training
from mtkd_lightning.config import build
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.teachers.teacher import GivenPicture, Teacher
from steps import SCALE, distillation, merged

ON_GPU = DEVICE.type == "cuda"
WARM_UP = 3
EAGER = Loop(workers=2, bf16=True)
MODES = {"eager": EAGER} | ({"compiled": replace(EAGER, compiled=True)} if compiles() else {})


def main() -> None:
    """Measure, print and write."""
    (at_least,), _ = arguments(2)
    rate = _matmul_rate(8192 if ON_GPU else 1024, at_least)
    made = config("preset=paper", "student=paper/edsr", "method=mtkd")
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo_photographs(SCALE, folder).train
        kept = merged(pictures, 1, Path(folder) / "teachers")
        running = {}
        for mode, loop in MODES.items():
            running["scratch", mode] = training(Scratch(build(made.student)), pictures, loop)
            running["mtkd", mode] = training(distillation(made, Teacher(GivenPicture())), kept, loop)
        for each in running.values():
            advance(each, WARM_UP)
        work = _work(running["scratch", "eager"])
        turns = {key: partial(advance, each) for key, each in running.items()}
        measured = [in_turns(turns, 3, at_least * len(turns)) for _ in range(3)]
        found = {key: [each[key] for each in measured] for key in running}
        result = {}
        for (name, mode), timings in found.items():
            step = summary("scratch", timings, found["scratch", mode])
            time_in = _time_in(running[name, mode], step["seconds"])
            result[f"{name}, {mode}"] = step | {
                "images_per_second": round(EAGER.batch_size / step["seconds"], 1),
                "of_matmul_rate": round(work / step["seconds"] / rate, 4),
                "time_in": time_in,
                "bound_by": max(time_in, key=time_in.__getitem__),
            }
    rates = {"matmul_tflops": round(rate / 1e12, 3), "tflop_of_a_step": round(work / 1e12, 4)}
    publish(__file__, {**rates, "variants": result})


def _matmul_rate(side: int, at_least: float) -> float:
    """Floating point operations a second."""
    x, y = torch.randn(2, side, side, dtype=torch.bfloat16, device=DEVICE)
    timer = Timer("for _ in range(10): x @ y", globals={"x": x, "y": y}, num_threads=torch.get_num_threads())
    return 10 * 2 * side**3 / timer.blocked_autorange(min_run_time=at_least).median


def _work(running: Iterator[float]) -> int:
    """Floating point operations of a step; the student's alone, whatever the loss."""
    with FlopCounterMode(display=False) as counter:
        next(running)
    return counter.get_total_flops()


def _time_in(running: Iterator[float], step: float) -> dict[str, float]:
    """Shares of a step, by the operators that ask for the work."""
    steps = max(TURN, 5)
    with profile() as profiler:
        traced = advance(running, steps)
    events = profiler.key_averages()
    operators = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]

    def spent(events: list[Any], pattern: str = "") -> float:
        chosen = [event for event in events if re.match(pattern, event.key, re.IGNORECASE)]
        microseconds = sum(e.self_device_time_total if ON_GPU else e.self_cpu_time_total for e in chosen)
        # The profiler slows the processor, not the GPU.
        return microseconds / 1e6 / steps / (step if ON_GPU else traced.step)

    # Compiled element-wise kernels are named by all that they follow, convolutions for instance.
    convolutions, update = spent(operators, "(?!triton).*conv"), spent(operators, ".*(adam|foreach)")
    busy = spent(kernels if ON_GPU else operators)
    shares = {
        "convolutions": convolutions,
        "Adam and average": update,
        "element-wise and other": busy - convolutions - update,
        "idle": 1 - busy,
    }
    return {name: round(share, 4) for name, share in shares.items()}


if __name__ == "__main__":
    main()
