"""Windows of a few benchmark pictures, as every network made them, kept so that a report can show them side by side."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import nn

from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.images import RGB
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.evaluation import enlarge_all, on_device
from mtkd_lightning.files import replacing
from mtkd_lightning.metrics.functional import quantize
from mtkd_lightning.report.windows import densest, encoded

SIDE = 256  # of a window at most, in HR pixels

Chosen = Sequence[tuple[str, int]]


def chosen(benchmarks: Mapping[str, PairedImages], most: int) -> Chosen:
    """The first picture of each benchmark, then the second of each, and so on."""
    return [(name, i) for i in range(most) for name, pairs in benchmarks.items() if i < len(pairs)][:most]


def records(benchmarks: Mapping[str, PairedImages], asked: Chosen) -> list[dict[str, Any]]:
    """What a run says of the pictures that it keeps."""
    return [
        {
            "benchmark": name,
            "image": benchmarks[name].pairs[i].name,
            "window": list(window(benchmarks[name][i][1], benchmarks[name].scale)),
        }
        for name, i in asked
    ]


def window(hr: RGB, scale: int, side: int = SIDE) -> tuple[int, int, int, int]:
    """Top, left, height and width of the most detailed part of a picture, the same for every network.

    They are multiples of the scale, height and width of twice the scale, for LR and for a wavelet's bands.
    """
    grey = hr.astype(np.float64).mean(2)
    detail = np.zeros_like(grey)
    detail[1:, 1:] = np.diff(grey, axis=0)[:, 1:] ** 2 + np.diff(grey, axis=1)[1:] ** 2
    height, width = (min(side, length) // (2 * scale) * 2 * scale for length in grey.shape)
    return *densest(detail, height, width, scale), height, width


def keep(
    networks: Mapping[str, nn.Module],
    benchmarks: Mapping[str, PairedImages],
    asked: Chosen,
    folder: Path,
    device: torch.device,
    *,
    given: bool = False,
) -> None:
    """Write every network's window, lossless, as ``<benchmark>/<image>/<network>.webp``; names are quoted as in a URL.

    Args:
        networks: name -> network from LR to SR; one that takes teachers' pictures is left out where there are none.
        benchmarks: name -> pictures.
        asked: which of them; those that are complete are left alone.
        folder: where.
        device: where the networks run.
        given: also write the ground truth, ``HR.webp``, and ``LR.webp``.
    """
    for network in networks.values():
        network.to(device).eval()
    for name, i in asked:
        pairs = benchmarks[name]
        lr, hr, image = pairs[i]
        place = folder / quote(name, "") / quote(image, "")
        if given and (place / "HR.webp").exists():  # written last
            continue
        top, left, height, width = window(hr, pairs.scale)
        for network_name, sr, _ in enlarge_all(networks, on_device(WholePictures(pairs)[i], device)):
            if sr is not None:
                cut = quantize(sr[0, :, top : top + height, left : left + width]).to(torch.uint8)
                _write(place / f"{quote(network_name, ' ')}.webp", cut.permute(1, 2, 0).cpu().numpy())
        if given:
            small = slice(top // pairs.scale, (top + height) // pairs.scale)
            _write(place / "LR.webp", lr[small, left // pairs.scale : (left + width) // pairs.scale])
            _write(place / "HR.webp", hr[top : top + height, left : left + width])


def link(source: Path, folder: Path) -> None:
    """Put the files under ``source`` beside those of ``folder``, without a copy where the disk has hard links."""
    for path in source.rglob("*.webp"):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copy(path, temporary)


def remove(folder: Path) -> None:
    """Remove what an earlier evaluation kept."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _write(path: Path, picture: RGB) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(encoded(picture))
