"""Aggregators without parameters."""

import pytest
import torch

from mtkd_lightning.teachers.aggregators import Mean


@pytest.mark.parametrize("members", [1, 2, 4])
def test_mean(members):
    mean = Mean(scale=2, members=members)
    images = torch.rand(2, members, 3, 5, 6)
    assert not list(mean.parameters())
    assert torch.allclose(mean(images), sum(images.unbind(1)) / members)
