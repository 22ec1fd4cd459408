"""Where the time of a step goes: with the teachers run on every batch, and with their pictures kept.

The steps of `steps.py`; those that follow a first one are timed part by part, with the device waited for between parts.
Medians of their milliseconds are printed and written to ``step_profile.json``.

    python benchmarks/step_profile.py [steps with kept pictures] [steps online]
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from common import arguments, config, publish, synchronize, training
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.teacher import GivenPicture, Teacher
from steps import SCALE, distillation, merged, paper_teachers


def main() -> None:
    """Measure, print and write."""
    (of_kept, of_online), _ = arguments(5, 2)
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
                "online": _profile(distillation(made, Teacher(ensemble)), pictures, online, of_online),
                "kept": _profile(distillation(made, Teacher(GivenPicture())), kept, {}, of_kept),
            },
        )


def _profile(method: Method, pictures: PairedImages, networks: dict[str, nn.Module], steps: int) -> dict[str, float]:
    times: dict[str, float] = {}  # of the last beginning and end of each
    networks = networks | {"student, forward": method.student}
    for name, module in {**networks, "all forward": method}.items():
        module.register_forward_pre_hook(lambda *_, name=name: _mark(times, f"{name} begins"))
        module.register_forward_hook(lambda *_, name=name: _mark(times, f"{name} ends"))
    hook = register_optimizer_step_pre_hook(lambda *_: _mark(times, "update begins"))
    running = training(method, pictures)
    next(running)
    found = [_step(running, times, networks) for _ in range(steps)]
    hook.remove()
    return {name: round(1000 * statistics.median(step[name] for step in found), 1) for name in found[0]}


def _step(running: Iterator[float], times: dict[str, float], networks: Iterable[str]) -> dict[str, float]:
    """Seconds of the parts of a step, and of all of it."""
    _mark(times, "step begins")
    next(running)
    _mark(times, "step ends")
    forward = {name: times[f"{name} ends"] - times[f"{name} begins"] for name in networks}
    return {
        "the batch, as floats on the device": times["all forward begins"] - times["step begins"],
        **forward,
        "losses": times["all forward ends"] - times["all forward begins"] - sum(forward.values()),
        "student, backward": times["update begins"] - times["all forward ends"],
        "Adam and average": times["step ends"] - times["update begins"],
        "whole step": times["step ends"] - times["step begins"],
    }


def _mark(times: dict[str, float], name: str) -> None:
    synchronize()
    times[name] = time.perf_counter()


if __name__ == "__main__":
    main()
