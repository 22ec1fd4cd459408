"""What teachers make of whole pictures, made once and kept: afterwards a training step costs what the student costs.

Pictures of 16 (or 8) bits, one memory-mapped file each, in <cache>/teachers/<who made it>/<of which LR>.npy. They are
made of whole LR pictures, which give a teacher more context than a patch does, and clamped to 0..1.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import float32_convolutions, on_device
from mtkd_lightning.files import replacing
from mtkd_lightning.inference import SelfEnsemble, Tiled

log = logging.getLogger(__name__)

# Of how pictures are made: raised when the same network would give others.
VERSION = 2


@dataclass(frozen=True)
class Settings:
    """How teachers' pictures are made and kept.

    Args:
        bits: of a level, 16 or 8.
        self_ensemble: mean over the eight symmetries: better targets, the same under every augmentation as long as a
            picture fits into a tile, eight times the work.
        tile: side in LR pixels of what a network sees at once; larger pictures are cut.
        overlap: of tiles, in LR pixels.
    """

    bits: int = 16
    self_ensemble: bool = False
    tile: int = 512
    overlap: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise MTKDError(f"teacher.bits={self.bits}: pictures of teachers are kept in 16 bits or in 8")
        whole = isinstance(self.tile, int) and isinstance(self.overlap, int)
        if not whole or not 0 <= 2 * self.overlap < self.tile:
            raise MTKDError(
                f"teacher.tile={self.tile}, teacher.overlap={self.overlap}: both are whole numbers of pixels, the "
                "overlap from 0 to less than half the tile"
            )


class TeacherCache:
    """The pictures of one teacher or ensemble.

    Args:
        folder: of all teachers.
        settings: how pictures are made.
        made_by: what decides them beside the settings: hashes of weights, in order.
    """

    def __init__(self, folder: Path, settings: Settings, made_by: Any) -> None:
        self.settings = settings
        key = json.dumps([VERSION, asdict(settings), made_by], sort_keys=True)
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def files(self, pairs: PairedImages) -> list[Path]:
        """Where the picture of each LR picture is, or will be."""
        return [self.folder / f"{pairs.lr_digest(index)}.npy" for index in range(len(pairs))]

    def missing_bytes(self, pairs: PairedImages) -> int:
        """What the pictures that are not there yet will take."""
        missing = [index for index, file in enumerate(self.files(pairs)) if not file.exists()]
        sizes = pairs.prepare() if missing else []
        return sum(3 * math.prod(sizes[index]) * pairs.scale**2 * self.settings.bits // 8 for index in missing)

    def make(
        self,
        pairs: PairedImages,
        network: Callable[[], nn.Module],
        device: torch.device,
        label: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        """Make what is missing, each picture whole or not at all; give the files.

        Processes that make the same pictures at once, ranks or jobs of a sweep, share the work: each takes the next
        picture that no other holds. One that dies lets go of its picture.

        Args:
            pairs: LR pictures; with `teacher_sr` where the network merges those.
            network: builds what makes the pictures, only called where some are missing.
            device: where it runs.
            label: what the log calls it.
            progress: called with the number of pictures done and of all.

        Raises:
            MTKDError: there is too little space, said before anything is written.
        """
        files = self.files(pairs)
        if not (missing := [index for index, file in enumerate(files) if not file.exists()]):
            return files
        need_space(self.folder, wanted := self.missing_bytes(pairs), label)
        count = f"{len(missing)} pictures" if len(missing) > 1 else "a picture"
        log.info("%s: making %s, %.3g GB.", label, count, wanted / 1e9)
        net = self._whole(made := network(), pairs.scale).to(device).eval()
        merges = getattr(made, "takes_pictures", False)
        pictures = WholePictures(pairs)
        self._remove_leftovers()
        for wait in (False, True):  # first what is free, then what others have not finished or died over
            for done, index in enumerate(missing, start=1):
                if files[index].exists():
                    continue
                with _claim(files[index], wait) as claimed:
                    if not claimed or files[index].exists():
                        continue
                    batch = on_device(pictures[index], device)
                    self._write(files[index], net, batch.teacher_sr if merges else batch.lr)
                progress(done, len(missing))
        return files

    def _write(self, file: Path, network: nn.Module, images: Tensor | None) -> None:
        """Keep what a network makes of an LR picture (1, 3, h, w) or of its members' pictures (1, k, 3, H, W)."""
        assert images is not None
        with torch.inference_mode(), float32_convolutions():
            sr = network(images.flatten(1, -3))
        data = BytesIO()
        np.save(data, _levels(sr[0], self.settings.bits))
        with replacing(file) as temporary:
            temporary.write_bytes(data.getbuffer())

    def _remove_leftovers(self) -> None:
        """Delete what killed processes had half written: a temporary file whose picture nobody holds."""
        for left in self.folder.glob(".*.tmp"):
            with _claim(self.folder / left.name.removeprefix(".").split(".npy.")[0], wait=False) as free:
                if free:
                    left.unlink(missing_ok=True)

    def _whole(self, network: nn.Module, scale: int) -> nn.Module:
        """What takes whole pictures: members take LR, a merger the members' pictures, three channels each."""
        tile, overlap = self.settings.tile, self.settings.overlap
        if getattr(network, "takes_pictures", False):
            network, tile, overlap, scale = _Merger(network), tile * scale, overlap * scale, 1
            tile = max(tile, 2 * overlap + 2 * network.size_multiple)
        if self.settings.self_ensemble:
            network = SelfEnsemble(network)
        return Tiled(network, scale, tile, overlap)


def need_space(folder: Path, wanted: int, label: str) -> None:
    """Refuse to begin what will not fit.

    Raises:
        MTKDError: the disk has less than ``wanted`` bytes, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MTKDError(
            f"{folder} cannot be made ({error.strerror}): choose another place with paths.cache=..."
        ) from error
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise MTKDError(
            f"{label} need {wanted / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free. "
            "Free some, choose another disk with paths.cache=..., halve them with teacher.bits=8, or let the "
            "teachers run at every step with teacher.cache=false."
        )


@contextmanager
def _claim(file: Path, wait: bool) -> Iterator[bool]:
    """Hold the right to make a file, or say that another process has it."""
    lock = FileLock(file.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            yield False
            return
        log.info("Another process makes %s; waiting for it.", file)
        lock.acquire()
    try:
        yield True
    finally:
        # Who waits for the deleted file makes the picture a second time at worst, and finds it finished as a rule.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


class _Merger(nn.Module):
    """An ensemble whose members' pictures come side by side, (b, 3 k, H, W), as tiles and turns handle them."""

    def __init__(self, ensemble: Any) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.size_multiple: int = getattr(ensemble.aggregator, "size_multiple", 1)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3 k, H, W) to (b, 3, H, W)."""
        sr: Tensor = self.ensemble(images[:, :3], images.unflatten(1, (-1, 3)))
        return sr


def _levels(sr: Tensor, bits: int) -> np.ndarray[Any, Any]:
    top = 2**bits - 1
    levels = (sr.float().clamp(0, 1) * top).round().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(levels.astype(np.uint16 if bits == 16 else np.uint8))
