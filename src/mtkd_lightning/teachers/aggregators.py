"""Aggregators without parameters; built with ``scale`` and ``members`` like those that learn."""

from torch import Tensor, nn


class Mean(nn.Module):
    """The average of the members' images, which a learned aggregator has to beat."""

    def __init__(self, scale: int, members: int) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        """(b, k, 3, H, W) to (b, 3, H, W)."""
        return images.mean(1)
