"""PSNR and SSIM of single pictures by the convention of super-resolution papers.

Crop the borders, round to 8 bit, take the luma of BT.601 (or stay in RGB), measure each picture. SSIM is that
of Wang et al., "Image quality assessment: from error visibility to structural similarity" (IEEE TIP 2004), at
the positions where the whole window lies in the picture.
"""

from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from mtkd_lightning.errors import MTKDError

SSIM_SIDE = 11
"""Side of SSIM's window: no smaller picture can be scored."""

_RADIUS = SSIM_SIDE // 2
_BELL = [exp(-(offset**2) / (2 * 1.5**2)) for offset in range(-_RADIUS, _RADIUS + 1)]
_WINDOW = [value / sum(_BELL) for value in _BELL]
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Protocol:
    """How pictures are compared; printed beside every number.

    Args:
        crop_border: pixels left out at each border; papers use the scale.
        luma: compare Y of BT.601 (papers), else the three channels.
    """

    crop_border: int
    luma: bool = True

    def __post_init__(self) -> None:
        if self.crop_border < 0:
            raise MTKDError(f"the metrics got crop_border={self.crop_border}; it must be 0 or more")

    def __str__(self) -> str:
        return f"{'Y' if self.luma else 'RGB'}, crop {self.crop_border}, uint8, mean of images"


def quantize(image: Tensor) -> Tensor:
    """Clamp 0..1 and round to 8 bit: whole numbers 0..255, half to even; float32, in which NaN stays NaN."""
    return image.float().clamp(0, 1).mul(255).round()


def luma(image: Tensor) -> Tensor:
    """Y of BT.601 in studio range, 16..235, of RGB in 0..1: (..., 3, h, w) to (..., 1, h, w)."""
    red, green, blue = torch.split(image, 1, dim=-3)
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def psnr(sr: Tensor, hr: Tensor, protocol: Protocol) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, float64 (b,); infinite for identical pictures.

    Args:
        sr: output of a network, RGB 0..1, (b, 3, h, w) of any floating type.
        hr: ground truth of the same shape.
        protocol: cropping and colour. In RGB the error is pooled over the channels.

    Raises:
        MTKDError: for other shapes or types, or if cropping leaves nothing.
    """
    sr, hr = _prepare(sr, hr, protocol, smallest=1)
    mean_squared_error = (sr - hr).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / mean_squared_error)


def ssim(sr: Tensor, hr: Tensor, protocol: Protocol) -> Tensor:
    """Structural similarity of each picture, float64 (b,).

    Gaussian window of 11x11 pixels and sigma 1.5, population covariance, constants 0.01 and 0.03 of 255.

    Args:
        sr: output of a network, RGB 0..1, (b, 3, h, w) of any floating type.
        hr: ground truth of the same shape.
        protocol: cropping and colour. In RGB the result is the mean of the channels.

    Raises:
        MTKDError: for other shapes or types, or if cropping leaves less than 11x11 pixels.
    """
    sr, hr = _prepare(sr, hr, protocol, smallest=len(_WINDOW))
    # The two variances are only ever needed as a sum.
    mean_sr, mean_hr, power, product = (_blur(x) for x in (sr, hr, sr.square() + hr.square(), sr * hr))
    means_squared, means_product = mean_sr.square() + mean_hr.square(), mean_sr * mean_hr
    luminance = (2 * means_product + _C1) / (means_squared + _C1)
    structure = (2 * (product - means_product) + _C2) / (power - means_squared + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _prepare(sr: Tensor, hr: Tensor, protocol: Protocol, smallest: int) -> tuple[Tensor, Tensor]:
    """Check, crop, round, and convert to what is compared: float64 in a range of 255 levels."""
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] != 3:
        raise MTKDError(
            f"a metric got pictures of shape {tuple(sr.shape)} and {tuple(hr.shape)}; both must be"
            " (b, 3, h, w) of the same size: crop the ground truth to a multiple of the scale"
        )
    if not (sr.is_floating_point() and hr.is_floating_point()):
        raise MTKDError(f"a metric got {sr.dtype} and {hr.dtype}; give floating point pictures in 0..1")
    border = protocol.crop_border
    height, width = sr.shape[-2] - 2 * border, sr.shape[-1] - 2 * border
    if min(height, width) < smallest:
        raise MTKDError(
            f"a metric got pictures of {sr.shape[-2]}x{sr.shape[-1]}, of which crop_border={border} leaves"
            f" {max(height, 0)}x{max(width, 0)}; it needs {smallest}x{smallest} or more: use larger pictures"
            " or a smaller crop_border"
        )

    def convert(image: Tensor) -> Tensor:
        image = quantize(image[..., border : border + height, border : border + width]).double()
        return luma(image / 255) if protocol.luma else image

    return convert(sr), convert(hr)


def _blur(image: Tensor) -> Tensor:
    """Gaussian mean around every position whose window lies inside: 10 pixels less in height and width.

    Shifted sums, because convolutions in float64 are many times slower.
    """
    for dim in (-2, -1):
        length = image.shape[dim] - 2 * _RADIUS
        total = torch.zeros_like(image.narrow(dim, 0, length))
        for shift, weight in enumerate(_WINDOW):
            total.add_(image.narrow(dim, shift, length), alpha=weight)
        image = total
    return image
