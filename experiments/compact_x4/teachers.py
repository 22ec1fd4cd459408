"""What merging the study's teachers can gain: how alike their errors are, and what the best possible merger would give.

On B100, which nobody was trained on and by which nothing is chosen here, in luma with a border of the scale cut off. To
be run in the folder of the study once its runs are there; printed and written to ``teachers.json`` in that folder.

    python experiments/compact_x4/teachers.py data.root=pictures
"""

import json
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from mtkd_lightning.config import CONF
from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.experiments import register
from mtkd_lightning.metrics.functional import luma
from mtkd_lightning.networks import load, locate
from mtkd_lightning.pipeline import Pipeline
from mtkd_lightning.typing import floats

STUDENTS = "scratch", "kd", "mtkd"
FITTED_ON = 40  # training pictures


def main() -> None:
    """Measure, print and write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "config", ["+study=compact_x4", "+experiment=edsr_mtkd", *sys.argv[1:]], return_hydra_config=True
        )
        HydraConfig.instance().set_config(config)
    pipeline = Pipeline(config)
    teachers = pipeline.teacher
    assert teachers is not None
    train, pictures = pipeline.pictures.train, pipeline.pictures.benchmarks["B100"]
    few = PairedImages(train.pairs[:: len(train) // FITTED_ON], train.scale, train.store)
    weights = _least_squares(teachers.with_members(few))
    students = {name: load(locate(f"edsr_{name}_compact_x4_seed0", pipeline.maker.weights)) for name in STUDENTS}
    merged = teachers.with_merged(pictures)
    squares: dict[str, list[float]] = {}
    errors: dict[str, list[Tensor]] = {}
    for index, (lr, hr, members) in enumerate(_pictures(teachers.with_members(pictures))):
        made = dict(zip(teachers.names, members, strict=True))
        stack = torch.stack(members)
        found = {
            **made,
            "mean": stack.mean(0),
            "weighted": (weights @ stack.flatten(1)).view_as(hr),
            "aggregator": next(_pictures(merged, index))[2][0],
            **{f"student {name}": _luma(network(lr)) for name, network in students.items()},
        }
        found["closest member of each pixel"] = stack.gather(0, (stack - hr).abs().argmin(0, keepdim=True))[0]
        found["closest value between members"] = hr.clamp(stack.amin(0), stack.amax(0))
        for name, picture in found.items():
            squares.setdefault(name, []).append((picture - hr).square().mean().item())
            if not name.startswith("closest"):
                errors.setdefault(name, []).append((picture - hr).flatten().double())
    correlation = torch.corrcoef(torch.stack([torch.cat(x) for x in errors.values()])).tolist()
    result = {
        "pictures": len(pictures),
        "psnr": {
            name: round(fmean(20 * math.log10(255) - 10 * math.log10(x) for x in y), 3) for name, y in squares.items()
        },
        "weights": dict(zip(teachers.names, (round(x, 3) for x in weights.tolist()), strict=True)),
        "correlation_of_errors": {
            name: dict(zip(errors, (round(x, 4) for x in row), strict=True))
            for name, row in zip(errors, correlation, strict=True)
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    Path("teachers.json").write_text(text + "\n")


@torch.no_grad()
def _least_squares(pairs: PairedImages) -> Tensor:
    """Fixed weights of the members for the least squared error."""
    products, target = torch.zeros(len(pairs.pairs[0].teachers), len(pairs.pairs[0].teachers)), 0.0
    for _, hr, members in _pictures(pairs):
        stack = torch.stack(members).flatten(1)
        products = products + stack @ stack.T
        target = target + stack @ hr.flatten()
    return torch.linalg.solve(products.double(), target.double()).float()


def _pictures(pairs: PairedImages, first: int = 0) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
    """LR in 0..1; HR and teachers' pictures in luma."""
    whole = WholePictures(pairs)
    for index in range(first, len(whole)):
        batch = floats(whole[index])
        assert batch.teacher_sr is not None
        yield batch.lr, _luma(batch.hr), [_luma(picture) for picture in batch.teacher_sr.unbind(1)]


@torch.no_grad()
def _luma(picture: Tensor) -> Tensor:
    return luma(picture.clamp(0, 1))[0, 0, 4:-4, 4:-4]


if __name__ == "__main__":
    main()
