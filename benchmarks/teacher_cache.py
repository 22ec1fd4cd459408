"""What making teachers' pictures costs beside the networks' own work.

The three networks of conf/teacher/compact_trio (with random weights, which cost the same) and an aggregator,
dctswin_repaired_compact; photographs of scikit-image at x4, decoded before. Making: each picture read, enlarged,
rounded to 16 bits and written. Alone: the same networks on the same pictures, whole, which are on the device as floats.
They take turns, several times; the medians of their seconds, of the ratios and of the megabytes written a second are
printed and written to ``teacher_cache.json``, for members and aggregator.

    python benchmarks/teacher_cache.py [repeats]
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import DEVICE, arguments, config, publish, ratio, seconds
from mtkd_lightning.config import build
from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.evaluation import float32_convolutions, on_device
from mtkd_lightning.teachers.cache import Settings, TeacherCache
from mtkd_lightning.teachers.teacher import Ensemble

SCALE = 4
TRIO = "smfanet_plus", "lkdn", "dctlsa"


def main() -> None:
    """Measure, print and write."""
    (repeats,), _ = arguments(5)
    composed = config(
        "preset=cpu", "aggregator=dctswin_repaired_compact", *(f"+backbone@trio.{name}={name}" for name in TRIO)
    )
    members: dict[str, nn.Module] = {name: build(composed.trio[name]).to(DEVICE).eval() for name in TRIO}
    ensemble = Ensemble(dict.fromkeys(TRIO), build(composed.aggregator, members=len(TRIO))).to(DEVICE).eval()
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo_photographs(SCALE, folder).train
        pictures.prepare()
        lrs = [on_device(WholePictures(pictures)[index], DEVICE).lr for index in range(len(pictures))]
        turns = [_turn(pictures, lrs, members, ensemble) for _ in range(repeats)]
    megapixels = sum(SCALE**2 * lr.shape[-2] * lr.shape[-1] for lr in lrs) / 1e6
    found = {name: [turn[name] for turn in turns] for name in turns[0]}
    result = {
        what: {
            "making_seconds": round(statistics.median(found[what]), 3),
            "alone_seconds": round(statistics.median(found[f"{what} alone"]), 3),
            "ratio": round(ratio(found[what], found[f"{what} alone"]), 4),
            "written_mb_per_second": round(6 * megapixels * count / statistics.median(found[what]), 2),
        }
        for what, count in (("members", len(TRIO)), ("aggregator", 1))
    }
    publish(__file__, {"repeats": repeats, "megapixels": round(megapixels, 3), **result})


@torch.inference_mode()
def _turn(
    pictures: PairedImages, lrs: Sequence[Tensor], members: Mapping[str, nn.Module], ensemble: Ensemble
) -> dict[str, float]:
    files: list[list[Path]] = []
    made: list[list[Tensor]] = []
    with tempfile.TemporaryDirectory() as folder, float32_convolutions():

        def make(pictures: PairedImages, name: str, network: nn.Module) -> None:
            files.append(TeacherCache(Path(folder), Settings(), name).make(pictures, lambda: network, DEVICE, name))

        found = {"members": 0.0, "members alone": 0.0}
        for name, net in members.items():
            found["members"] += seconds(partial(make, pictures, name, net))
            found["members alone"] += seconds(lambda: made.append([net(lr) for lr in lrs]))  # noqa: B023
        kept = pictures.with_files(files)
        found["aggregator"] = seconds(lambda: make(kept, "merged", ensemble))
        found["aggregator alone"] = seconds(lambda: [ensemble.merge(images) for images in zip(*made, strict=True)])
    return found


if __name__ == "__main__":
    main()
