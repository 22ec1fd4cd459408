"""The Haar wavelet loss, forward and backward, beside the same loss on the transform of pytorch-wavelets.

A training batch of float32 pictures (16, 3, 128, 128), on one thread or on a GPU where there is one, in both layouts in
memory: as (b, c, h, w), and channels last, which a student gives. The two take turns, several times, a few calls each;
the medians of their milliseconds a call and of the ratios are printed and written to ``wavelet_loss.json``.

    python benchmarks/wavelet_loss.py [repeats calls]
"""

import statistics
import warnings
from collections.abc import Callable, Sequence
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
    losses: Sequence[Callable[[Tensor, Tensor], Tensor]] = _library(levels), WaveletLoss(levels).to(DEVICE)
    torch.testing.assert_close(*(loss(sr, target) for loss in losses), rtol=0, atol=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss(sr, target), sr)[0] for loss in losses), rtol=1e-5, atol=1e-9)

    def run(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        for _ in range(calls):
            torch.autograd.grad(loss(sr, target), sr)

    turns = {name: partial(seconds, partial(run, loss)) for name, loss in zip(("library", "ours"), losses, strict=True)}
    found = in_turns(turns, repeats)
    return {
        "pytorch_wavelets_ms": round(1000 * statistics.median(found["library"]) / calls, 2),
        "ours_ms": round(1000 * statistics.median(found["ours"]) / calls, 2),
        "times_faster": round(ratio(found["library"], found["ours"]), 2),
    }


def _library(levels: int) -> Callable[[Tensor, Tensor], Tensor]:
    transform = DWTForward(J=levels, wave="haar", mode="zero").to(DEVICE)

    def loss(sr: Tensor, target: Tensor) -> Tensor:
        (sr_low, sr_high), (low, high) = transform(sr), transform(target)
        bands = [(ours - theirs).abs().mean() for ours, theirs in zip(sr_high, high, strict=True)]
        return torch.stack([*bands, (sr_low - low).abs().mean()]).sum()

    return loss


if __name__ == "__main__":
    main()
