"""Tiles and self-ensembles: equal to the whole picture where they must be, without seams where they cannot."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.inference import GRID, SelfEnsemble, Tiled
from mtkd_lightning.metrics.complexity import flops, parameters
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher

SYMMETRIES = [(turns, mirrored) for turns in range(4) for mirrored in (False, True)]


class Enlarge(nn.Module):
    """Sees single pixels, and remembers what it was given: values are coordinates."""

    def __init__(self, scale: int, size_multiple: int = 1) -> None:
        super().__init__()
        self.scale = scale
        self.size_multiple = size_multiple
        self.seen: list[Tensor] = []

    def forward(self, lr: Tensor) -> Tensor:
        self.seen.append(lr)
        return F.interpolate(lr, scale_factor=self.scale)


class Glance(nn.Module):
    """Adds the mean of all that it sees, like a statistic over the picture."""

    def forward(self, lr: Tensor) -> Tensor:
        return F.interpolate(lr + lr.mean((-2, -1), keepdim=True), scale_factor=2)


def edsr(scale: int = 2, seed: int = 0) -> EDSR:
    torch.manual_seed(seed)
    return EDSR(scale, features=6, blocks=1).eval()


def coordinates(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows + columns]).float()[None]


def turn(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    image = image.rot90(turns, (-2, -1))
    return image.flip(-1) if mirrored else image


def steps(image: Tensor) -> tuple[Tensor, Tensor]:
    """Changes from row to row and from column to column."""
    return image.diff(dim=-2).abs(), image.diff(dim=-1).abs()


@pytest.mark.parametrize("overlap", [0, 1, 7, 16, 31])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 64), (63, 200), (97, 161), (129, 80)])
def test_the_weights_sum_to_one(size, overlap):
    lr = torch.rand(2, 3, *size)
    for scale in (2, 3):
        network = Enlarge(scale)
        sr = Tiled(network, scale, 64, overlap)(lr)
        assert torch.allclose(sr, F.interpolate(lr, scale_factor=scale), atol=1e-6)


@pytest.mark.parametrize(("size", "count"), [((64, 64), 1), ((65, 30), 2), ((97, 161), 8), ((97, 210), 10)])
def test_tiles_have_one_size_and_cover_the_picture(size, count):
    network = Enlarge(2)
    Tiled(network, 2, 64, 16)(coordinates(*size))
    assert len(network.seen) == count
    starts = [seen[0, :2, 0, 0].long().tolist() for seen in network.seen]
    assert all(start % GRID == 0 for pair in starts for start in pair)
    ends = torch.stack([seen[0, :2, -1, -1] for seen in network.seen]).amax(0)
    assert ends.tolist() == [size[0] - 1, size[1] - 1]
    # Less than a grid cell may be missing from the last one; networks with windows mirror it up to them.
    assert all(min(64, side) - GRID < seen for x in network.seen for side, seen in zip(size, x.shape[-2:], strict=True))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in network.seen)


@pytest.mark.parametrize(("multiple", "grid"), [(8, 16), (16, 16), (12, 48)])
def test_tiles_begin_where_windows_do(multiple, grid):
    network = Enlarge(2, multiple)
    Tiled(SelfEnsemble(network), 2, 100, 20)(torch.rand(1, 3, 100, 230))
    network.seen.clear()
    Tiled(network, 2, 100, 20)(coordinates(230, 170))
    starts = {int(x) for seen in network.seen for x in seen[0, :2, 0, 0]}
    assert all(start % grid == 0 for start in starts)
    assert len(starts) > 2


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("size", [(97, 130), (40, 201), (65, 65)])
def test_equal_to_the_whole_for_a_network_that_sees_little(size, scale):
    network, lr = edsr(scale), torch.rand(1, 3, *size)
    with torch.no_grad():
        assert torch.allclose(Tiled(network, scale, 80, 32)(lr), network(lr), atol=2e-6)


def test_equal_to_the_whole_for_a_network_of_windows():
    """The padding of the last windows, too, is that of the whole picture."""
    torch.manual_seed(0)
    network = SwinIR(2, 4, [2], [2], window_size=4).eval()
    lr = torch.rand(1, 3, 150, 203)
    with torch.no_grad():
        assert torch.allclose(Tiled(network, 2, 144, 64)(lr), network(lr), atol=2e-6)


def test_a_picture_that_fits_is_not_cut():
    network, lr = edsr(), torch.rand(1, 3, 50, 33)
    with torch.no_grad():
        whole = network(lr.contiguous(memory_format=torch.channels_last))
        assert torch.equal(Tiled(network, 2, 50, 16)(lr), whole)


def test_what_differs_between_tiles_fades():
    lr = torch.cat([torch.zeros(1, 3, 64, 104), torch.ones(1, 3, 64, 56)], -1)
    whole = Glance()(lr)
    errors = {overlap: Tiled(Glance(), 2, 96, overlap)(lr) - whole for overlap in (0, 32)}
    jump = errors[0].max() - errors[0].min()
    assert steps(errors[0])[1].max() == pytest.approx(jump.item())
    faded = errors[32].max() - errors[32].min()
    assert faded > 0.3
    # Over 16 LR pixels, which are 32 of the output; a smooth step is 1.5 times as steep as a straight one.
    assert steps(errors[32])[1].max() <= 1.5 * faded / 32 + 1e-5


def test_no_seam_in_a_photograph(shared):
    """SMFANet+, whose every block takes statistics over the picture, at x4."""
    network = SMFANetPlus(4).eval()
    tensors = torch.load(shared / "weights" / "smfanet_plus_df2k_x4.pth", map_location="cpu", weights_only=True)
    network.load_state_dict(tensors["params"])
    with Image.open(shared / "data/benchmarks/Set14/HR/comic.png") as image:
        picture = np.asarray(image)[40:120, 40:152]
    lr = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        error = 255 * (Tiled(network, 4, 64, 16)(lr) - network(lr))
    assert 0.1 < error.square().mean().sqrt() < 2
    rows, columns = steps(error)
    # Two rows of tiles that begin at 0 and 16, two columns at 0 and 48: the seams are in the middle of what they share.
    at_seams = torch.cat([rows[..., 4 * 40 - 1, :].flatten(), columns[..., 4 * 56 - 1].flatten()])
    everywhere = torch.cat([rows.flatten(), columns.flatten()])
    assert at_seams.square().mean() < 1.2 * everywhere.square().mean()
    assert at_seams.max() < everywhere.max()


def test_self_ensemble_is_the_mean_of_eight():
    network, lr = edsr(), torch.rand(2, 3, 9, 14)
    with torch.no_grad():
        pictures = [
            turn(network(turn(lr, *symmetry)), 0, symmetry[1]).rot90(-symmetry[0], (-2, -1)) for symmetry in SYMMETRIES
        ]
    assert (pictures[0] - pictures[3]).abs().max() > 1e-3
    assert torch.allclose(SelfEnsemble(network)(lr), torch.stack(pictures).mean(0), atol=1e-6)


@pytest.mark.parametrize(("turns", "mirrored"), SYMMETRIES)
def test_self_ensemble_turns_with_its_input(turns, mirrored):
    network, lr = SelfEnsemble(edsr()), torch.rand(1, 3, 7, 12)
    assert torch.allclose(network(turn(lr, turns, mirrored)), turn(network(lr), turns, mirrored), atol=1e-6)


def test_self_ensemble_runs_one_picture_at_a_time_and_leaves_its_input():
    network, lr = Enlarge(1), torch.rand(1, 3, 5, 8)
    before = lr.clone()
    assert torch.allclose(SelfEnsemble(network)(lr), lr, atol=1e-6)
    assert torch.equal(lr, before)
    assert sorted({tuple(seen.shape) for seen in network.seen}) == [(1, 3, 5, 8), (1, 3, 8, 5)]
    assert len(network.seen) == 8


def test_they_compose():
    network, lr = edsr(), torch.rand(1, 3, 70, 90)
    whole = SelfEnsemble(network)(lr)
    assert torch.allclose(Tiled(SelfEnsemble(network), 2, 64, 24)(lr), whole, atol=2e-6)
    assert torch.allclose(SelfEnsemble(Tiled(network, 2, 64, 24))(lr), whole, atol=2e-6)
    assert SelfEnsemble(Tiled(network, 2, 64, 24)).scale == SelfEnsemble(network).scale == 2


def test_an_ensemble_in_tiles():
    members = {name: Teacher(edsr(seed=seed)) for name, seed in (("a", 0), ("b", 1))}
    ensemble = Ensemble(members, Mean(2, 2))
    lr = torch.rand(1, 3, 70, 90)
    for wrapped in (Tiled(ensemble, 2, 64, 24), Tiled(SelfEnsemble(ensemble), 2, 64, 24)):
        assert wrapped.members == members
        assert wrapped(lr).shape == (1, 3, 140, 180)
    assert torch.allclose(Tiled(ensemble, 2, 64, 24)(lr), ensemble(lr), atol=2e-6)
    members["c"] = Teacher(SwinIR(2, 4, [2], [2], window_size=5))
    assert Tiled(SelfEnsemble(Ensemble(members, Mean(2, 3))), 2, 240, 24).grid == 80


def test_output_is_float32_without_gradient():
    lr = torch.rand(1, 3, 70, 40)
    for wrapped in (Tiled(edsr(), 2, 64, 16), SelfEnsemble(edsr())):
        assert not wrapped(lr).requires_grad
    assert Tiled(edsr().bfloat16(), 2, 64, 16)(lr.bfloat16()).dtype == torch.float32
    sr = SelfEnsemble(edsr().bfloat16())(lr.bfloat16())
    assert sr.dtype == torch.float32
    assert (sr.bfloat16() != sr).any()


def test_costs_are_counted_through_them():
    network = edsr()
    assert parameters(Tiled(network, 2, 64, 16)) == parameters(network)
    assert flops(SelfEnsemble(network), 20, 30) == 8 * flops(network, 20, 30)
    assert flops(Tiled(network, 2, 64, 16), 64, 112) == 2 * flops(network, 64, 64)


@pytest.mark.gpu
def test_a_picture_stays_on_the_cpu():
    network, lr = edsr(), torch.rand(1, 3, 70, 90)
    expected = Tiled(network, 2, 64, 24)(lr)
    for wrapped in (network, Ensemble({"a": Teacher(network)}, Mean(2, 1)), SelfEnsemble(network)):
        sr = Tiled(wrapped.cuda(), 2, 64, 24)(lr)
        assert sr.device.type == "cpu"
        assert torch.allclose(sr, expected, atol=1e-3) or isinstance(wrapped, SelfEnsemble)
    assert Tiled(network, 2, 64, 24)(lr.cuda()).is_cuda


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (32, 16, "tile=32, overlap=16: the overlap must be from 0 to less than half the tile"),
        (64, -1, "overlap must be from 0"),
        (0, 0, "overlap must be from 0"),
        (20, 8, "multiples of 16 pixels, the windows of the network; set tile to 24 or more"),
    ],
)
def test_tiles_that_cannot_be(tile, overlap, message):
    with pytest.raises(MTKDError, match=message):
        Tiled(edsr(), 2, tile, overlap)


def test_another_scale_than_the_network_has():
    message = r"makes \(1, 3, 128, 128\) of \(1, 3, 64, 64\), not 3 times the sides: scale=3 is not its scale"
    with pytest.raises(MTKDError, match=message):
        Tiled(edsr(2), 3, 64, 16)(torch.rand(1, 3, 70, 90))
