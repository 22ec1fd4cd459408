"""What teachers make of whole pictures, made once and kept: afterwards a training step costs what the student costs.

Pictures of 16 (or 8) bits, one memory-mapped file each, in <cache>/teachers/<who made it>/<of which LR>.npy. They are
made of whole LR pictures, which give a teacher more context than a patch does, and clamped to 0..1.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import on_device
from mtkd_lightning.files import replacing
from mtkd_lightning.inference import SelfEnsemble, Tiled

log = logging.getLogger(__name__)

# Of how pictures are made: raised when the same network would give others.
VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How teachers' pictures are made and kept.

    Args:
        bits: of a level, 16 or 8.
        self_ensemble: mean over the eight symmetries: better targets, the same under every augmentation, eight times
            the work.
        tile: side in pixels of what a network sees at once; larger pictures are cut.
        overlap: of tiles, in the same pixels.
    """

    bits: int = 16
    self_ensemble: bool = False
    tile: int = 512
    overlap: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise MTKDError(f"teacher.bits={self.bits}: pictures of teachers are kept in 16 bits or in 8")


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

    def make(
        self,
        pairs: PairedImages,
        network: Callable[[], nn.Module],
        device: torch.device,
        label: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        """Make what is missing, each picture whole or not at all; give the files.

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
        sizes = pairs.prepare()
        pixels = sum(sizes[index][0] * sizes[index][1] for index in missing) * pairs.scale**2
        self._need(3 * pixels * self.settings.bits // 8, len(missing), label)
        net = self._whole(made := network(), pairs.scale).to(device).eval()
        merges = getattr(made, "takes_pictures", False)
        pictures = WholePictures(pairs)
        for done, index in enumerate(missing, start=1):
            batch = on_device(pictures[index], device)
            with torch.inference_mode():
                sr = net(batch.teacher_sr.flatten(1, 2) if merges and batch.teacher_sr is not None else batch.lr)
            data = BytesIO()
            np.save(data, _levels(sr[0], self.settings.bits))
            with replacing(files[index]) as temporary:
                temporary.write_bytes(data.getbuffer())
            progress(done, len(missing))
        return files

    def _whole(self, network: nn.Module, scale: int) -> nn.Module:
        """What takes whole pictures: members take LR, a merger the members' pictures, three channels each."""
        if getattr(network, "takes_pictures", False):
            network, scale = _Merger(network), 1
        if self.settings.self_ensemble:
            network = SelfEnsemble(network)
        return Tiled(network, scale, self.settings.tile, self.settings.overlap)

    def _need(self, wanted: int, pictures: int, label: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        count = f"{pictures} pictures" if pictures > 1 else "a picture"
        log.info("%s: making %s, %.3g GB (%.0f GB free).", label, count, wanted / 1e9, free / 1e9)
        if wanted > free:
            raise MTKDError(
                f"{label}: its pictures need {wanted / 1e9:.2f} GB, and {self.folder} has {free / 1e9:.2f} GB free. "
                "Free some, choose another disk with paths.cache=..., halve them with teacher.bits=8, or let the "
                "teachers run at every step with teacher.cache=false."
            )


class _Merger(nn.Module):
    """An ensemble whose members' pictures come side by side, (b, 3 k, H, W), as tiles and turns handle them."""

    def __init__(self, ensemble: nn.Module) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3 k, H, W) to (b, 3, H, W)."""
        sr: Tensor = self.ensemble(images[:, :3], images.unflatten(1, (-1, 3)))
        return sr


def _levels(sr: Tensor, bits: int) -> np.ndarray[Any, Any]:
    top = 2**bits - 1
    levels = (sr.float().clamp(0, 1) * top).round().permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(levels.astype(np.uint16 if bits == 16 else np.uint8))
