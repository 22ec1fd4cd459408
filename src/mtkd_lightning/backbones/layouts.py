"""What the names and shapes of a weights file tell of its network, and our names for its tensors.

Provenance: names are those of EDSR-PyTorch (Lim et al., https://github.com/sanghyun-son/EDSR-PyTorch, MIT) and of what
was made from it, and of BasicSR (https://github.com/XPixelGroup/BasicSR, Apache-2.0), which are ours.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from mtkd_lightning.errors import MTKDError


def shape_of(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor that tells a size of the network.

    Raises:
        MTKDError: it is not there, or has another number of dimensions.
    """
    if name not in tensors:
        raise MTKDError(f"missing {name}, which tells the size of the network")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise MTKDError(f"{name} is {shape}; it must have {dimensions} dimensions")
    return shape


def count_of(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many different parts follow ``prefix`` in the names: the length of a list of modules."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def width_of(tensors: Mapping[str, Tensor]) -> int:
    """Features that ``conv_first`` makes of an RGB image.

    Raises:
        MTKDError: it takes other images.
    """
    features, channels = shape_of(tensors, "conv_first.weight", 4)[:2]
    if channels != 3:
        raise MTKDError(f"its first convolution takes {channels} channels; supported are networks for RGB, 3 channels")
    return features


def scale_of(tensors: Mapping[str, Tensor]) -> int:
    """Scale of the pixel-shuffle upsampler ``upsample``."""
    shuffled, features = shape_of(tensors, "upsample.0.weight", 4)[:2]
    return int(isqrt(shuffled // features) ** count_of(tensors, "upsample."))


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under other names.

    Args:
        tensors: by their old names.
        names: pattern of the beginning of an old name -> what takes its place. The first that fits counts; a tensor
            that none fits keeps its name.

    Raises:
        MTKDError: two tensors for one name.
    """
    result: dict[str, Tensor] = {}
    for old, x in tensors.items():
        pattern = next((pattern for pattern in names if re.match(pattern, old)), None)
        new = re.sub(pattern, names[pattern], old, count=1) if pattern else old
        if new in result:
            raise MTKDError(f"unexpected {old}: there is a second tensor that stands for {new}")
        result[new] = x
    return result


def absorb_colour(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the 1x1 convolutions sub_mean and add_mean of EDSR-PyTorch into our mean colour.

    They were meant to be frozen, but early versions trained them
    (https://github.com/sanghyun-son/EDSR-PyTorch/issues/80). What they do beyond a mean is multiplied into conv_first
    and conv_last, which changes nothing at the borders either.

    Returns:
        the constructor's rgb_mean and image_range and the tensors of our network; without these convolutions no
        arguments and the same tensors.

    Raises:
        MTKDError: one of them is missing.
    """
    shifts = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")
    ours = {name: x for name, x in tensors.items() if name not in shifts}
    if len(ours) == len(tensors):
        return {}, ours
    for name in shifts:
        shape_of(tensors, name, 4 if name.endswith("weight") else 1)
    mix, offset, mix_back, offset_back = (tensors[name].double().squeeze() for name in shifts)
    mean = torch.linalg.solve(mix, -offset)
    image_range = 1.0 if 0 < mean.abs().max() <= 1 else 255.0
    rgb_mean = tuple(round(value / image_range, 7) for value in mean.tolist())
    used = torch.tensor(rgb_mean, dtype=torch.float64)
    exact = {
        "conv_first.weight": torch.einsum("fchw,cd->fdhw", ours["conv_first.weight"].double(), mix),
        "conv_last.weight": torch.einsum("dc,cfhw->dfhw", mix_back, ours["conv_last.weight"].double()),
        "conv_last.bias": mix_back @ ours["conv_last.bias"].double() + offset_back - image_range * used,
        "mean_shift.mean": used.view(1, 3, 1, 1),
    }
    ours |= {name: x.float() for name, x in exact.items()}
    return {"rgb_mean": rgb_mean, "image_range": image_range}, ours
