import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtkd_lightning.metrics.complexity import flops, parameters
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher


class Convolutional(nn.Module):
    def __init__(self, features=8, scale=2):
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.depthwise = nn.Conv2d(features, features, 3, padding=1, groups=features)
        self.tail = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 1), nn.PixelShuffle(scale))
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, lr):
        return self.tail(self.depthwise(self.head(lr - self.mean))) + self.mean


def convolutional_flops(height, width, features=8, scale=2):
    return 2 * height * width * (3 * features * 9 + features * 9 + features * 3 * scale**2)


def plain_attention(query, key, value):
    return (query @ key.mT).softmax(-1) @ value


class Attention(nn.Module):
    def __init__(self, width=8, heads=2, fused=True):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.embed = nn.Conv2d(3, width, 1)
        self.qkv = nn.Linear(width, 3 * width)
        self.tail = nn.Conv2d(width, 3, 1)

    def forward(self, lr):
        x = self.embed(lr)
        b, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).mT).view(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind()
        attend = F.scaled_dot_product_attention if self.fused else plain_attention
        x = attend(query, key, value)
        return self.tail(x.transpose(1, 2).reshape(b, h * w, c).mT.view(b, c, h, w))


def attention_flops(height, width, channels=8):
    pixels = height * width
    return 2 * (pixels * channels * (3 + 3 * channels + 3) + 2 * pixels**2 * channels)


class LooksAtValues(Attention):
    """Runs on real values only, and counts its forwards."""

    calls = 0

    def forward(self, lr):
        self.calls += 1
        return super().forward(lr) if lr.mean().item() < 1 else lr


class HoldsPlainTensor(Convolutional):
    def __init__(self):
        super().__init__()
        self.offset = torch.ones(1, 3, 1, 1)

    def forward(self, lr):
        return super().forward(lr + self.offset)


def test_parameters_counts_frozen_and_shared_once():
    network = Convolutional()
    expected = (27 * 8 + 8) + (9 * 8 + 8) + (8 * 12 + 12)
    assert parameters(network) == expected
    assert parameters(network.requires_grad_(False)) == expected
    assert parameters(nn.ModuleList([network, network])) == expected


@pytest.mark.parametrize("size", [(6, 10), (9, 7)])
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Convolutional(), convolutional_flops),
        (HoldsPlainTensor(), convolutional_flops),
        (Attention(fused=True), attention_flops),
        (Attention(fused=False), attention_flops),
        (LooksAtValues(), attention_flops),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_flops_equal_a_count_by_hand(network, expected, size):
    assert flops(network, *size) == expected(*size)
    assert flops(network.requires_grad_(False).to(torch.float64), *size) == expected(*size)


def test_flops_of_the_attention_module_of_torch():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.embed = nn.Conv2d(3, 4, 1)

        def forward(self, lr):
            tokens = self.embed(lr).flatten(2).mT
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    pixels = 30
    assert flops(Network(), 5, 6) == 2 * (pixels * 4 * (3 + 12 + 4) + 2 * pixels**2 * 4)


def test_flops_leaves_the_network_as_it_was():
    for network in (nn.Sequential(Convolutional(), nn.BatchNorm2d(3)), LooksAtValues()):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        flops(network, 6, 6)
        assert network.training
        assert all(parameter.requires_grad for parameter in network.parameters())
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert network.calls == 0


def test_flops_of_a_large_network_cost_nothing():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 4096, 3, padding=1), *[nn.Conv2d(4096, 4096, 3)] * 4)
    assert flops(network, 1080, 1920) > 10**15


def test_flops_shows_the_error_of_a_network_that_cannot_run():
    with pytest.raises(RuntimeError, match="expected input"):
        flops(nn.Conv2d(4, 4, 3), 8, 8)


def test_an_ensemble_costs_what_its_members_cost():
    """Members are no children of the ensemble, and its mean has no parameters that would tell the device."""
    members = [
        nn.Sequential(nn.Conv2d(3, 12 * k, 3, padding=1), nn.Conv2d(12 * k, 12, 1), nn.PixelShuffle(2)) for k in (1, 2)
    ]
    ensemble = Ensemble({str(k): Teacher(net) for k, net in enumerate(members)}, Mean(2, 2))
    assert flops(ensemble, 9, 11) == sum(flops(net, 9, 11) for net in members)
    assert all(weight.device.type == "cpu" for net in members for weight in net.parameters())
