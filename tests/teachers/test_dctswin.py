"""DCTSwin: equal to the released network; the repaired one starts at the mean of its members."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from scipy.fft import dctn

from mtkd_lightning.backbones.base import RGB_MEAN
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.teachers.dctswin import DCTBlock, DCTSwin, dct_matrices

SMALL = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
REPAIRED = {"orthonormal": True, "mask": False, "mean_skip": True}

# The attention of this network is almost hard (logits of 3e4 from the transform that is not normalised), so rounding
# shows: the golden outputs, made in float32, are themselves up to 6e-3 from the same network in float64.
TOLERANCE = 5e-3


def golden(shared, scale, **options):
    """Largest relative difference of our raw output from the released network's."""
    entry = json.loads((shared / "golden" / "index.json").read_text())[f"dctswin_x{scale}"]
    tensors = load_file(shared / "golden" / f"dctswin_x{scale}.safetensors")
    net = DCTSwin(scale, 3, **{key: entry["config"][key] for key in SMALL}, **options).eval()
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    assert sum(p.numel() for p in net.parameters()) == entry["parameters"]
    assert net.state_dict().keys() == weights.keys()
    net.load_state_dict(weights)
    images, output = tensors["input"].unflatten(1, (3, 3)), tensors["output"]
    with torch.no_grad():
        fused = net.raw(images)
        image = net(images)
    assert torch.allclose(image, fused / 255 + torch.tensor(RGB_MEAN).view(3, 1, 1))
    differences = [(raw.detach() - output).abs().max() / output.abs().max() for raw in (fused, net.raw(images))]
    return max(difference.item() for difference in differences)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equal_to_the_released_network(shared, scale):
    assert golden(shared, scale) < TOLERANCE


@pytest.mark.parametrize("change", [{"mask": False}, {"orthonormal": True}])
def test_the_oddities_are_what_the_released_network_has(shared, change):
    assert golden(shared, 2, **change) > 20 * TOLERANCE


def test_parameter_count_is_the_published_one():
    with torch.device("meta"):
        net = DCTSwin(4, 3)
    assert sum(p.numel() for p in net.parameters()) == 1_335_603


def test_cosine_transform_is_scipys():
    windows = torch.rand(8, 8, dtype=torch.float64)
    for orthonormal in (False, True):
        dct, idct = dct_matrices(8, orthonormal)
        expected = torch.from_numpy(dctn(windows.numpy(), norm="ortho" if orthonormal else None))
        assert torch.allclose((dct @ windows.flatten()).view(8, 8), expected)
        assert torch.allclose(idct @ dct, torch.eye(64, dtype=torch.float64))
    assert torch.allclose(dct.T, idct)


def test_masks():
    shifted = DCTBlock(4, 2, 8, True, 2, 0.0, orthonormal=False, mask=True)
    inside, column, row, corner = shifted.masks != 0
    assert not inside.any()
    assert column.float().mean() == row.float().mean() == pytest.approx(610 / 4096)
    assert corner.float().mean() == pytest.approx(1062 / 4096)
    unshifted = DCTBlock(4, 2, 8, False, 2, 0.0, orthonormal=False, mask=True)
    parted = torch.zeros(64, 64, dtype=torch.bool)
    parted[0, 1:] = parted[1:, 0] = True
    assert torch.equal(unshifted.masks[0] != 0, parted)
    assert len(unshifted.masks) == 1
    assert DCTBlock(4, 2, 8, True, 2, 0.0, orthonormal=True, mask=False).masks is None


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_repaired_starts_exactly_at_the_mean(members, scale):
    net = DCTSwin(scale, members, **SMALL, **REPAIRED)
    images = torch.rand(2, members, 3, 5 * scale, 7 * scale)
    assert torch.equal(net(images), images.mean(1))


def test_repaired_learns():
    torch.manual_seed(0)
    net = DCTSwin(2, 2, **SMALL, **REPAIRED, drop_path_rate=0.0)
    images = torch.rand(1, 2, 3, 16, 16, requires_grad=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    target = torch.rand(1, 3, 16, 16)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (net(images) - target).abs().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad.abs().max() > 0 for p in net.parameters())
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (35, 18)])
@pytest.mark.parametrize("options", [{}, REPAIRED])
def test_any_size(size, options):
    net = DCTSwin(2, 3, **SMALL, **options).eval()
    images = torch.rand(1, 3, 3, *size)
    out = net(images)
    assert out.shape == (1, 3, *size)
    assert out.isfinite().all()


def test_a_fresh_released_network_gives_grey():
    torch.manual_seed(0)
    out = DCTSwin(2, 3, **SMALL).eval()(torch.rand(1, 3, 3, 16, 16))
    assert (out - torch.tensor(RGB_MEAN).view(3, 1, 1)).abs().max() < 0.01


def test_order_of_members_matters():
    torch.manual_seed(0)
    net = DCTSwin(2, 2, **SMALL).eval()
    images = torch.rand(1, 2, 3, 16, 16)
    assert not torch.allclose(net.raw(images), net.raw(images.flip(1)), atol=1e-3)


@pytest.mark.parametrize("options", [{}, REPAIRED])
def test_channels_last_bf16_and_copies(options):
    torch.manual_seed(0)
    net = DCTSwin(2, 3, **SMALL, **options).eval()
    images = torch.rand(1, 3, 3, 16, 16)
    expected = copy.deepcopy(net)(images)
    net.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(images)
    assert torch.allclose(out.float(), expected, atol=0.05)
    out.float().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_batch_is_its_pictures():
    torch.manual_seed(0)
    net = DCTSwin(2, 2, **SMALL, orthonormal=True, mask=True).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.rand(3, 2, 3, 32, 48)
    with torch.no_grad():
        batch, alone = net(images), torch.cat([net(image[None]) for image in images])
    assert torch.allclose(batch, alone, atol=1e-4)
    assert torch.allclose(batch, net(images), atol=1e-4)


def test_errors():
    with pytest.raises(MTKDError, match="cannot aggregate 0 members; set members to 1 or more"):
        DCTSwin(2, 0, **SMALL)
    with pytest.raises(MTKDError, match="DCTSwin has no scale 5"):
        DCTSwin(5, 3, **SMALL)
    with pytest.raises(MTKDError, match="cannot split embed_dim 12 into 5 heads"):
        DCTSwin(2, 3, 12, [2], [5])
    with pytest.raises(MTKDError, match="is for the images of 3 members, not 2"):
        DCTSwin(2, 3, **SMALL)(torch.rand(1, 2, 3, 16, 16))
