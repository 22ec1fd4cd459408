"""Size and arithmetic of a network."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included, shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: nn.Module, height: int, width: int) -> int:
    """Floating point operations of one forward on one LR picture, two for each multiply-add.

    Counts convolutions and matrix products, those of attention included; element-wise work is left out.
    Counted on shapes alone, so that large networks cost nothing; only a network that looks at values, or
    holds tensors that are no parameters or buffers, is run, on its own device. The network is not changed.
    """
    weight = next(network.parameters(), torch.empty(0))
    try:
        return _count(_on_meta(network), torch.zeros(1, 3, height, width, dtype=weight.dtype, device="meta"))
    except (RuntimeError, TypeError):
        return _count(
            copy.deepcopy(network), torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
        )


def _on_meta(network: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have shapes but no memory."""
    swapped: dict[int, Tensor] = {}
    for parameter in network.parameters():
        swapped[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in network.buffers():
        swapped[id(buffer)] = buffer.to("meta")
    # Tensors found in the memo are taken as copied already, so that no weight is. An ensemble's members follow it.
    return copy.deepcopy(network, swapped).to("meta")


@torch.no_grad()
def _count(network: nn.Module, lr: Tensor) -> int:
    # The fused attention of CPUs is one operator that the counter does not know: it would count as nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval()(lr)
    return int(counter.get_total_flops())
