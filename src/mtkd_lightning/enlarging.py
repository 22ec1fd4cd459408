"""Enlarge photographs of any size in the memory at hand, from top to bottom."""

import math
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtkd_lightning.data.resize import upscale
from mtkd_lightning.inference import SelfEnsemble, Tiled
from mtkd_lightning.photographs import Levels, Photograph

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}
CPU_MEMORY = 2.8e9
"""Of the process at most, where that much is at hand: larger tiles are no faster on a CPU."""
PROCESS = 0.6e9
"""Of it Python, torch, the network and a decoder's working memory."""
LARGEST = {"cpu": 512, "cuda": 1024}
"""Side of a tile, above which the tiles' overlap costs next to nothing."""
SLACK = 1.3
"""What convolutions take beside the tensors that they make."""
SAMPLE = 64


class Enlarger:
    """A network that enlarges photographs in strips.

    Args:
        network: maps LR to SR.
        scale: of the network.
        device: where it runs.
        tile: side of the tiles in LR pixels; None to choose it by the memory at hand.
        overlap: of neighbouring tiles in LR pixels.
        precision: "32-true" or "bf16-mixed".
        self_ensemble: take the mean over the eight symmetries.

    Raises:
        MTKDError: an overlap that does not fit the tile.
    """

    def __init__(
        self,
        network: nn.Module,
        scale: int,
        device: torch.device,
        *,
        tile: int | None = None,
        overlap: int = 32,
        precision: str = "32-true",
        self_ensemble: bool = False,
    ) -> None:
        network.to(device).eval()
        self.scale = scale
        self.device = device
        self.tile = tile
        self.overlap = overlap
        self._network = _OfLevels(SelfEnsemble(network) if self_ensemble else network, PRECISIONS[precision])
        self._smallest = 2 * overlap + Tiled(network, scale, 10**9, overlap).grid
        self._per_pixel: float | None = None
        if tile is not None:
            Tiled(self._network, scale, tile, overlap)

    def strips(self, photograph: Photograph, held: int = 0, *, compare: bool = False) -> Iterator[Levels]:
        """Rows (n, scale * w, c) of the enlarged picture with its alpha, made ahead while those before are encoded.

        Grey pictures are enlarged as RGB, whose mean is taken; alpha is enlarged bicubically. To be closed.

        Args:
            photograph: what to enlarge.
            held: bytes that who takes the rows needs.
            compare: the picture enlarged bicubically to the left of it, thus rows (n, 2 * scale * w, c).
        """
        height, width, _ = photograph.pixels.shape
        tile = self.tile or self.choose_tile(height, width, held)
        self._network.stopped = False
        with ThreadPoolExecutor(1) as pool:
            made = self._made(photograph, tile, compare)
            try:
                coming = pool.submit(next, made, None)
                while (strip := coming.result()) is not None:
                    coming = pool.submit(next, made, None)
                    yield strip
            finally:
                self._network.stopped = True

    def choose_tile(self, height: int, width: int, held: int = 0) -> int:
        """Side of the largest useful tile for a picture, for which there is memory; the smallest if there is none.

        Args:
            height: of the picture in LR pixels.
            width: of the picture in LR pixels.
            held: bytes that are taken beside.
        """
        if self._per_pixel is None:
            self._per_pixel = SLACK * live_bytes(self._network, self.device) / SAMPLE**2
        # Rows of tiles: as they are added up, and as they come and go in 8 bits or, at most, 16.
        per_row = self.scale**2 * width * 3 * (4 + 2 + 2)
        picture = height * width * 3 * 2
        memory = at_hand(self.device)
        if self.device.type == "cpu":
            memory = min(memory / 2, CPU_MEMORY) - PROCESS - held - picture
        tile = (math.sqrt(per_row**2 + 4 * self._per_pixel * max(memory, 0)) - per_row) / (2 * self._per_pixel)
        side = min(int(tile), LARGEST[self.device.type], max(height, width) + 15) // 16 * 16
        return max(side, self._smallest)

    def _made(self, photograph: Photograph, tile: int, compare: bool) -> Iterator[Levels]:
        pixels = photograph.pixels
        peak = np.iinfo(pixels.dtype).max
        self._network.peak = float(peak)
        lr = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].to(self.device)
        bottom = 0
        for rows in Tiled(self._network, self.scale, tile, self.overlap).rows(lr):
            sr = rows[0].mean(0, keepdim=True) if pixels.shape[2] == 1 else rows[0]
            top, bottom = bottom, bottom + sr.shape[1]
            levels = torch.empty(*sr.shape[1:], len(sr), dtype=lr.dtype, device=lr.device)
            levels.copy_(sr.mul_(peak).round_().clamp_(0, peak).permute(1, 2, 0))
            strip = levels.cpu().numpy()
            if photograph.alpha is not None:
                strip = np.concatenate([strip, bicubic_rows(photograph.alpha, top, bottom, self.scale)], 2)
            if compare:
                beside = pixels if photograph.alpha is None else np.concatenate([pixels, photograph.alpha], 2)
                strip = np.concatenate([bicubic_rows(beside, top, bottom, self.scale), strip], 1)
            yield strip


class _OfLevels(nn.Module):
    """A network on pixels in whole levels up to ``peak``, grey or RGB; it can be stopped between tiles."""

    def __init__(self, network: nn.Module, precision: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self.precision = precision
        self.peak = 255.0
        self.stopped = False

    def forward(self, lr: Tensor) -> Tensor:
        if self.stopped:
            raise RuntimeError("stopped")
        x = (lr.float() / self.peak).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.precision, enabled=self.precision is not None):
            return self.network(x).float()


def bicubic_rows(pixels: Levels, top: int, bottom: int, scale: int) -> Levels:
    """Rows from ``top`` to ``bottom``, multiples of the scale, of the picture enlarged bicubically.

    In parts of a few rows, whose sums take 16 times the memory of the picture.
    """
    parts = []
    for first in range(top // scale, bottom // scale, 16):
        after = min(first + 16, bottom // scale)
        start = max(0, first - 3)  # the cubic reaches no further
        part = upscale(pixels[start : after + 3], scale)
        parts.append(part[scale * (first - start) : scale * (after - start)])
    return np.concatenate(parts)


@torch.no_grad()
def live_bytes(network: nn.Module, device: torch.device) -> int:
    """Most bytes of tensors that are alive at once while a network enlarges a picture of ``SAMPLE`` squared."""
    lr = torch.zeros(1, 3, SAMPLE, SAMPLE, dtype=torch.uint8, device=device)
    with _Live() as live:
        network(lr)
    return live.most


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = None
        size = storage.nbytes()
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self._now -= size


def at_hand(device: torch.device) -> float:
    """Bytes of memory that can be had on a device, by the system's word; plenty where it gives none."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, for later use
        return 0.8 * (torch.cuda.mem_get_info(device)[0] + kept)
    found = [math.inf]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        found.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))  # of a container
    except (OSError, ValueError):
        pass
    return min(found)
