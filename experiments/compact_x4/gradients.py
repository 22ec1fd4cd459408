"""Which errors a loss has mended: the gradient that reaches a student's parameters, by the Haar band it comes from.

To be run in the folder of the study, on training pictures; a line a loss, printed and written to ``gradients.json`` in
that folder. For each band: its share of the squared gradient of the picture (the transform is orthonormal, so shares
add up to 1), and its share of what of it reaches the parameters of ``edsr_scratch``, seed 0, as squared norm and as the
mean over parameters, each of which Adam scales by itself.

    python experiments/compact_x4/gradients.py pictures/train/bsd400
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bands import BANDS, LEVELS, SCALE, batched, pair
from pytorch_wavelets import DWTForward, DWTInverse
from torch.nn import L1Loss, MSELoss

from mtkd_lightning import load
from mtkd_lightning.data.images import list_pictures
from mtkd_lightning.losses.detail import DetailLoss
from mtkd_lightning.losses.wavelet import WaveletLoss

BATCHES, BATCH, PATCH = 16, 16, 24  # as in training; a patch in LR pixels
LOSSES = {
    "L1": L1Loss(),
    "L1 without means of blocks": DetailLoss(),
    "MSE": MSELoss(),
    "1 level and low-pass": WaveletLoss(levels=1),
    **{f"{levels} level{'s' * (levels > 1)}": WaveletLoss(levels=levels, low_weight=0) for levels in (1, 2, 3, 4)},
    "4 levels and low-pass": WaveletLoss(levels=4),
}
HAAR, INVERSE = DWTForward(J=LEVELS, wave="haar", mode="zero"), DWTInverse(wave="haar", mode="zero")


def main() -> None:
    """Measure, print and write."""
    network = load("weights/edsr_scratch_compact_x4_seed0.safetensors").requires_grad_(True)
    parameters = list(network.parameters())
    of_picture = {name: torch.zeros(len(BANDS)) for name in LOSSES}
    of_parameter = {name: torch.zeros(len(BANDS), sum(x.numel() for x in parameters)) for name in LOSSES}
    for lr, hr in batches(Path(sys.argv[1])):
        sr = network(lr)
        for name, loss in LOSSES.items():
            picture = sr.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(picture, hr), picture)
            for band, part in enumerate(parts(gradient)):
                of_picture[name][band] += part.square().sum()
                reached = torch.autograd.grad(sr, parameters, part, retain_graph=True)
                of_parameter[name][band] += torch.cat([x.flatten() for x in reached]).square()
    found = {
        name: {
            "picture": shares(of_picture[name]),
            "parameters": shares(of_parameter[name].sum(1)),
            "mean over parameters": shares((of_parameter[name] / of_parameter[name].sum(0).clamp(min=1e-30)).mean(1)),
        }
        for name in LOSSES
    }
    text = json.dumps(found, indent=1)
    print(text)
    Path("gradients.json").write_text(text + "\n")


def batches(folder: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random patches of as many pictures, (b, 3, h, w) in 0..1; the same ones every time."""
    random, files = np.random.default_rng(0), list_pictures(folder)
    for _ in range(BATCHES):
        pairs = []
        for file in random.choice(len(files), BATCH, replace=False):
            lr, hr = pair(files[file])
            top, left = (random.integers(side - PATCH + 1) for side in lr.shape[:2])
            windows = ((x, PATCH * s, top * s, left * s) for x, s in ((lr, 1), (hr, SCALE)))
            pairs.append([batched(x[y : y + size, z : z + size]) for x, size, y, z in windows])
        lrs, hrs = zip(*pairs, strict=True)
        yield torch.cat(lrs), torch.cat(hrs)


def parts(gradient: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of each level, and of the low-pass picture; they add up to the whole."""
    low, high = HAAR(gradient)
    nothing = [torch.zeros_like(band) for band in high]
    for level in range(LEVELS):
        yield INVERSE((torch.zeros_like(low), [*nothing[:level], high[level], *nothing[level + 1 :]]))
    yield INVERSE((low, nothing))


def shares(values: torch.Tensor) -> dict[str, float]:
    """Each band's part of the sum."""
    return dict(zip(BANDS, (round(x, 4) for x in (values / values.sum()).tolist()), strict=True))


if __name__ == "__main__":
    main()
