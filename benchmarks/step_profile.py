"""Where the time of a step goes: with the teachers run on every batch, and with their pictures kept.

The steps of `steps.py`; of each, one that follows a first one is timed part by part. Milliseconds are printed and
written to ``step_profile.json``.

    python benchmarks/step_profile.py
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

from common import config, publish, synchronize, train
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.teacher import GivenPicture, Teacher
from steps import SCALE, distillation, merged, paper_teachers


def main() -> None:
    """Measure, print and write."""
    made = config("preset=paper", "student=paper/edsr", "method=mtkd")
    ensemble = paper_teachers(made)
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo_photographs(SCALE, folder).train
        kept = merged(pictures, 3, Path(folder) / "teachers")
        online = {f"teacher {name}": member.net for name, member in ensemble.members.items() if member}
        online["aggregator"] = ensemble.aggregator
        publish(
            __file__,
            {
                "online": _profile(distillation(made, Teacher(ensemble)), pictures, online),
                "kept": _profile(distillation(made, Teacher(GivenPicture())), kept, {}),
            },
        )


def _profile(method: Method, pictures: PairedImages, networks: dict[str, nn.Module]) -> dict[str, float]:
    took: dict[str, float] = {}  # of the last call of each
    for name, module in {**networks, "student, forward": method.student, "all forward": method}.items():
        _take_time(name, module, took)
    timing = train(method, pictures, steps=1)
    forward = took.pop("all forward")
    parts = {
        "reading the batch": timing.step * timing.waiting,
        **took,
        "losses": forward - sum(took.values()),
        "backward, Adam and average": timing.step * (1 - timing.waiting) - forward,
        "whole step": timing.step,
    }
    return {name: round(1000 * seconds, 1) for name, seconds in parts.items()}


def _take_time(name: str, module: nn.Module, took: dict[str, float]) -> None:
    def begin(*_: Any) -> None:
        synchronize()
        took[name] = -time.perf_counter()

    def end(*_: Any) -> None:
        synchronize()
        took[name] += time.perf_counter()

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


if __name__ == "__main__":
    main()
