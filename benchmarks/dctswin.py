"""DCTSwin, forward and backward, beside SwinIR of the same size.

The paper's aggregator of three members at x4, as released and repaired, and a SwinIR of the same width, groups, blocks,
heads and windows, whose classical head of 64 features is DCTSwin's too. DCTSwin unshuffles its HR pictures to LR size,
so both work on the same grid of tokens and give pictures of the same size. They differ in the cosine transforms and
masks, which are what is measured, and in the first convolution, which reads 3 x 3 x 16 channels there and 3 here: all
of the released network's additional parameters, and over half of its additional multiplications.

Training mode, float32, channels last as the trainer sets it, batch 4, one thread or a GPU where there is one; gradients
for all parameters, none for the pictures. The networks take turns, several times; the medians of their milliseconds and
of the ratios are printed and written to ``dctswin.json``.

    python benchmarks/dctswin.py [repeats]
"""

import statistics
from functools import partial

import torch
from torch import Tensor, nn

from common import DEVICE, arguments, in_turns, publish, ratio, seconds
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.teachers.dctswin import DCTSwin

SCALE, MEMBERS, BATCH, PATCHES = 4, 3, 4, (32, 64)


def main() -> None:
    """Measure, print and write."""
    (repeats,), _ = arguments(20)
    torch.set_num_threads(1)
    networks: dict[str, nn.Module] = {
        "swinir": SwinIR(SCALE, 96, (4, 4), (6, 6)),
        "released": DCTSwin(SCALE, MEMBERS, 96, (4, 4), (6, 6)),
        "repaired": DCTSwin(SCALE, MEMBERS, 96, (4, 4), (6, 6), orthonormal=True, mask=False, mean_skip=True),
    }
    for network in networks.values():
        network.to(device=DEVICE, memory_format=torch.channels_last)
    result = {
        "repeats": repeats,
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        "variants": {f"LR patch {patch}": _compare(networks, patch, repeats) for patch in PATCHES},
    }
    publish(__file__, result)


def _compare(networks: dict[str, nn.Module], patch: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    lr = torch.rand(BATCH, 3, patch, patch, device=DEVICE).contiguous(memory_format=torch.channels_last)
    images = torch.rand(BATCH, MEMBERS, 3, SCALE * patch, SCALE * patch, device=DEVICE)
    steps = {
        name: partial(seconds, partial(_step, network, lr if name == "swinir" else images))
        for name, network in networks.items()
    }
    in_turns(steps, 1)
    found = in_turns(steps, repeats)
    milliseconds = {f"{name}_ms": 1000 * statistics.median(x) for name, x in found.items()}
    ratios = {f"{name}_over_swinir": ratio(found[name], found["swinir"]) for name in ("released", "repaired")}
    return {name: round(x, 3) for name, x in (milliseconds | ratios).items()}


def _step(network: nn.Module, x: Tensor) -> None:
    torch.autograd.grad(network(x).square().mean(), list(network.parameters()))


if __name__ == "__main__":
    main()
