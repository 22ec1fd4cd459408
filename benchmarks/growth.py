"""How time, memory and disk grow: measured points, the lines through them, and what they say for large data sets.

A student's step (EDSR alone, x4) against its size, the batch and the patch; the making of teachers' pictures (SMFANet+)
against the number and the size of pictures and the number of members; each point in fresh processes of its own that
take turns, several times; medians, and least-squares lines through them. Then the speed of each teacher and aggregator
of teacher=compact_trio and teacher=paper. Printed and written to ``growth.json``.

    python benchmarks/growth.py [repeats]
    python benchmarks/growth.py arithmetic

The second prints, as Markdown, what ``growth.json`` and ``memory.json`` say for DF2K and for 10 million pictures.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arithmetic import table
from common import DEVICE, Loop, Memory, arguments, config, in_fresh_process, in_turns, publish, seconds, tiled, train
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.config import build
from mtkd_lightning.data.paired import PairedImages, find_pairs
from mtkd_lightning.data.sources import demo_photographs, picture_store
from mtkd_lightning.evaluation import float32_convolutions
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.metrics.complexity import flops
from mtkd_lightning.teachers.cache import Settings, TeacherCache

SCALE = 4
STEPS = 3


@dataclass(frozen=True)
class Step:
    """A student's training step."""

    features: int = 64
    blocks: int = 16
    batch: int = 16
    patch: int = 32

    def measure(self) -> dict[str, float]:
        """Seconds of a step and the peak of memory."""
        with tempfile.TemporaryDirectory() as folder, Memory() as memory:
            student = EDSR(SCALE, self.features, self.blocks)
            pictures = demo_photographs(SCALE, folder).train
            timing = train(Scratch(student), pictures, STEPS, Loop(self.batch, self.patch))
        return {"seconds": timing.step, **_peak(memory)}

    @property
    def gflop(self) -> float:
        """Of the student's forward on a batch."""
        return self.batch * flops(EDSR(SCALE, self.features, self.blocks), self.patch, self.patch) / 1e9


@dataclass(frozen=True)
class Making:
    """The making of teachers' pictures."""

    pictures: int = 2
    members: int = 1
    side: int = 512

    def measure(self) -> dict[str, float]:
        """Seconds, bytes on disk and the peak of memory."""
        member = SMFANetPlus(SCALE)
        files: list[Path] = []

        def make(folder: Path, pictures: PairedImages) -> None:
            for k in range(self.members):
                files.extend(TeacherCache(folder, Settings(), k).make(pictures, lambda: member, DEVICE, str(k)))

        with tempfile.TemporaryDirectory() as name:
            pictures = _squares(Path(name), self.pictures, self.side)
            with Memory() as memory:
                took = seconds(lambda: make(Path(name), pictures))
            return {"seconds": took, "disk_mb": sum(file.stat().st_size for file in files) / 1e6, **_peak(memory)}


LINES: dict[str, tuple[str, Callable[[Any], float], Sequence[Step | Making]]] = {
    "step, student": (
        "GFLOP of a batch's forward",
        lambda x: x.gflop,
        [Step(features, blocks) for features, blocks in ((32, 8), (48, 12), (64, 16), (64, 24), (96, 16))],
    ),
    "step, batch": ("patches", lambda x: x.batch, [Step(batch=batch) for batch in (4, 8, 16, 24, 32)]),
    "step, patch": ("LR pixels of a patch", lambda x: x.patch**2, [Step(patch=side) for side in (16, 24, 32, 40, 48)]),
    "making, pictures": ("pictures of 512x512", lambda x: x.pictures, [Making(count) for count in (2, 8, 16, 32)]),
    "making, members": ("members", lambda x: x.members, [Making(members=count) for count in (1, 2, 3, 4)]),
    "making, size": (
        "megapixels of a picture",
        lambda x: x.side**2 / 1e6,
        [Making(1, side=side) for side in (256, 512, 768, 1024)],
    ),
}
TEACHERS = {
    "compact_trio": (("smfanet_plus", "lkdn", "dctlsa"), "dctswin_repaired_compact"),
    "paper": (("edsr_large", "swinir_medium", "rcan"), "dctswin"),
}
RATE_SIDE = 96  # LR pixels of the picture that teachers' speed is measured on


def main() -> None:
    """Measure, print and write, or print the arithmetic."""
    (repeats,), words = arguments(3)
    if words == ["arithmetic"]:
        print(table(_read("growth"), _read("memory")))
        return
    points = dict.fromkeys(point for _, _, points in LINES.values() for point in points)
    turns = in_turns({point: partial(in_fresh_process, point.measure) for point in points}, repeats)
    found = {point: {key: statistics.median(x[key] for x in took) for key in took[0]} for point, took in turns.items()}
    publish(
        __file__,
        {
            "repeats": repeats,
            "unit": "GPU" if DEVICE.type == "cuda" else "core",
            "cores": 1 if DEVICE.type == "cuda" else torch.get_num_threads(),
            "lines": {name: _line(*line, found) for name, line in LINES.items()},
            "seconds_per_megapixel": {name: _rates(name, *networks) for name, networks in TEACHERS.items()},
        },
    )


def _line(unit: str, at: Callable[[Any], float], points: Sequence[Any], found: dict[Any, dict[str, float]]) -> Any:
    """The points, and for each thing that was measured the line through them."""
    x = [at(point) for point in points]
    return {
        "against": unit,
        "points": [{"x": round(at(point), 3), **{k: round(v, 4) for k, v in found[point].items()}} for point in points],
        "lines": {key: _fit(x, [found[point][key] for point in points]) for key in found[points[0]]},
    }


def _fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    per_unit, at_zero = np.polyfit(x, y, 1)
    off = np.abs(np.polyval((per_unit, at_zero), x) - y) / np.maximum(y, 1e-9)
    return {"at_zero": round(at_zero, 5), "per_unit": round(per_unit, 5), "largest_deviation": round(off.max(), 3)}


def _rates(teacher: str, names: Sequence[str], aggregator: str) -> dict[str, float]:
    """Seconds for a megapixel of output."""
    made = config("preset=cpu", f"aggregator={aggregator}", *(f"+backbone@rated.{name}={name}" for name in names))
    lr = torch.rand(1, 3, RATE_SIDE, RATE_SIDE, device=DEVICE).contiguous(memory_format=torch.channels_last)
    images = torch.rand(1, len(names), 3, SCALE * RATE_SIDE, SCALE * RATE_SIDE, device=DEVICE)
    rates = {name: _rate(build(made.rated[name]), lr) for name in names}
    return rates | {"aggregator": _rate(build(made.aggregator, members=len(names)), images)}


@torch.inference_mode()
def _rate(network: nn.Module, x: Tensor) -> float:
    with float32_convolutions():  # as kept pictures are made
        network.to(DEVICE).eval()(x)
        took = statistics.median(seconds(lambda: network(x)) for _ in range(3))
    return round(took / ((SCALE * RATE_SIDE) ** 2 / 1e6), 4)


def _squares(folder: Path, count: int, side: int) -> PairedImages:
    """Squares cut from photographs, decoded."""
    photographs = demo_photographs(SCALE, folder).train
    (folder / "squares").mkdir()
    for k in range(count):
        tiled(photographs, k, side, side).save(folder / f"squares/{k}.png")
    pictures = PairedImages(find_pairs(folder / "squares", None, SCALE), SCALE, picture_store(folder))
    pictures.prepare()
    return pictures


def _peak(memory: Memory) -> dict[str, float]:
    return {f"{name}_mb": value for name, value in memory.megabytes().items() if name in ("peak_anonymous", "peak_gpu")}


def _read(name: str) -> Any:
    path = Path(__file__).with_name(f"{name}.json")
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    main()
