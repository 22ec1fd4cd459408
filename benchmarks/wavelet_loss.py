"""The Haar wavelet loss, forward and backward, beside the same loss on the transform of pytorch-wavelets.

The library's user transforms both pictures; beside that stands a user who knows that the transform is linear, and takes
it once, of their difference, as ours does.

A training batch of float32 pictures (16, 3, 128, 128), on one thread or on a GPU where there is one, in both layouts in
memory: as (b, c, h, w), and channels last, which a student gives. The three take turns, several times, a few calls
each; the medians of their milliseconds a call and of the ratios are printed and written to ``wavelet_loss.json``.

    python benchmarks/wavelet_loss.py [repeats calls]
"""

import statistics
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from common import DEVICE, arguments, in_turns, publish, ratio, seconds
from mtkd_lightning.losses.wavelet import WaveletLoss

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*pkg_resources")  # deprecated by setuptools
    from pytorch_wavelets import DWTForward

SHAPE = 16, 3, 128, 128
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def main() -> None:
    """Measure, print and write."""
    (repeats, calls), _ = arguments(40, 5)
    torch.set_num_threads(1)
    result = {
        f"J={levels}, {name}": _compare(levels, layout, repeats, calls)
        for name, layout in LAYOUTS.items()
        for levels in (1, 4)
    }
    publish(__file__, {"repeats": repeats, "calls": calls, "variants": result})


def _compare(levels: int, layout: torch.memory_format, repeats: int, calls: int) -> dict[str, float]:
    torch.manual_seed(0)
    sr, target = (torch.rand(SHAPE, device=DEVICE).contiguous(memory_format=layout) for _ in range(2))
    sr.requires_grad_()
    ours = WaveletLoss(levels).to(DEVICE)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "pytorch_wavelets": _library(levels),
        "pytorch_wavelets_once": _library(levels, of_difference=True),
        "ours": ours,
    }
    for loss in losses.values():
        torch.testing.assert_close(loss(sr, target), ours(sr, target), rtol=0, atol=1e-5)
        gradients = (torch.autograd.grad(each(sr, target), sr)[0] for each in (loss, ours))
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)

    def run(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(calls):
            torch.autograd.grad(loss(sr, target), sr)

    found = in_turns({name: partial(seconds, partial(run, loss)) for name, loss in losses.items()}, repeats)
    return {
        **{f"{name}_ms": round(1000 * statistics.median(took) / calls, 2) for name, took in found.items()},
        "times_faster": round(ratio(found["pytorch_wavelets"], found["ours"]), 2),
        "over_single_transform": round(ratio(found["pytorch_wavelets_once"], found["ours"]), 2),
    }


def _library(levels: int, of_difference: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    transform = DWTForward(J=levels, wave="haar", mode="zero").to(DEVICE)

    def of_both(sr: Tensor, target: Tensor) -> Tensor:
        (sr_low, sr_high), (low, high) = transform(sr), transform(target)
        bands = [(ours - theirs).abs().mean() for ours, theirs in zip(sr_high, high, strict=True)]
        return torch.stack([*bands, (sr_low - low).abs().mean()]).sum()

    def once(sr: Tensor, target: Tensor) -> Tensor:
        low, high = transform(sr - target)
        return torch.stack([band.abs().mean() for band in (*high, low)]).sum()

    return once if of_difference else of_both


if __name__ == "__main__":
    main()
