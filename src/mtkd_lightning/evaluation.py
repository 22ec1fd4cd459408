"""Score networks on benchmarks, picture by picture."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_lightning.data.batches import WholePictures
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.resize import upscale
from mtkd_lightning.metrics.complexity import flops, parameters, seconds_per_megapixel
from mtkd_lightning.metrics.functional import Protocol, psnr, ssim

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


def evaluate(
    networks: Mapping[str, nn.Module], benchmarks: Mapping[str, PairedImages], scale: int, device: torch.device
) -> dict[str, Any]:
    """Score every network on every picture, in float32.

    Args:
        networks: name -> network from LR to SR, in the order of the table.
        benchmarks: name -> pictures.
        scale: of all of them; also the border that is not scored.
        device: where the networks run.

    Returns:
        ``protocol``; ``networks``: parameters, flops of one 1280x720 output (2 per multiply-add) and seconds per output
        megapixel, by name; ``images``: one record per benchmark, network and picture.
    """
    protocol = Protocol(crop_border=scale)
    images, costs = [], {}
    for name, network in networks.items():
        network.to(device).eval()
        for benchmark, pairs in benchmarks.items():
            for batch in map(WholePictures(pairs).__getitem__, range(len(pairs))):
                lr, hr = (x.to(device, torch.float32) / 255 for x in (batch.lr, batch.hr))
                with torch.inference_mode():
                    sr = network(lr)
                images.append(
                    {
                        "benchmark": benchmark,
                        "network": name,
                        "image": batch.name[0],
                        "psnr": psnr(sr, hr, protocol).item(),
                        "ssim": ssim(sr, hr, protocol).item(),
                    }
                )
        learned = not isinstance(network, Bicubic)
        with torch.inference_mode():
            costs[name] = {
                "parameters": _parameters(network),
                "flops": flops(network, 720 // scale, 1280 // scale) if learned else None,
                "seconds_per_megapixel": seconds_per_megapixel(network, lr),
            }
        log.info("Evaluated %s.", name)
    return {"protocol": str(protocol), "scale": scale, "networks": costs, "images": images}


def _parameters(network: nn.Module) -> int:
    """Count an ensemble's frozen members, too: they are what its picture costs."""
    members = getattr(network, "members", {})
    return parameters(network) + sum(parameters(member.net) for member in members.values())
