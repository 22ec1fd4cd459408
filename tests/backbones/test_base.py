"""Mirroring, taps and the contract of a Backbone, on a network of a few lines."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_lightning.backbones.base import Backbone, Keep, Upsample, mirror_pad, uniform_taps
from mtkd_lightning.errors import MTKDError


class Tiny(Backbone):
    """Sees sides that are multiples of 4 only."""

    scale = 2
    size_multiple = 4

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.up = Upsample(2, 5)
        self.last = nn.Conv2d(5, 3, 1)

    @property
    def tap_channels(self) -> dict[str, int]:
        return uniform_taps("block", 2, 5)

    def extract(self, lr: Tensor, keep: Keep) -> Tensor:
        assert lr.shape[-2] % 4 == lr.shape[-1] % 4 == 0
        x = keep("shallow", self.conv(lr))
        x = keep("block0", x.relu())
        return keep("block1", x + 1)

    def reconstruct(self, deep: Tensor, lr: Tensor) -> Tensor:
        return self.last(self.up(deep)) + F.interpolate(lr, scale_factor=2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [0, 0, 0, 0]),
        (2, [0, 1, 0, 1]),
        (3, [0, 1, 2, 1]),
        (4, [0, 1, 2, 3]),
        (5, [0, 1, 2, 3, 4, 3, 2, 1]),
    ],
)
def test_mirror_pad_is_a_triangle_wave(size, expected):
    row = torch.arange(float(size))
    padded = mirror_pad(row.expand(1, 1, size, size), 4)
    assert padded[0, 0, 0].tolist() == expected
    assert padded[0, 0].shape == (len(expected), len(expected))
    column = mirror_pad(row[:, None].expand(1, 1, size, size), 4)
    assert column[0, 0, :, 0].tolist() == expected


def test_mirror_pad_agrees_with_reflect_where_that_works():
    x = torch.rand(2, 3, 13, 18)
    assert torch.equal(mirror_pad(x, 8), F.pad(x, (0, 6, 0, 3), mode="reflect"))


def test_mirror_pad_leaves_multiples_alone():
    x = torch.rand(1, 3, 8, 16)
    assert torch.equal(mirror_pad(x, 8), x)
    assert mirror_pad(x, 1) is x


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 8), (9, 2)])
def test_any_size_gives_exactly_scale_times_it(size):
    net = Tiny()
    sr, features = net.forward_features(torch.rand(2, 3, *size), ["deep", "shallow"])
    assert sr.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert {tap: tuple(f.shape) for tap, f in features.items()} == dict.fromkeys(("deep", "shallow"), (2, 5, *size))


def test_only_taps_asked_for_are_kept():
    net, lr = Tiny(), torch.rand(1, 3, 4, 4)
    assert list(net.forward_features(lr, [])[1]) == []
    assert list(net.forward_features(lr, ["block1", "shallow"])[1]) == ["block1", "shallow"]
    keep = Keep(["block0"])
    net.extract(lr, keep)
    assert list(keep.kept) == ["block0"]


def test_features_carry_gradients_and_match_forward():
    net, lr = Tiny(), torch.rand(1, 3, 3, 5)
    sr, features = net.forward_features(lr, net.tap_channels)
    assert torch.equal(sr, net(lr))
    assert torch.equal(features["deep"], features["block1"])
    features["block0"].sum().backward()
    assert net.conv.weight.grad.abs().sum() > 0


def test_unknown_tap_names_those_there_are():
    with pytest.raises(MTKDError, match=r"^Tiny has no tap 'grp3'; it has shallow, block0, block1, deep$"):
        Tiny().forward_features(torch.rand(1, 3, 4, 4), ["shallow", "grp3"])


def test_uniform_taps_are_in_order():
    assert list(uniform_taps("group", 3, 7).items()) == [
        ("shallow", 7),
        ("group0", 7),
        ("group1", 7),
        ("group2", 7),
        ("deep", 7),
    ]


@pytest.mark.parametrize(("scale", "names"), [(2, ["0"]), (3, ["0"]), (4, ["0", "2"])])
def test_upsample_names_and_size(scale, names):
    up = Upsample(scale, 4)
    assert sorted({name.split(".")[0] for name in up.state_dict()}) == names
    assert up(torch.rand(1, 4, 3, 5)).shape == (1, 4, 3 * scale, 5 * scale)


def test_compiled_features_too():
    """`nn.Module.compile` would leave `forward_features` as it is."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    network, lr = Tiny(), torch.rand(1, 3, 8, 8)
    sr, features = network.forward_features(lr, ["shallow", "deep"])
    network.compile(backend=backend)
    compiled, others = network.forward_features(lr, ["shallow", "deep"])
    assert graphs
    assert torch.equal(compiled, sr)
    assert all(torch.equal(others[tap], feature) for tap, feature in features.items())
    count = len(graphs)
    assert torch.equal(network(lr), sr)
    assert len(graphs) > count
