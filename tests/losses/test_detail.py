import pytest
import torch

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.detail import DetailLoss
from mtkd_lightning.losses.pixel import l1

BLOCK = 4


@pytest.fixture
def pair():
    return torch.rand(2, 2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


def test_what_blocks_have_in_common_counts_little(pair):
    sr, target = pair
    offsets = torch.arange(24.0).view(1, 1, 4, 6).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    loss = DetailLoss(BLOCK, low_weight=0.01)
    assert loss(target + offsets, target).item() == pytest.approx(0.01 * 11.5, rel=1e-5)
    alone = DetailLoss(BLOCK, low_weight=0)
    assert alone(sr + offsets, target).item() == pytest.approx(alone(sr, target).item(), rel=1e-4)


def test_without_means_it_is_l1(pair):
    sr, target = pair
    blocks = (sr - target).unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    detail = (blocks - blocks.mean((-1, -3), keepdim=True)).flatten(-4, -3).flatten(-2)
    assert DetailLoss(BLOCK)(target + detail, target).item() == pytest.approx(l1(target + detail, target).item())


def test_its_gradient_leaves_the_means_alone(pair):
    """But for the little that the term of the means has."""
    for low_weight in (0.0, 0.01):
        sr = pair[0].clone().requires_grad_()
        DetailLoss(BLOCK, low_weight)(sr, pair[1]).backward()
        means = torch.nn.functional.avg_pool2d(sr.grad, BLOCK) * sr.numel()
        assert means.abs().max().item() == pytest.approx(low_weight, abs=1e-6)
        assert sr.grad.abs().max() * sr.numel() > 0.5


def test_blocks_at_the_border_hold_what_is_left(pair):
    sr, target = pair[..., :13, :22]
    error = sr - target
    means = torch.empty_like(error)
    for top in range(0, 13, BLOCK):
        for left in range(0, 22, BLOCK):
            window = (..., slice(top, top + BLOCK), slice(left, left + BLOCK))
            means[window] = error[window].mean((-1, -2), keepdim=True)
    expected = (error - means).abs().mean() + 0.01 * means.abs().mean()
    assert DetailLoss(BLOCK)(sr, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_computes_in_float32(pair, dtype):
    sr, target = pair.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DetailLoss(BLOCK)(sr, target)
    assert loss.dtype == torch.float32
    assert loss == DetailLoss(BLOCK)(sr.float(), target.float())


def test_bad_input():
    with pytest.raises(MTKDError, match="block=1; it needs 2 pixels or more"):
        DetailLoss(1)
    with pytest.raises(MTKDError, match="low_weight=nan; a weight is 0 or more"):
        DetailLoss(low_weight=float("nan"))
    with pytest.raises(MTKDError, match=r"\(2, 3, 8, 8\).*\(1, 3, 8, 8\)"):
        DetailLoss()(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
