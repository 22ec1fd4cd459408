"""Memory against the number of pictures: it must not grow with it.

Pictures of 2040x1404 (photographs of scikit-image, tiled from an offset each) in a folder of BMP files, as a user would
have them. For each number of them, in fresh processes: the peak of anonymous memory (all but the pages of mapped files,
which the system drops when it needs them) while those not yet in the store are decoded, while 200 batches are cut (x4,
LR patch 32, batch 16), and, for the smallest number, the same with a kept teacher's picture beside each. With it the
seconds that a start takes which finds all of them decoded. Printed and written to ``memory.json``.

    python benchmarks/memory.py [number ...] [folder]

Numbers are 100 200 400 800 by default, the folder a temporary one; 800 take 14 GB of disk.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Memory, arguments, in_fresh_process, publish, tiled, with_kept
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs, folders
from mtkd_lightning.typing import floats

SCALE, LR_PATCH, BATCH, BATCHES = 4, 32, 16, 200
HEIGHT, WIDTH = 1404, 2040


def main() -> None:
    """Measure, print and write."""
    numbers, words = arguments()
    numbers = sorted(numbers or [100, 200, 400, 800])
    with tempfile.TemporaryDirectory(dir=words[0] if words else None) as name:
        folder = Path(name)
        picture = 3 * HEIGHT * WIDTH
        # A file and a decoded picture each, LR, and kept pictures of 16 bits.
        _need(folder, picture * (numbers[-1] * (2 + 1 / SCALE**2) + numbers[0] * 2))
        _write_pictures(folder, numbers[-1])
        result = {}
        for number in numbers:
            result[f"{number} pictures"] = {
                "decoding": in_fresh_process(_decode, folder, number),
                "batches": in_fresh_process(_cut, folder, number, False),
            }
        in_fresh_process(_keep, folder, numbers[0])
        result[f"{numbers[0]} pictures, one kept beside each"] = {
            "batches": in_fresh_process(_cut, folder, numbers[0], True)
        }
    publish(__file__, {"size": f"{WIDTH}x{HEIGHT}", "batches": BATCHES, "megabytes": result}, device="cpu")


def _need(folder: Path, wanted: float) -> None:
    free = shutil.disk_usage(folder).free
    sys.stderr.write(f"{wanted / 1e9:.1f} GB will be written to {folder}, which has {free / 1e9:.1f} GB free.\n")
    if wanted > free:
        raise SystemExit("Too little: give another folder, or smaller numbers of pictures.")


def _write_pictures(folder: Path, count: int) -> None:
    photographs = demo_photographs(SCALE, folder / "cache").train
    (folder / "data/validation").mkdir(parents=True)
    (folder / "data/train").mkdir()
    for k in range(count + 1):
        where = f"data/train/{k:04}.bmp" if k < count else "data/validation/0.bmp"
        tiled(photographs, k, HEIGHT, WIDTH).save(folder / where)


def _pictures(folder: Path, number: int) -> PairedImages:
    found = folders(folder / "data", SCALE, folder / "cache").train
    return PairedImages(found.pairs[:number], SCALE, found.store)


def _decode(folder: Path, number: int) -> dict[str, float]:
    with Memory() as memory:
        _pictures(folder, number).prepare()
    return memory.megabytes()


def _keep(folder: Path, number: int) -> None:
    with_kept(_pictures(folder, number), 1, folder / "teachers")


def _cut(folder: Path, number: int, kept: bool) -> dict[str, Any]:
    pictures = _pictures(folder, number)
    if kept:
        pictures = with_kept(pictures, 1, folder / "teachers")
    batches = TrainingBatches(pictures, batch_size=BATCH, lr_patch=LR_PATCH, seed=0)
    start = time.perf_counter()
    with Memory() as memory:
        batches.prepare()
        ready = time.perf_counter() - start
        for step in range(BATCHES):
            floats(batches[step])
    return memory.megabytes() | {"start_seconds": round(ready, 3)}


if __name__ == "__main__":
    main()
