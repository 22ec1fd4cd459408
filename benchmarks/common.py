"""What the benchmarks share: turns and medians, a training loop in plain PyTorch, memory, and where results go."""

import itertools
import json
import multiprocessing
import os
import platform
import re
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mtkd_lightning.config import CONF
from mtkd_lightning.data.batches import StepSampler, TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.cache import Settings, TeacherCache
from mtkd_lightning.typing import SRBatch, floats

K = TypeVar("K")
T = TypeVar("T")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TURN = 20 if DEVICE.type == "cuda" else 1
"""Steps of a turn. One on a CPU, whose speed changes within seconds. On a GPU several, for the device is waited for at
the ends of a turn: around every step, that would hide whether a training keeps the device busy."""


def arguments(*defaults: int) -> tuple[list[int], list[str]]:
    """Whole numbers of the command line, those that are left out by default, and its words."""
    numbers = [int(x) for x in sys.argv[1:] if x.isdigit()]
    return [*numbers, *defaults[len(numbers) :]], [x for x in sys.argv[1:] if not x.isdigit()]


def config(*overrides: str) -> Any:
    """A configuration without data; ``+backbone@<key>=<name>`` adds a network of conf/backbone."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["data.root=unused", *overrides])


def in_turns(variants: Mapping[K, Callable[[], T]], repeats: int, at_least: float = 0.0) -> dict[K, list[T]]:
    """Call one after the other, several times and until so many seconds have passed."""
    found: dict[K, list[T]] = {name: [] for name in variants}
    start = time.perf_counter()
    while repeats > 0 or time.perf_counter() - start < at_least:
        for name, run in variants.items():
            found[name].append(run())
        repeats -= 1
    return found


def ratio(found: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios of each repeat."""
    return statistics.median(a / b for a, b in zip(found, base, strict=True))


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call, with what it leaves to the device."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def compiles() -> bool:
    """Whether `torch.compile` finds what it needs."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))


def publish(script: str, result: Mapping[str, Any], device: str = DEVICE.type) -> None:
    """Print what was measured on the device, and write it beside the script."""
    text = json.dumps({"machine": machine(device), **result}, indent=1)
    print(text)
    Path(script).with_suffix(".json").write_text(text + "\n")


def machine(device: str) -> str:
    """What decides figures, but for the processor's name."""
    name = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {name}" if device == "cuda" else name


def with_kept(pictures: PairedImages, count: int, folder: Path) -> PairedImages:
    """The pictures with those of ``count`` teachers beside; bicubic ones, for their content costs nothing."""
    bicubic = Bicubic(pictures.scale)
    made = [TeacherCache(folder, Settings(), k).make(pictures, lambda: bicubic, DEVICE, str(k)) for k in range(count)]
    return pictures.with_files(made)


def tiled(photographs: PairedImages, k: int, height: int, width: int) -> Image.Image:
    """Picture number ``k`` of a size: a photograph repeated, each number from another offset."""
    _, hr, _ = photographs[k % len(photographs)]
    repeats = -(-height // hr.shape[0]), -(-width // hr.shape[1]), 1
    return Image.fromarray(np.tile(np.roll(hr, (37 * k, 53 * k), (0, 1)), repeats)[:height, :width])


@dataclass(frozen=True)
class Loop:
    """A training loop's options; the defaults are the framework's."""

    batch_size: int = 16
    lr_patch: int = 32
    workers: int = 0
    channels_last: bool = True
    bf16: bool = False
    adam: str = "fused"  # or foreach, or for-loop
    average: str | None = "foreach"  # or for-loop; of the weights, with decay 0.999
    compiled: bool = False
    parts: int = 1  # in which a batch goes through the networks, one after the other


class Timing(NamedTuple):
    """Seconds of a step, the share of them until the batch is there, and seconds of all steps that do not count."""

    step: float
    waiting: float
    warm_up: float = 0.0


Timings = list[list[Timing]]  # of each repeat, its turns


def training(method: Method, pictures: PairedImages, loop: Loop = Loop()) -> Iterator[float]:
    """Train in plain PyTorch: each `next` makes a step, and gives the seconds until its batch was there."""
    torch.manual_seed(0)
    layout = torch.channels_last if loop.channels_last else torch.contiguous_format
    method.to(device=DEVICE, memory_format=layout).train()  # type: ignore[call-overload]
    if loop.compiled:
        method.student.compile()
    loader: DataLoader[SRBatch] = DataLoader(
        TrainingBatches(pictures, batch_size=loop.batch_size, lr_patch=loop.lr_patch, seed=0),
        batch_size=None,
        sampler=StepSampler(0, sys.maxsize),
        num_workers=loop.workers,
        pin_memory=DEVICE.type == "cuda",
    )
    weights: list[Tensor] = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = adam(weights, loop.adam)
    average = [weight.detach().clone() for weight in weights]
    before = time.perf_counter()
    for batch in loader:
        waited = time.perf_counter() - before
        optimizer.zero_grad()
        for part in parts(batch, loop):
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=loop.bf16):
                terms = method(part)
            (torch.stack(list(terms.values())).sum() / loop.parts).backward()
        optimizer.step()
        if loop.average is not None:
            move(average, weights, loop.average)
        yield waited
        before = time.perf_counter()


def advance(running: Iterator[float], steps: int = TURN) -> Timing:
    """Go on with a training. On a GPU the share of waiting is an upper bound: it is still busy meanwhile."""
    waited: list[float] = []
    took = seconds(lambda: waited.extend(itertools.islice(running, steps)))
    return Timing(took / steps, sum(waited) / took)


def train(method: Method, pictures: PairedImages, steps: int, loop: Loop = Loop()) -> Timing:
    """Steps of a training that follow a first one."""
    running = training(method, pictures, loop)
    next(running)
    return advance(running, steps)


def train_in_turns(
    variants: Mapping[K, Callable[[], Iterator[float]]], repeats: int, turns: int, warm_up: int = 1
) -> dict[K, Timings]:
    """Let trainings take turns, so that whatever else the machine does meets all alike; each repeat starts anew.

    While others have their turn, workers make no more than the few batches that they keep ready.
    """
    found: dict[K, Timings] = {name: [] for name in variants}
    for _ in range(repeats):
        torch.compiler.reset()
        running = {name: start() for name, start in variants.items()}
        before = {name: seconds(partial(advance, each, warm_up)) for name, each in running.items()}
        for name, took in in_turns({name: partial(advance, each) for name, each in running.items()}, turns).items():
            found[name].append([timing._replace(warm_up=before[name]) for timing in took])
    return found


def over(name: str, found: Timings, base: Timings) -> dict[str, Any]:
    """A step over one of the base in the same round: the median of the repeats' medians, and their range."""
    ratios = [ratio(*([timing.step for timing in turns] for turns in both)) for both in zip(found, base, strict=True)]
    return {
        f"over_{name}": round(statistics.median(ratios), 4),
        f"over_{name}_range": [round(min(ratios), 4), round(max(ratios), 4)],
    }


def summary(name: str, found: Timings, base: Timings) -> dict[str, Any]:
    """Medians of all turns, and the ratio to the base, which is called ``name``."""
    return {
        "seconds": round(statistics.median(timing.step for timing in itertools.chain(*found)), 4),
        "waiting_for_data": round(statistics.median(timing.waiting for timing in itertools.chain(*found)), 4),
        **over(name, found, base),
    }


def adam(weights: list[Tensor], kind: str) -> torch.optim.Adam:
    """Adam in one of its three implementations."""
    return torch.optim.Adam(weights, lr=1e-4, fused=kind == "fused", foreach=kind == "foreach")


@torch.no_grad()
def move(average: list[Tensor], weights: list[Tensor], kind: str) -> None:
    """Move the average of the weights towards them."""
    if kind == "foreach":
        torch._foreach_lerp_(average, weights, 1e-3)
    else:
        for mean, weight in zip(average, weights, strict=True):
            mean.lerp_(weight, 1e-3)


def parts(batch: SRBatch, loop: Loop) -> Iterator[SRBatch]:
    """The parts of a batch, on the device as floats."""
    size = loop.batch_size // loop.parts
    for first in range(0, loop.batch_size, size):
        lr, hr, teacher_sr = (
            None if x is None else x[first : first + size].to(DEVICE, non_blocking=True)
            for x in (batch.lr, batch.hr, batch.teacher_sr)
        )
        assert lr is not None
        assert hr is not None
        if loop.channels_last:
            yield floats(SRBatch(lr, hr, batch.name, teacher_sr))
        else:
            yield SRBatch(lr.float() / 255, hr.float() / 255, batch.name, teacher_sr)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a Python of its own, whose memory nothing else has used."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Memory:
    """Samples what memory the process takes while this is entered; Linux alone says it.

    Anonymous memory is all but the pages of mapped files, which the system can drop.
    """

    def __enter__(self) -> Self:
        self._before = self._peak = _status("RssAnon")
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._left.wait(0.002):
            self._peak = max(self._peak, _status("RssAnon"))

    def megabytes(self) -> dict[str, float]:
        """Anonymous memory before and its peak; peaks of all resident pages since the start and of a GPU's memory."""
        found = {"before": self._before, "peak_anonymous": self._peak, "peak_resident": _status("VmHWM")}
        if DEVICE.type == "cuda":
            found["peak_gpu"] = torch.cuda.max_memory_allocated()
        return {name: round(value / 1e6, 1) for name, value in found.items()}


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {key}: memory is measured on Linux alone")
    return 1024 * int(found[1])
