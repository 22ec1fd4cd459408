"""Networks at inference: pictures of any size in tiles, and the mean over a picture's eight symmetries."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.teachers.teacher import Ensemble

# Of windows and cells within networks that take any size: 8 in SMFANet+, 16 in DCTLSA. Tiles that cut DCTLSA's windows
# change its picture by 3 levels of 255 (root mean square), tiles that do not by 0.4.
GRID = 16


def choose_device(text: str | None) -> torch.device:
    """The device of that name; of none, the GPU if there is one.

    Raises:
        MTKDError: there is no such device.
    """
    gpus = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    if text not in (None, "cpu", *gpus):
        raise MTKDError(f"device={text}: allowed are cpu" + (", cuda, cuda:0, ..." if gpus else "; there is no GPU"))
    return torch.device(text or ("cuda" if gpus else "cpu"))


class Tiled(nn.Module):
    """A network that sees a large picture in tiles of one size, whose outputs are joined without a seam.

    Neighbouring tiles share ``overlap`` pixels or some more. The outer quarters of what they share are context alone;
    between them one tile fades into the other. A network that sees no further than overlap / 4 gives what it gives for
    the whole picture; one that sees all of it (channel attention, statistics) gives a slow change instead of a step.

    The output is float32, has no gradient, and lies where ``lr`` does; each tile goes to the network's device and back.
    A picture too large for a GPU stays on the CPU.

    Args:
        network: maps LR to SR, and may be an `Ensemble` or a `SelfEnsemble`.
        scale: of the network.
        tile: side of a tile in LR pixels; a picture that fits into one is not cut.
        overlap: of neighbouring tiles in LR pixels, less than half a tile.

    Raises:
        MTKDError: an overlap that does not fit the tile.
    """

    def __init__(self, network: nn.Module, scale: int, tile: int, overlap: int) -> None:
        super().__init__()
        if overlap < 0 or tile <= 2 * overlap:
            raise MTKDError(f"tile={tile}, overlap={overlap}: the overlap must be from 0 to less than half the tile")
        grid = math.lcm(GRID, *(getattr(part, "size_multiple", 1) for part in _parts(network)))
        if tile - overlap < grid:
            raise MTKDError(
                f"tile={tile}, overlap={overlap}: tiles advance by multiples of {grid} pixels, the windows of the "
                f"network; set tile to {overlap + grid} or more"
            )
        self.network = network
        self.members = getattr(network, "members", {})
        self.scale = scale
        self.tile = tile
        self.overlap = overlap
        self.grid = grid

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) to (b, 3, scale * h, scale * w).

        Raises:
            MTKDError: the network's output is not ``scale`` times a tile.
        """
        height, width = (self.scale * side for side in lr.shape[-2:])
        sr = torch.empty(len(lr), 3, height, width, device=lr.device)
        bottom = 0
        for rows in self.rows(lr):
            top, bottom = bottom, bottom + rows.shape[-2]
            sr[..., top:bottom, :] = rows
        return sr

    @torch.no_grad()
    def rows(self, lr: Tensor) -> Iterator[Tensor]:
        """Enlarge ``lr`` (b, c, h, w) from top to bottom, in memory for one row of tiles.

        Yields:
            The next rows (b, 3, n, scale * w) of what `forward` gives; what comes next lies in the same memory.

        Raises:
            MTKDError: as `forward`.
        """
        device = next((weight.device for part in _parts(self.network) for weight in part.parameters()), lr.device)
        columns = list(self._strips(lr.shape[-1]))
        strips = list(self._strips(lr.shape[-2]))
        band = torch.zeros(len(lr), 3, len(strips[0][1]), self.scale * lr.shape[-1], device=lr.device)
        for (top, vertical), after in zip(strips, [*(top for top, _ in strips[1:]), lr.shape[-2]], strict=True):
            for left, horizontal in columns:
                tile = lr[..., top : top + self.tile, left : left + self.tile]
                place = band[..., self.scale * left :][..., : len(vertical), : len(horizontal)]
                out = self.network(tile.to(device).contiguous(memory_format=torch.channels_last))
                if out.shape != place.shape:
                    raise MTKDError(
                        f"the network makes {tuple(out.shape)} of {tuple(tile.shape)}, not {self.scale} times the "
                        f"sides: scale={self.scale} is not its scale"
                    )
                # Weights of rows and of columns each sum to 1 everywhere, so their products do: nothing to divide by.
                place += out.to(lr.device, torch.float32) * vertical.to(lr.device)[:, None] * horizontal.to(lr.device)
            done = self.scale * (after - top)
            yield band[..., :done, :]
            if shared := band.shape[-2] - done:
                band[..., :shared, :] = band[..., done:, :].clone()
            band[..., shared:, :] = 0

    def _strips(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """First LR pixel of each row (or column) of tiles, and the weights of its SR pixels."""
        steps = max(0, -(-(size - self.tile) // self.grid))
        count = -(-steps // ((self.tile - self.overlap) // self.grid))
        # Spread evenly: one size, and no tile with more context than it needs while another has less.
        starts = [k * steps // max(count, 1) * self.grid for k in range(count + 1)]
        seams = [(start + self.tile + after) / 2 for start, after in itertools.pairwise(starts)]
        position = (torch.arange(self.scale * size) + 0.5) / self.scale
        fades = [
            torch.ones_like(position),
            *(_smoothstep((position - seam) / max(self.overlap / 2, 1e-6) + 0.5) for seam in seams),
            torch.zeros_like(position),
        ]
        for start, (fade_in, fade_out) in zip(starts, itertools.pairwise(fades), strict=True):
            yield start, (fade_in - fade_out)[self.scale * start : self.scale * (start + self.tile)]


class SelfEnsemble(nn.Module):
    """The mean of a network's pictures of the eight flips and rotations of its input, turned back.

    It is float32 and has no gradient. Run one after the other: a batch of eight would take eight times the memory.

    Args:
        network: maps LR to SR, and may be an `Ensemble` or `Tiled`; tiles of self-ensembles take the least memory.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.members = getattr(network, "members", {})
        self.scale: int | None = getattr(network, "scale", None)

    @torch.no_grad()
    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge ``lr`` (b, 3, h, w) to (b, 3, scale * h, scale * w)."""
        total = torch.zeros((), device=lr.device)
        for turns in range(4):
            for mirrored in (False, True):
                turned = lr.rot90(turns, (-2, -1))
                sr = self.network(
                    (turned.flip(-1) if mirrored else turned).contiguous(memory_format=torch.channels_last)
                ).float()
                total = total + (sr.flip(-1) if mirrored else sr).rot90(-turns, (-2, -1))
        return total / 8


def _parts(network: nn.Module) -> Iterator[nn.Module]:
    """The network and all that it is made of, an ensemble's members instead of its aggregator.

    An aggregator works on the members' pictures: its ``size_multiple`` is in their pixels, not in those of tiles.
    """
    yield network
    if isinstance(network, Ensemble):
        inner = [member.net for member in network.members.values() if member is not None]
    else:
        inner = list(network.children())
    for part in inner:
        yield from _parts(part)


def _smoothstep(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x.square() * (3 - 2 * x)
