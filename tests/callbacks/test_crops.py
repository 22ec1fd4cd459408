import torch

from mtkd_lightning.callbacks.crops import most_detailed


def test_the_region_is_where_a_picture_varies():
    hr = torch.full((1, 3, 64, 96), 0.5)
    hr[..., 32:48, 64:80] = torch.rand(3, 16, 16)
    rows, columns = most_detailed(hr, 16)
    assert (rows, columns) == (slice(32, 48), slice(64, 80))


def test_a_small_picture_is_its_own_region():
    assert most_detailed(torch.rand(1, 3, 20, 31), 96)[0] == slice(0, 20)
