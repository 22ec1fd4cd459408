"""What scoring a network on a benchmark costs beside the network's own work, and where the rest goes.

SMFANet+ (random weights, which cost the same) at x4 on B100 where a folder of benchmarks is given, as in
``python -m mtkd_lightning.evaluate data.root=...``, else on photographs of scikit-image; decoded before. `evaluate`:
read, enlarge, PSNR, SSIM, and the network's flops in the end. Beside it the network on the same LR pictures,
which are on the device as floats. They take turns, several times, and so do the parts that `evaluate` is made of; the
medians of their seconds and of the ratios to the network's are printed and written to ``evaluation.json``.

    python benchmarks/evaluation.py [repeats] [data.root=...]
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from common import DEVICE, arguments, config, in_turns, publish, ratio, seconds
from mtkd_lightning.config import build
from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import benchmarks, demo_photographs
from mtkd_lightning.evaluation import evaluate, float32_convolutions, on_device, protocol_of
from mtkd_lightning.metrics.complexity import flops
from mtkd_lightning.metrics.functional import psnr, ssim

SCALE = 4


def main() -> None:
    """Measure, print and write."""
    (repeats,), words = arguments(5)
    network: nn.Module = build(config("preset=cpu", "+backbone@scored=smfanet_plus").scored).to(DEVICE).eval()
    with tempfile.TemporaryDirectory() as folder:
        name, pictures = _benchmark(words[0].removeprefix("data.root=") if words else None, folder)
        pictures.prepare()
        result = _measure(network, name, pictures, repeats)
    publish(__file__, {"repeats": repeats, "benchmark": name, "pictures": len(pictures), "seconds": result})


def _benchmark(root: str | None, cache: str) -> tuple[str, PairedImages]:
    found = demo_photographs(SCALE, cache) if root is None else benchmarks(root, SCALE, cache, only="B100")
    if root is None:
        return "photographs", PairedImages([*found.train.pairs, *found.validation.pairs], SCALE, found.train.store)
    return "B100", found.benchmarks["B100"]


def _measure(network: nn.Module, name: str, pictures: PairedImages, repeats: int) -> dict[str, dict[str, float]]:
    protocol = protocol_of(name, SCALE)
    read = [on_device(WholePictures(pictures)[index], DEVICE) for index in range(len(pictures))]

    @torch.inference_mode()
    def enlarge() -> list[Tensor]:
        with float32_convolutions():
            return [network(batch.lr) for batch in read]

    pairs = [(sr, batch.hr) for sr, batch in zip(enlarge(), read, strict=True)]
    parts: dict[str, Callable[[], object]] = {
        "network": enlarge,
        "evaluate": lambda: evaluate({"network": network}, {name: pictures}, SCALE, DEVICE),
        "part: reading": lambda: [on_device(WholePictures(pictures)[index], DEVICE) for index in range(len(pictures))],
        "part: psnr": lambda: [psnr(sr, hr, protocol).item() for sr, hr in pairs],
        "part: ssim": lambda: [ssim(sr, hr, protocol).item() for sr, hr in pairs],
        "part: flops": lambda: flops(network, 720 // SCALE, 1280 // SCALE),
    }
    found = in_turns({name: partial(seconds, run) for name, run in parts.items()}, repeats)
    return {
        name: {"median": round(statistics.median(x), 3), "over_network": round(ratio(x, found["network"]), 4)}
        for name, x in found.items()
    }


if __name__ == "__main__":
    main()
