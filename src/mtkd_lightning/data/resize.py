"""Bicubic resizing, bit for bit MATLAB's imresize on uint8 pictures.

The low-resolution pictures of DIV2K, Set5, Set14 and their like were made with it. Other libraries treat
borders, antialiasing or rounding otherwise, and give another PSNR.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtkd_lightning.errors import MTKDError

Levels = NDArray[Any]


def imresize(image: Levels, height: int, width: int) -> Levels:
    """Resize uint8 or uint16 (H, W, C) to (height, width, C): cubic of a = -0.5, antialiased where it shrinks.

    Borders are mirrored. The side that shrinks more goes first, height on a tie, and each of the two passes
    ends in whole levels (half rounds up).
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or min(image.shape) < 1:
        raise MTKDError(f"got {image.dtype} of shape {image.shape}; imresize takes uint8 or uint16 (H, W, C)")
    if height < 1 or width < 1:
        raise MTKDError(f"cannot resize {image.shape[0]}x{image.shape[1]} to {height}x{width}: sides are at least 1")
    rows, columns = image.shape[:2]
    if height * columns <= width * rows:
        return _resize_columns(_resize_rows(image, height), width)
    return _resize_rows(_resize_columns(image, width), height)


def downscale(hr: Levels, scale: int) -> Levels:
    """Make LR (H / scale, W / scale, C) of HR, whose sides must be multiples of the scale."""
    rows, columns = hr.shape[:2]
    if scale < 1 or rows % scale or columns % scale:
        raise MTKDError(
            f"cannot downscale a picture of {rows}x{columns} by {scale}: "
            f"its sides must be multiples of the scale, so crop it first"
        )
    return imresize(hr, rows // scale, columns // scale)


def upscale(lr: Levels, scale: int) -> Levels:
    """Enlarge (h, w, C) to (scale * h, scale * w, C): the bicubic baseline."""
    return imresize(lr, scale * lr.shape[0], scale * lr.shape[1])


def resize_matrix(size: int, length: int) -> NDArray[np.float64]:
    """Make the matrix (length, size) whose product with ``size`` rows is the same resizing, but for the rounding."""
    weights, indices = _contributions(size, length)
    matrix = np.zeros((length, size))
    np.add.at(matrix, (np.arange(length), indices), weights)
    return matrix


def _resize_columns(image: Levels, width: int) -> Levels:
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    return np.ascontiguousarray(_resize_rows(turned, width).transpose(1, 0, 2))


def _resize_rows(image: Levels, length: int) -> Levels:
    if length == len(image):
        return image
    weights, indices = _contributions(len(image), length)
    total = np.zeros((length, *image.shape[1:]))
    term = np.empty_like(total)
    for weight, index in zip(weights, indices, strict=True):
        total += np.multiply(image[index], weight[:, None, None], out=term)
    total += 0.5
    return np.floor(total, out=total).clip(0, np.iinfo(image.dtype).max, out=total).astype(image.dtype)


@lru_cache(maxsize=64)
def _contributions(size: int, length: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Weights and source rows, both (taps, length), of each of `length` rows made from `size` rows."""
    scale = length / size
    shrink = min(scale, 1.0)
    support = 4 / shrink
    centre = np.arange(1, length + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centre - support / 2) + np.arange(int(np.ceil(support)) + 2)[:, None]
    weights = shrink * _cubic(shrink * (centre - taps))
    weights /= weights.sum(axis=0)
    mirror = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    indices = mirror[(taps.astype(np.intp) - 1) % (2 * size)]
    used = weights.any(axis=1)
    return weights[used], indices[used]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))
