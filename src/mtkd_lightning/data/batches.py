"""Batches for training, each a pure function of its step, and whole pictures for validation."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from mtkd_lightning.data.images import DeepRGB
from mtkd_lightning.data.paired import PairedImages, first, size
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.typing import SRBatch

# Streams of random numbers under one seed.
ORDER, CUTS = 0, 1


class TrainingBatches(Dataset[SRBatch]):
    """Batch `step`, from 0 without end: aligned patches, uint8 lr (b, 3, p, p) and hr (b, 3, s * p, s * p).

    Where teachers' pictures are there, they are cut alike: teacher_sr (b, k, 3, s * p, s * p).

    Item j of step k is item k * batch_size + j of an endless series of epochs, each a permutation of the
    pictures. All random numbers come from (seed, epoch) and (seed, step), so that a run can start at any
    step, on any number of workers. They are drawn for the global batch, of which a rank takes every
    `world_size`-th item: the ranks together see what one process sees. With `parts` above 1 index i is part
    i % parts of step i // parts: what a process goes through one after the other before it updates its weights.

    Args:
        pictures: where patches are cut.
        batch_size: of all ranks together.
        lr_patch: side p of an LR patch.
        seed: not negative.
        rank: of this process.
        world_size: number of processes.
        parts: of the batch of a process.
        augment: turn and mirror patches (the eight symmetries of the square, equally likely).
    """

    def __init__(
        self,
        pictures: PairedImages,
        *,
        batch_size: int,
        lr_patch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        parts: int = 1,
        augment: bool = True,
    ) -> None:
        if batch_size < 1 or lr_patch < 1 or seed < 0:
            raise MTKDError(
                f"got batch_size {batch_size}, lr_patch {lr_patch}, seed {seed}; "
                "the first two must be at least 1, the seed at least 0"
            )
        if batch_size % (world_size * parts):
            raise MTKDError(
                f"batch_size {batch_size} is that of all processes together and cannot be split among {world_size} "
                f"processes with {parts} parts each: use a multiple of {world_size * parts}"
            )
        if not 0 <= rank < world_size:
            raise MTKDError(f"got rank {rank} of {world_size} processes; ranks are 0 to {world_size - 1}")
        if len(pictures) == 0:
            raise MTKDError("there are no pictures to train on: check data.root")
        self.pictures = pictures
        self.batch_size = batch_size
        self.lr_patch = lr_patch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.parts = parts
        self.augment = augment

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode all pictures and check that they are large enough; cheap when they are decoded already.

        Raises:
            MTKDError: a picture cannot be used; every picture that is too small is counted.
        """
        sizes = self.pictures.prepare(progress)
        small = [
            f"{pair.hr} (LR {height}x{width})"
            for pair, (height, width) in zip(self.pictures.pairs, sizes, strict=True)
            if min(height, width) < self.lr_patch
        ]
        if small:
            raise self._too_small(small)

    def __getitem__(self, index: int) -> SRBatch:
        step, part = divmod(index, self.parts)
        random = np.random.default_rng((self.seed, CUTS, step))
        corners = random.random((self.batch_size, 2))
        symmetries = random.integers(8, size=self.batch_size)
        items = range(self.rank + part * self.world_size, self.batch_size, self.world_size * self.parts)
        patch, scale = self.lr_patch, self.pictures.scale
        lr = np.empty((len(items), 3, patch, patch), np.uint8)
        hr = np.empty((len(items), 3, scale * patch, scale * patch), np.uint8)
        names, teacher_sr = [], []
        for row, item in enumerate(items):
            picture = self._picture(step * self.batch_size + item)
            whole_lr, whole_hr, name = self.pictures[picture]
            room = np.subtract(whole_lr.shape[:2], patch) + 1
            if room.min() < 1:
                raise self._too_small([f"{name} (LR {size(whole_lr)})"])
            top, left = (int(corner) for corner in corners[item] * room)
            symmetry = int(symmetries[item]) if self.augment else 0
            lr[row] = _patch(whole_lr, top, left, patch, symmetry)
            corner = scale * top, scale * left, scale * patch, symmetry
            hr[row] = _patch(whole_hr, *corner)
            names.append(name)
            teacher_sr.append([_patch(whole, *corner) for whole in self.pictures.teacher_pictures(picture)])
        return SRBatch(torch.from_numpy(lr), torch.from_numpy(hr), names, _stack(teacher_sr))

    def _picture(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.pictures))
        return int(_order(self.seed, epoch, len(self.pictures))[offset])

    def _too_small(self, small: list[str]) -> MTKDError:
        return MTKDError(
            f"lr_patch is {self.lr_patch}, larger than the LR of {len(small)} of {len(self.pictures)} "
            f"training pictures: {first(small)}. Use a smaller lr_patch or remove these pictures."
        )


class StepSampler(Sampler[int]):
    """The steps from `start` up to, not including, `stop`."""

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return len(range(self.start, self.stop))


class WholePictures(Dataset[SRBatch]):
    """One whole picture an item: uint8 lr (1, 3, h, w), hr (1, 3, scale * h, scale * w), one name."""

    def __init__(self, pictures: PairedImages) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> SRBatch:
        lr, hr, name = self.pictures[index]
        # A copy: tensors must not share a read-only map.
        lr, hr = (np.array(image.transpose(2, 0, 1)[None], order="C") for image in (lr, hr))
        teacher_sr = [image.transpose(2, 0, 1) for image in self.pictures.teacher_pictures(index)]
        return SRBatch(torch.from_numpy(lr), torch.from_numpy(hr), [name], _stack([teacher_sr]))


def _stack(pictures: list[list[DeepRGB]]) -> torch.Tensor | None:
    """(3, H, W) each, a list a sample, to (b, k, 3, H, W); None where there are none. 16 bits if one has them."""
    if not any(pictures):
        return None
    deep = any(x.dtype == np.uint16 for sample in pictures for x in sample)
    levels = [[x.astype(np.uint16) * 257 if deep and x.dtype == np.uint8 else x for x in sample] for sample in pictures]
    return torch.from_numpy(np.array(levels))


def _patch(image: DeepRGB, top: int, left: int, side: int, symmetry: int) -> DeepRGB:
    """View a square as (3, side, side), mirrored in x (bit 0) and y (bit 1), transposed (bit 2)."""
    patch = image[top : top + side, left : left + side].transpose(2, 0, 1)
    patch = patch[:, :: -1 if symmetry & 2 else 1, :: -1 if symmetry & 1 else 1]
    return patch.transpose(0, 2, 1) if symmetry & 4 else patch


@lru_cache(maxsize=16)
def _order(seed: int, epoch: int, pictures: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, ORDER, epoch)).permutation(pictures)
