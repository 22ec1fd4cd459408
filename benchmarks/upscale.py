"""What enlarging a photograph costs beside the network's own work, and the memory that it takes.

The demo student (RCAN), EDSR-baseline and SwinIR-light (random weights, which cost the same) at x4, from a JPEG file to
a PNG, as ``python -m mtkd_lightning.upscale`` does it with the tile that it chooses for a picture of 24 megapixels. The
picture is a photograph of scikit-image, repeated. Each has a Python of its own.

Throughput, on a picture of the size given: seconds from file to file. Beside them the network alone on one tile, the
median of three before and three after. ``share`` is what the network alone would take for as many tiles, of the whole:
1 if reading, cutting, blending and encoding cost nothing. ``with_overlap`` is megapixels a second of the whole over
those of the network alone, so that what tiles share counts as lost.

Memory, always on 6000x4000: the peak of resident memory with everything as it is, but that the network enlarges the
first tiles alone and nearest neighbours the others. Each tile takes the same memory, and all of them take hours on a
CPU.

    python benchmarks/upscale.py [width height] [rcan_tiny|edsr_baseline|swinir_light ...] [jpg]
"""

import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import DEVICE, Memory, arguments, config, in_fresh_process, publish, seconds, tiled
from mtkd_lightning.config import build
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.enlarging import Enlarger
from mtkd_lightning.evaluation import float32_convolutions
from mtkd_lightning.inference import Tiled
from mtkd_lightning.photographs import read
from mtkd_lightning.writers import Sheet, held, write

SCALE = 4
NETWORKS = ("rcan_tiny", "edsr_baseline", "swinir_light")
LARGE = 6000, 4000
FEW = 2
"""Tiles that the network enlarges where memory is measured."""


class _First(nn.Module):
    """A network for the first tiles; the others are enlarged without."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.count = 0

    def forward(self, lr: Tensor) -> Tensor:
        self.count += 1
        return self.network(lr) if self.count <= FEW else F.interpolate(lr, scale_factor=SCALE)


def main() -> None:
    """Measure, print and write."""
    (width, height), words = arguments(1500, 1000)
    suffix = "jpg" if "jpg" in words else "png"
    names = [word for word in words if word in NETWORKS] or NETWORKS
    with tempfile.TemporaryDirectory() as folder:
        photographs = demo_photographs(SCALE, Path(folder) / "cache").train
        for name, (columns, rows) in {"picture": (width, height), "large": LARGE}.items():
            tiled(photographs, 0, rows, columns).save(Path(folder) / f"{name}.jpg", quality=95)
        result = {
            name: {
                "throughput": in_fresh_process(_throughput, name, Path(folder), suffix),
                "memory": in_fresh_process(_memory, name, Path(folder), suffix),
            }
            for name in names
        }
    publish(__file__, {"picture": f"{width}x{height}", "memory_on": "6000x4000", "to": suffix, "networks": result})


def _network(name: str) -> Any:
    return build(config("preset=cpu", f"+backbone@scored={name}").scored).to(DEVICE).eval()


def _enlarge(enlarger: Enlarger, source: Path, suffix: str) -> None:
    photograph = read(source, 200)
    height, width, channels = photograph.pixels.shape
    sheet = Sheet(SCALE * height, SCALE * width, channels, photograph, 95)
    with closing(enlarger.strips(photograph, held(sheet, suffix))) as strips:
        write(source.with_suffix(f".made.{suffix}"), suffix, sheet, strips)


@torch.no_grad()
def _throughput(name: str, folder: Path, suffix: str) -> dict[str, float]:
    network = _network(name)
    chosen = _chosen(network, suffix)
    enlarger = Enlarger(network, SCALE, DEVICE, tile=chosen)
    height, width, _ = read(folder / "picture.jpg", 200).pixels.shape
    lr = torch.rand(1, 3, min(chosen, height), min(chosen, width), device=DEVICE)
    lr = lr.contiguous(memory_format=torch.channels_last)
    cut = Tiled(network, SCALE, chosen, 32)
    tiles = len(list(cut._strips(height))) * len(list(cut._strips(width)))

    def alone() -> list[float]:
        return [seconds(lambda: network(lr)) for _ in range(3)]

    with float32_convolutions():
        network(lr)
        before = alone()
        start = time.perf_counter()
        _enlarge(enlarger, folder / "picture.jpg", suffix)
        whole = time.perf_counter() - start
        one = statistics.median(before + alone())
    megapixels = SCALE**2 * height * width / 1e6
    speed = SCALE**2 * lr.shape[-2] * lr.shape[-1] / 1e6 / one
    return {
        "tile": chosen,
        "tiles": tiles,
        "seconds": round(whole, 2),
        "megapixels_per_second": round(megapixels / whole, 4),
        "network_alone": round(speed, 4),
        "share": round(tiles * one / whole, 3),
        "with_overlap": round(megapixels / whole / speed, 3),
    }


def _chosen(network: nn.Module, suffix: str) -> int:
    width, height = LARGE
    whole = 4 * SCALE**2 * width * height if suffix == "jpg" else 0
    return Enlarger(network, SCALE, DEVICE).choose_tile(height, width, whole)


def _memory(name: str, folder: Path, suffix: str) -> dict[str, float]:
    network = _network(name)
    chosen = _chosen(network, suffix)
    with Memory() as memory:
        start = time.perf_counter()
        _enlarge(Enlarger(_First(network), SCALE, DEVICE, tile=chosen), folder / "large.jpg", suffix)
        took = time.perf_counter() - start
    return {"tile": chosen, "seconds": round(took, 1), **memory.megabytes()}


if __name__ == "__main__":
    main()
