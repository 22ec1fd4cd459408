import pytest
import torch

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import l1


def test_l1_is_the_mean_absolute_error_with_its_gradient():
    sr = torch.tensor([[0.25, 0.5], [1.0, 0.0]]).view(1, 1, 2, 2).requires_grad_()
    target = torch.tensor([[0.5, 0.0], [1.0, 1.0]]).view(1, 1, 2, 2)
    loss = l1(sr, target)
    loss.backward()
    assert loss.item() == pytest.approx((0.25 + 0.5 + 0 + 1) / 4)
    assert sr.grad.flatten().tolist() == [-0.25, 0.25, 0.0, -0.25]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_l1_computes_in_float32(dtype):
    sr, target = torch.rand(2, 1, 3, 16, 16).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = l1(sr, target)
    assert loss.dtype == torch.float32
    assert loss == (sr.float() - target.float()).abs().mean()


def test_l1_does_not_broadcast():
    with pytest.raises(MTKDError, match=r"\(2, 3, 8, 8\).*\(1, 3, 8, 8\)"):
        l1(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
