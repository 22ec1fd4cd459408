"""What reading costs: samples a second of the data path over the same samples from PNG files decoded with Pillow.

Photographs of scikit-image at x4, LR patch 32, batch 16, one thread and no workers. Both cut the same patches, turned
alike, from the same pictures: ours from pictures decoded once, the other from LR and HR files (and one teacher's
picture where these are kept) that are decoded for every sample. They take turns, several times; the medians of their
samples a second and of the ratios are printed and written to ``data_path.json``.

    python benchmarks/data_path.py [repeats batches]
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import arguments, publish, ratio, with_kept
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.images import RGB, DeepRGB
from mtkd_lightning.data.paired import Pair, PairedImages
from mtkd_lightning.data.sources import demo_photographs

SCALE, LR_PATCH, BATCH = 4, 32, 16


class Decoded(PairedImages):
    """Pictures from their PNG files, decoded each time."""

    def __getitem__(self, index: int) -> tuple[RGB, RGB, str]:
        """Decode LR and HR."""
        pair = self.pairs[index]
        assert pair.lr is not None
        return _decode(pair.lr), _decode(pair.hr), pair.name

    def teacher_pictures(self, index: int) -> list[DeepRGB]:
        """Decode what teachers made."""
        return [_decode(path) for path in self.pairs[index].teachers]


def main() -> None:
    """Measure, print and write."""
    (repeats, batches), _ = arguments(9, 4)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pictures = _png_pictures(Path(folder))
        kept = with_kept(pictures, 1, Path(folder))
        variants = {
            "LR and HR": (pictures, Decoded(pictures.pairs, SCALE, pictures.store)),
            "LR, HR and a kept teacher's picture": (kept, _teacher_as_png(kept)),
        }
        result = {name: _compare(*both, repeats, batches) for name, both in variants.items()}
    publish(__file__, {"repeats": repeats, "batches": batches, "variants": result}, device="cpu")


def _png_pictures(folder: Path) -> PairedImages:
    photographs = demo_photographs(SCALE, folder).train
    pairs = []
    for lr, hr, name in (photographs[k] for k in range(len(photographs))):
        pair = Pair(name, folder / f"{name}.png", folder / f"{name}x{SCALE}.png")
        for picture, path in ((hr, pair.hr), (lr, pair.lr)):
            assert path is not None
            Image.fromarray(picture).save(path)
        pairs.append(pair)
    return PairedImages(pairs, SCALE, photographs.store)


def _teacher_as_png(pictures: PairedImages) -> Decoded:
    paths = []
    for index, pair in enumerate(pictures.pairs):
        (made,) = pictures.teacher_pictures(index)
        paths.append(pair.hr.with_name(f"{pair.name}-teacher.png"))
        Image.fromarray((made // 257 if made.dtype == np.uint16 else made).astype(np.uint8)).save(paths[-1])
    return Decoded(pictures.with_files([paths]).pairs, SCALE, pictures.store)


def _compare(ours: PairedImages, decoded: Decoded, repeats: int, batches: int) -> dict[str, float]:
    data = [TrainingBatches(pictures, batch_size=BATCH, lr_patch=LR_PATCH, seed=0) for pictures in (ours, decoded)]
    first, same = (batch[0] for batch in data)
    assert torch.equal(first.lr, same.lr)
    assert torch.equal(first.hr, same.hr)
    rates = []
    for repeat in range(repeats):
        steps = range(repeat * batches, (repeat + 1) * batches)
        # Ours is so much faster that it takes more of the same to be measured.
        rates.append((_rate(data[0], steps, 20), _rate(data[1], steps, 1)))
    fast, slow = zip(*rates, strict=True)
    return {
        "samples_per_second": round(statistics.median(fast)),
        "samples_per_second_png": round(statistics.median(slow)),
        "times_faster": round(ratio(fast, slow), 1),
    }


def _rate(data: TrainingBatches, steps: range, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        for step in steps:
            data[step]
    return times * len(steps) * BATCH / (time.perf_counter() - start)


def _decode(path: Path) -> RGB:
    with Image.open(path) as image:
        return np.asarray(image)


if __name__ == "__main__":
    main()
