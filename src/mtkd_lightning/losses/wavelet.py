"""Wavelet loss: L1 distance of the sub-bands of two pictures.

Source: MTKD (Jiang et al., ECCV 2024, https://arxiv.org/abs/2404.09571), the distillation term of stage 2.
Written from the definition; the licence of the released code is not known and none of it is used. Every basis
but Haar is computed by pytorch-wavelets (https://github.com/fbcotter/pytorch_wavelets, MIT).

Deviations from the released code:
* 1 level by default, as in the paper; the code has 4.
* The low-pass band of every picture counts. The code indexes that band with a left-over loop variable, thus
  compares one picture of the batch alone.
* The transform is linear, so it is taken once, of the difference.
* Haar of sides that halve at every level takes few passes over memory and makes its gradient along with the loss.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import difference, without_autocast

# Each border mode with its name in `F.pad`, which adds the one sample that Haar lacks on odd sides.
_MODES = {
    "zero": "constant",
    "symmetric": "replicate",
    "reflect": "reflect",
    "periodic": "circular",
    "periodization": "replicate",
}

# One level: picture (b, c, h, w) -> its low-pass band, and its high-pass bands in pieces of equal size.
_Step = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


class WaveletLoss(nn.Module):
    """Sum over levels of mean |LH, HL, HH of sr - target|, plus mean |LL of the last level|.

    The mean of a level is taken over its three bands together; the loss of a batch is the mean of the losses
    of its pictures. Computed in float32 with autocast off, once differentiable in `sr`, on the device of `sr`.
    No parameters, an empty state dict. `torch.compile` traces Haar whole; other bases break the graph.

    Args:
        levels: depth of the decomposition (K in the paper).
        wavelet: name of a discrete wavelet of PyWavelets.
        mode: continuation beyond the borders: zero, symmetric, reflect, periodic or periodization.
        low_weight: multiplies the low-pass term.
        high_weight: multiplies the high-pass terms.

    Raises:
        MTKDError: for an unknown wavelet or mode, for levels below 1, a negative weight, and, when called, for pictures
            too small for the levels.
    """

    def __init__(
        self,
        levels: int = 1,
        wavelet: str = "haar",
        mode: str = "zero",
        low_weight: float = 1.0,
        high_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if levels < 1:
            raise MTKDError(f"the wavelet loss got levels={levels}; it needs 1 or more")
        if not (low_weight >= 0 and high_weight >= 0):
            raise MTKDError(
                f"the wavelet loss got low_weight={low_weight}, high_weight={high_weight}: a weight is 0 or more"
            )
        if mode not in _MODES:
            raise MTKDError(f"the wavelet loss has no mode {mode!r}; it has {', '.join(_MODES)}")
        self.levels, self.wavelet, self.mode = levels, wavelet, mode
        self.low_weight, self.high_weight = low_weight, high_weight
        self._step: _Step
        if wavelet in ("haar", "db1"):
            self._step = partial(_haar, padding=_MODES[mode])
            self._taps = 2
        else:
            analyse, filters = _library(wavelet)
            self._step = partial(_filter_bank, analyse=analyse, filters=filters, mode=mode)
            self._taps = len(filters[0])

    def forward(self, sr: Tensor, target: Tensor) -> Tensor:
        """Loss of pictures (b, c, h, w), a float32 scalar."""
        smallest = (self._taps - 1) * 2**self.levels
        height, width = sr.shape[-2:]
        if height < smallest or width < smallest:
            raise MTKDError(
                f"the wavelet loss got pictures of {height}x{width}; {self.levels} levels of {self.wavelet}"
                f" need {smallest}x{smallest} or more: use larger patches or fewer levels"
            )
        with without_autocast(sr.device):
            whole = height % 2**self.levels == width % 2**self.levels == 0 and sr.shape == target.shape
            if self._taps == 2 and self.high_weight and whole and not torch.compiler.is_compiling():
                settings = self.levels, self.low_weight, self.high_weight
                result: Tensor = HaarLoss.apply(sr.float(), target.float(), *settings)  # type: ignore[no-untyped-call]
                return result
            low = difference(sr, target)
            loss = low.new_zeros(())
            for _ in range(self.levels):
                low, bands = self._step(low)
                high = torch.stack([band.abs().mean() for band in bands]).mean()
                loss = loss + self.high_weight * high
            return loss + self.low_weight * low.abs().mean()

    def extra_repr(self) -> str:
        """Settings, as they appear in the printed module."""
        return (
            f"levels={self.levels}, wavelet={self.wavelet!r}, mode={self.mode!r},"
            f" low_weight={self.low_weight}, high_weight={self.high_weight}"
        )


def _haar(picture: Tensor, padding: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Haar of any sides from the four pixels of every 2x2 block; traced whole by `torch.compile`."""
    odd_rows, odd_columns = picture.shape[-2] % 2, picture.shape[-1] % 2
    if odd_rows or odd_columns:
        picture = F.pad(picture, (0, odd_columns, 0, odd_rows), mode=padding)
    top, bottom = torch.unflatten(picture, -2, (-1, 2)).unbind(-2)
    sum_left, sum_right = torch.unflatten(top + bottom, -1, (-1, 2)).unbind(-1)
    drop_left, drop_right = torch.unflatten(top - bottom, -1, (-1, 2)).unbind(-1)
    high = (drop_left + drop_right) / 2, (sum_left - sum_right) / 2, (drop_left - drop_right) / 2
    return (sum_left + sum_right) / 2, high


class HaarLoss(torch.autograd.Function):
    """The loss with Haar of pictures (b, c, h, w), sides multiples of 2**levels, in few passes over memory.

    A picture is seen as complex numbers, left columns real, right ones imaginary: (1 + i) times a number has their
    difference (real) and their sum (imaginary), and times (1 - i) is the transpose. Each level is scaled so that its
    high-pass bands have weight 1 in the loss. The loss is linear between its kinks, thus the inner product of the
    bands and its own gradient with respect to them.
    """

    @staticmethod
    def forward(ctx: Any, sr: Tensor, target: Tensor, levels: int, low_weight: float, high_weight: float) -> Tensor:
        """Give the loss, in the precision of the pictures; `high_weight` must not be 0."""
        ctx.share = high_weight / (1.5 * sr.numel())
        low, bands = torch.sub(sr, target, out=sr.new_empty(sr.shape)), []
        for level in range(levels):
            bands.append(_transform(low, (2 if level else ctx.share) * (1 + 1j)))
            low = _low(bands[-1])
        gradient = bands[-1].sign()
        _low(gradient).mul_(3 * low_weight / high_weight)
        for finer in reversed(bands[:-1]):
            low = _transform(gradient, 2 - 2j)
            gradient = finer.sign()
            _low(gradient).copy_(low)
        ctx.save_for_backward(gradient)
        return bands[0].mul_(gradient).sum()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradient of `sr`, in memory as (b, c, h, w), and none of the target."""
        (gradient,) = ctx.saved_tensors
        return _transform(gradient, outer * (ctx.share * (1 - 1j))), None, None, None, None


def _transform(picture: Tensor, factor: complex | Tensor) -> Tensor:
    """Sum and difference of every two rows, then of every two columns; the result lies in memory as (b, c, h, w)."""
    result = picture.new_empty(picture.shape)
    (top, bottom), (total, drop) = (x.unflatten(-2, (-1, 2)).unbind(-2) for x in (picture, result))
    torch.add(top, bottom, out=total)
    torch.sub(top, bottom, out=drop)
    _complex(result).mul_(factor)
    return result


def _complex(picture: Tensor) -> Tensor:
    return torch.view_as_complex(picture.unflatten(-1, (-1, 2)))


def _low(bands: Tensor) -> Tensor:
    return _complex(bands).imag[..., ::2, :]


def _filter_bank(
    picture: Tensor, analyse: Callable[..., Tensor], filters: tuple[Tensor, Tensor], mode: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Any basis, first along rows, then along columns."""
    low, high = (taps.to(picture, non_blocking=True) for taps in filters)
    rows = analyse(picture, low, high, mode=mode, dim=3)
    bands = torch.unflatten(analyse(rows, low, high, mode=mode, dim=2), 1, (-1, 4))
    return bands[:, :, 0], (bands[:, :, 1:],)


def _library(wavelet: str) -> tuple[Callable[..., Tensor], tuple[Tensor, Tensor]]:
    """Analysis along one axis by pytorch-wavelets, and the low-pass and high-pass filters that it takes.

    Not its `DWTForward`, whose own backward is slower, and wrong at the borders in every mode but zero (and
    periodization of even sides).
    """
    import pywt  # type: ignore[import-untyped, unused-ignore]

    known = pywt.wavelist(kind="discrete")
    if wavelet not in known:
        raise MTKDError(f"the wavelet loss has no wavelet {wavelet!r}; it has {', '.join(known)}")
    with warnings.catch_warnings():
        # pytorch-wavelets imports pkg_resources, which setuptools has deprecated.
        warnings.filterwarnings("ignore", message=".*pkg_resources")
        from pytorch_wavelets.dwt.lowlevel import afb1d

    # Mirrored, as torch convolves. Not buffers: casting a module to half precision would round them.
    low, high = (torch.tensor(taps[::-1]) for taps in pywt.Wavelet(wavelet).filter_bank[:2])
    return afb1d, (low, high)
