"""Where the study's students err: mean squared error by Haar band, on B100 in luma, 0..255.

To be run in the folder of the study; a line a student of seed 0, printed and written to ``bands.json`` in that folder.
The transform is orthonormal, so a line's bands add up to its mean squared error.

    python experiments/compact_x4/bands.py pictures/benchmarks/B100/HR
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from pytorch_wavelets import DWTForward

from mtkd_lightning import load
from mtkd_lightning.data.images import RGB, list_pictures, read_rgb
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.metrics.functional import luma

SCALE = 4
LEVELS = 4
SIDE = 2**LEVELS  # of a coefficient of the last level in pixels
BANDS = [*(f"level {level + 1}" for level in range(LEVELS)), "low-pass"]


@torch.no_grad()
def main() -> None:
    """Measure, print and write."""
    haar = DWTForward(J=LEVELS, wave="haar", mode="zero")
    networks = {
        weights.stem.split("_compact")[0]: load(weights)
        for weights in sorted(Path("weights").glob("edsr_*_seed0.safetensors"))
    }
    sums = torch.zeros(len(networks), LEVELS + 1)
    files = list_pictures(Path(sys.argv[1]))
    for file in files:
        lr, hr = map(batched, pair(file))
        sums += torch.stack([bands(haar, network(lr), hr) for network in networks.values()])
    found = {
        name: dict(zip(BANDS, (round(x, 2) for x in row), strict=True))
        for name, row in zip(networks, (sums / len(files)).tolist(), strict=True)
    }
    text = json.dumps(found, indent=1)
    print(text)
    Path("bands.json").write_text(text + "\n")


def pair(file: Path) -> tuple[RGB, RGB]:
    """LR and HR picture of a file, (h, w, 3)."""
    hr = read_rgb(file)
    hr = hr[: hr.shape[0] // SCALE * SCALE, : hr.shape[1] // SCALE * SCALE]
    return downscale(hr, SCALE), hr


def batched(picture: RGB) -> torch.Tensor:
    """(1, 3, h, w) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def bands(haar: DWTForward, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """Squared coefficients of the difference for each pixel: of each level, and of the low-pass picture."""
    difference = luma(sr.clamp(0, 1)) - luma(hr)
    height, width = (side // SIDE * SIDE for side in difference.shape[-2:])
    low, high = haar(difference[..., :height, :width])
    return torch.stack([x.square().sum() / (height * width) for x in (*high, low)])


if __name__ == "__main__":
    main()
