"""Score networks on benchmarks, picture by picture."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.resize import upscale
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.metrics.complexity import flops, parameters
from mtkd_lightning.metrics.functional import SSIM_SIDE, Protocol, psnr, quantize, ssim
from mtkd_lightning.teachers.teacher import Ensemble
from mtkd_lightning.typing import SRBatch, floats

log = logging.getLogger(__name__)


class Bicubic(nn.Module):
    """MATLAB's bicubic enlargement, the row that every network has to beat."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) in 0..1, a picture of 256 levels, as such pictures are enlarged."""
        pictures = (lr * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        sr = torch.stack([torch.from_numpy(upscale(picture, self.scale)) for picture in pictures])
        return sr.permute(0, 3, 1, 2).to(lr) / 255


def protocol_of(benchmark: str, scale: int) -> Protocol:
    """How the field scores a benchmark: Y with a border of the scale; DIV2K's validation set in RGB.

    DIV2K's border of scale + 2 is that of the EDSR authors' published code, with which its figures are compared.
    """
    if benchmark.startswith("DIV2K"):
        return Protocol(crop_border=scale + 2, luma=False)
    return Protocol(crop_border=scale)


def refuse_small(pairs: PairedImages, lr_sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse pictures that leave SSIM no window inside the border, before any is scored.

    Raises:
        MTKDError: names the first.
    """
    needed = SSIM_SIDE + 2 * pairs.scale
    for pair, size in zip(pairs.pairs, lr_sizes, strict=True):
        if (side := min(size) * pairs.scale) < needed:
            raise MTKDError(
                f"{pair.hr} has a side of {side} pixels; scoring needs {needed} ({SSIM_SIDE} for SSIM, {pairs.scale} "
                "for the border on each side): remove it"
            )


def evaluate(
    networks: Mapping[str, nn.Module],
    benchmarks: Mapping[str, PairedImages],
    scale: int,
    device: torch.device,
    *,
    save: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score every network on every picture, in float32.

    A network that takes teachers' pictures is scored where there are such. An ensemble merges the pictures of members
    that come before it, instead of making them again.

    Args:
        networks: name -> network from LR to SR, in the order of the table.
        benchmarks: name -> pictures.
        scale: of all of them; also the border that is not scored.
        device: where the networks run.
        save: folder for the networks' pictures, <network>/<benchmark>/<picture>.png.
        progress: called with the number of pictures done and of all.

    Returns:
        ``protocols`` by benchmark; ``networks``: parameters, flops of one 1280x720 output (2 per multiply-add) and
        seconds per output megapixel, by name: the median over pictures without the first; an ensemble's include its
        members'. ``images``: one record per benchmark, network and picture.
    """
    protocols = {name: protocol_of(name, scale) for name in benchmarks}
    for network in networks.values():
        network.to(device).eval()
    total = sum(map(len, benchmarks.values()))
    took: dict[str, list[float]] = {name: [] for name in networks}
    images, done = [], 0
    for benchmark, pairs in benchmarks.items():
        for index in range(len(pairs)):
            batch = on_device(WholePictures(pairs)[index], device)
            for name, sr, seconds in enlarge_all(networks, batch):
                if sr is None:
                    continue
                took[name].append(seconds / (batch.hr.shape[-2] * batch.hr.shape[-1] / 1e6))
                images.append(
                    {
                        "benchmark": benchmark,
                        "network": name,
                        "image": batch.name[0],
                        "psnr": psnr(sr, batch.hr, protocols[benchmark]).item(),
                        "ssim": ssim(sr, batch.hr, protocols[benchmark]).item(),
                    }
                )
                if save is not None:
                    picture = quantize(sr[0]).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
                    write_png(save / name / benchmark / f"{batch.name[0]}.png", picture)
            done += 1
            progress(done, total)
    costs = {name: _costs(network, took[name], scale) for name, network in networks.items()}
    return {
        "protocols": {name: str(protocol) for name, protocol in protocols.items()},
        "scale": scale,
        "networks": costs,
        "images": images,
    }


def float32_convolutions() -> AbstractContextManager[None]:
    """Keep a GPU from convolving in TF32, of 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def enlarge_all(networks: Mapping[str, nn.Module], batch: SRBatch) -> Iterator[tuple[str, Tensor | None, float]]:
    """Name, picture and seconds of each network in turn; an ensemble merges what its members before it have made."""
    made: dict[nn.Module, tuple[Tensor | None, float]] = {}
    for name, network in networks.items():
        made[network] = _reusing(made, network, batch)
        yield name, *made[network]


@torch.inference_mode()
def _reusing(
    made: Mapping[nn.Module, tuple[Tensor | None, float]], network: nn.Module, batch: SRBatch
) -> tuple[Tensor | None, float]:
    """Enlarge a picture, merging what an ensemble's members have made; with the seconds, those of members included."""
    before, there = 0.0, []
    if isinstance(network, Ensemble):
        there = [made[member.net] for member in network.members.values() if member and member.net in made]
    images = [image for image, _ in there if image is not None]
    reused = bool(images) and len(images) == len(network.members)  # type: ignore[arg-type]
    _wait(batch.lr.device)
    start = time.perf_counter()
    if reused:
        before = sum(seconds for _, seconds in there)
        with float32_convolutions():
            sr: Tensor | None = network.merge(images)  # type: ignore[operator]
    else:
        sr = enlarge(network, batch)
    _wait(batch.lr.device)
    return sr, before + time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def enlarge(network: nn.Module, batch: SRBatch) -> Tensor | None:
    """Run a network in float32, or give None if it takes teachers' pictures and the batch has none."""
    with float32_convolutions():
        if not getattr(network, "takes_pictures", False):
            sr: Tensor = network(batch.lr)
            return sr
        return None if batch.teacher_sr is None else network(batch.lr, batch.teacher_sr)


def glance(
    networks: Sequence[nn.Module], pairs: PairedImages, device: torch.device, *, most: int = 4, side: int = 64
) -> list[float]:
    """PSNR-Y in dB of each network on the middle (LR ``side`` squared) of the first few pictures.

    Args:
        networks: from LR to SR.
        pairs: pictures that they may be tried on, with teachers' pictures for networks that take such.
        device: where they run.
        most: pictures at most.
        side: of the middle, in LR pixels.
    """
    protocol = Protocol(crop_border=pairs.scale)
    scores: list[list[float]] = [[] for _ in networks]
    for index in range(min(most, len(pairs))):
        batch = _middle(on_device(WholePictures(pairs)[index], device), pairs.scale, side)
        for network, psnrs in zip(networks, scores, strict=True):
            if (sr := enlarge(network.to(device).eval(), batch)) is not None:
                psnrs.append(psnr(sr, batch.hr, protocol).item())
    return [fmean(psnrs) for psnrs in scores]


def _middle(batch: SRBatch, scale: int, side: int) -> SRBatch:
    height, width = (min(side, n) for n in batch.lr.shape[-2:])
    top, left = (batch.lr.shape[-2] - height) // 2, (batch.lr.shape[-1] - width) // 2

    def cut(x: Tensor, s: int) -> Tensor:
        return x[..., s * top : s * (top + height), s * left : s * (left + width)]

    made = None if batch.teacher_sr is None else cut(batch.teacher_sr, scale)
    return SRBatch(cut(batch.lr, 1), cut(batch.hr, scale), batch.name, made)


def on_device(batch: SRBatch, device: torch.device) -> SRBatch:
    """A loader's batch as networks take it."""
    lr, hr, name, made = batch
    return floats(SRBatch(lr.to(device), hr.to(device), name, None if made is None else made.to(device)))


def _costs(network: nn.Module, took: Sequence[float], scale: int) -> dict[str, Any]:
    given = getattr(network, "takes_pictures", False)
    return {
        "parameters": _parameters(network),
        "flops": None if given or isinstance(network, Bicubic) else flops(network, 720 // scale, 1280 // scale),
        "seconds_per_megapixel": None if given else median(took[1:] or took),  # without the warm-up
    }


def _parameters(network: nn.Module) -> int:
    """Count an ensemble's frozen members, too: they are what its picture costs."""
    members = getattr(network, "members", {})
    return parameters(network) + sum(parameters(member.net) for member in members.values() if member)
