"""What every super-resolution network is, and the parts that several of them share.

Provenance: the mean shift and the pixel-shuffle upsampler are those of EDSR (Lim et al., CVPRW 2017,
https://arxiv.org/abs/1707.02921; reference code MIT), with the tensor names of BasicSR (Apache-2.0).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K, range 0..1."""


class Keep:
    """Stores the features that were asked for and passes all of them on.

    ``x = keep("group3", group(x))`` costs nothing if nobody asked for group3. A kept tensor must not be
    changed in place afterwards.

    Attributes:
        kept: what was stored so far, by tap.
    """

    def __init__(self, taps: Iterable[str] = ()) -> None:
        self.taps = frozenset(taps)
        self.kept: dict[str, Tensor] = {}

    def __call__(self, tap: str, x: Tensor) -> Tensor:
        """The tensor itself."""
        if tap in self.taps:
            self.kept[tap] = x
        return x


@dataclass(frozen=True)
class Published:
    """What the tensors of a weights file say about the network that they belong to.

    Attributes:
        arguments: of the backbone's constructor, as far as the tensors tell.
        tensors: under the names of our network, values in its ranges.
        unknown: arguments that the tensors do not tell -> what published networks have there, for the message.
        assumed: arguments that are those of the published network of this size, and not in the tensors.
    """

    arguments: dict[str, Any]
    tensors: dict[str, Tensor]
    unknown: dict[str, str] = field(default_factory=dict)
    assumed: frozenset[str] = frozenset()


class Backbone(nn.Module, ABC):
    """A super-resolution network: a body that extracts features and a head that reconstructs the image.

    An author writes ``extract``, ``reconstruct`` and ``tap_channels`` and sets ``scale``. Images are
    (b, 3, h, w) in 0..1 on both sides, of any size from 1x1 on: the author's methods see sides that are multiples
    of ``size_multiple``, the caller gets exactly ``scale`` times what was given.
    """

    scale: int
    size_multiple: int = 1

    @property
    @abstractmethod
    def tap_channels(self) -> dict[str, int]:
        """Channels of every feature that can be asked for, in the order of computation."""

    @abstractmethod
    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        """Deep feature (b, c, h, w) of an image, behind the skip around the body.

        The author passes every tap but "deep" through ``keep``.
        """

    @abstractmethod
    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        """Image (b, 3, scale * h, scale * w) from a deep feature of this or another network.

        Differentiable in ``deep``. ``lr`` is there for networks that add an enlarged input.
        """

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> Published | None:
        """Recognise the weights of a network of this kind by names and shapes; None for those of another kind.

        Raises:
            MTKDError: it is this kind, in a variant that is not supported.
        """
        return None

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge an image by ``scale``; not clamped.

        Raises:
            MTKDError: it is no batch of RGB pictures in floating point.
        """
        return self._run(lr, Keep())

    def forward_features(self, lr: Tensor, taps: Iterable[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Enlarge an image and give the features named in ``taps`` too, each (b, tap_channels[tap], h, w).

        Gradients flow through the features.

        Raises:
            MTKDError: a tap that the network does not have.
        """
        taps = tuple(taps)
        self.check_taps(taps)
        keep = Keep(taps)
        sr = self._run(lr, keep)
        height, width = lr.shape[-2:]
        return sr, {tap: keep.kept[tap][..., :height, :width] for tap in taps}

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile, as ``nn.Module.compile``, what `forward` and `forward_features` both run."""
        self._run = torch.compile(self._run, *arguments, **options)  # type: ignore[method-assign]

    def check_taps(self, taps: Iterable[str]) -> None:
        """Refuse a tap that the network does not have.

        Raises:
            MTKDError: says which there are.
        """
        for tap in taps:
            if tap not in self.tap_channels:
                known = _listing(self.tap_channels)
                raise MTKDError(f"{type(self).__name__} has no tap '{tap}'; it has {known}")

    def _run(self, lr: Tensor, keep: Keep) -> Tensor:
        if lr.ndim != 4 or lr.shape[1] != 3 or not lr.is_floating_point():
            raise MTKDError(
                f"{type(self).__name__} takes RGB pictures in 0..1 as floating point (b, 3, h, w), and got {lr.dtype} "
                f"{tuple(lr.shape)}: lr[None] makes one picture a batch, lr / 255 brings bytes to 0..1"
            )
        height, width = lr.shape[-2:]
        lr = mirror_pad(lr, self.size_multiple)
        sr = self.reconstruct(keep("deep", self.extract(lr, keep)), lr)
        return sr[..., : height * self.scale, : width * self.scale]


class MeanShift(nn.Module):
    """The range that a network works in: a mean colour removed, then multiplied by ``image_range``.

    The mean is in the state dict only if it is not DIV2K's or came with loaded weights, which may hold one or not.
    """

    mean: Tensor

    def __init__(self, image_range: float, rgb_mean: Sequence[float] = RGB_MEAN) -> None:
        super().__init__()
        self.image_range = image_range
        mean = torch.tensor(rgb_mean, dtype=torch.float32).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=tuple(rgb_mean) != RGB_MEAN)
        self.register_load_state_dict_pre_hook(_bring_mean)  # type: ignore[no-untyped-call]

    def remove(self, image: Tensor) -> Tensor:
        """From an image in 0..1 to the network's range."""
        return (image - self.mean) * self.image_range

    def restore(self, x: Tensor) -> Tensor:
        """From the network's range to an image in 0..1."""
        return x / self.image_range + self.mean


class Upsample(nn.Sequential):
    """Enlarges features by 2, 3 or 4 with convolutions and pixel shuffles; 4 is twice 2."""

    def __init__(self, scale: int, features: int) -> None:
        step = 3 if scale == 3 else 2
        layers: list[nn.Module] = []
        for _ in range(scale // step):
            layers += [conv3x3(features, features * step**2), nn.PixelShuffle(step)]
        super().__init__(*layers)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def mirror_pad(image: Tensor, multiple: int) -> Tensor:
    """Mirror the last two sides, to the right and bottom, up to the next multiple; for any size from 1x1 on.

    The edge itself is not repeated (0 1 2 1 0 1 ...), so padding by less than the size is torch's "reflect".
    """
    for side in (-2, -1):
        size = image.shape[side]
        # An exported graph serves every size: it has no branch on it.
        if multiple > 1 and (exporting() or size % multiple):
            image = mirror_to(image, side, (size + multiple - 1) // multiple * multiple)
    return image


def mirror_to(image: Tensor, side: int, size: int) -> Tensor:
    """Mirror one side, to its end, up to ``size`` pixels."""
    # As a tensor: the exporter to ONNX takes no remainder of a size.
    period = torch.full((1,), torch.sym_max(2 * (image.shape[side] - 1), 1), device=image.device)
    position = torch.arange(size, device=image.device) % period
    return image.index_select(side, torch.minimum(position, period - position))


def exporting() -> bool:
    """Whether `torch.export` traces this call, for pictures of every size."""
    return torch.compiler.is_compiling() and torch.compiler.is_exporting()  # the latter is not in torch 2.6


def check_scale(network: nn.Module, scale: int) -> None:
    """Refuse a scale that the pixel-shuffle upsamplers are not made for."""
    if scale not in (2, 3, 4):
        raise MTKDError(f"{type(network).__name__} has no scale {scale}; set scale to 2, 3 or 4")


def uniform_taps(unit: str, count: int, channels: int) -> dict[str, int]:
    """Tap channels of a network whose features all have the same width."""
    return dict.fromkeys(["shallow", *(f"{unit}{k}" for k in range(count)), "deep"], channels)


def _bring_mean(shift: MeanShift, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    name = f"{prefix}mean"
    if name not in state and shift.state_dict():
        state[name] = shift.mean
    if name in state and state[name].shape == shift.mean.shape:
        shift.register_buffer("mean", shift.mean)


def _listing(taps: Iterable[str]) -> str:
    names = list(taps)
    return ", ".join(names if len(names) <= 6 else [*names[:2], "...", *names[-2:]])
