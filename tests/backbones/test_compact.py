"""SMFANet+, LKDN and DCTLSA: equal to the published networks, and what every network of ours must do."""

import copy
import json
import weakref
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtkd_lightning.backbones.dctlsa import DCTLSA, Block, LinearAttention, WindowModule
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.lkdn import LKDN
from mtkd_lightning.backbones.smfanet import FeedForward, SelfModulation, SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError

PUBLISHED = {"smfanet_plus_df2k": SMFANetPlus, "lkdn": LKDN, "dctlsa": DCTLSA}

TINY = {
    "SMFANet+": lambda scale, blocks=3: SMFANetPlus(scale, features=6, blocks=blocks),
    "LKDN": lambda scale, blocks=3: LKDN(scale, features=6, blocks=blocks),
    "DCTLSA": lambda scale, blocks=3: DCTLSA(scale, features=6, blocks=blocks, heads=2, window_size=4),
}

SIZES = [(1, 1), (1, 12), (5, 7), (8, 8), (17, 33)]


@pytest.fixture(params=TINY)
def tiny(request):
    torch.manual_seed(0)
    return TINY[request.param](2).eval()


@cache
def weights(shared: Path, name: str, scale: int) -> dict[str, Tensor]:
    (path,) = (shared / "weights").glob(f"{name}_x{scale}.p*")
    content = torch.load(path, map_location="cpu", weights_only=True)
    content = content.get("params_ema", content.get("params", content))
    return {key.removeprefix("module."): x for key, x in content.items()}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_to_the_published_network(shared, name, scale):
    golden = load_file(shared / "golden" / f"pretrained_{name}_x{scale}.safetensors")
    entry = json.loads((shared / "golden" / "index.json").read_text())[f"pretrained_{name}_x{scale}"]
    net = PUBLISHED[name](scale).eval()
    assert sum(p.numel() for p in net.parameters()) == entry["parameters"]
    net.load_state_dict(weights(shared, name, scale))
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            sr = net(golden["input"].to(memory_format=layout))
            assert (sr - golden["output"]).abs().max() < 2e-5


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_recognised_by_their_own_network_alone(shared, name, scale):
    tensors = weights(shared, name, scale)
    for kind in (*PUBLISHED.values(), EDSR, SwinIR):
        found = kind.published(tensors)
        assert (found is not None) == (kind is PUBLISHED[name])
        if found is not None:
            assert not found.unknown
            with torch.device("meta"):
                net = kind(**found.arguments)
            assert vars(net)["scale"] == scale
            assert {key: x.shape for key, x in net.state_dict().items()} == {
                key: x.shape for key, x in found.tensors.items()
            }


@pytest.mark.parametrize(
    ("net", "unknown"),
    [
        (lambda: SMFANetPlus(3, features=36, blocks=8), set()),
        (lambda: SMFANetPlus(2, features=10, blocks=1, expansion=1.5), set()),
        (lambda: LKDN(4, features=42, blocks=5), set()),
        (lambda: LKDN(2, features=7, blocks=1), set()),
        (lambda: DCTLSA(3, features=12, blocks=2, heads=3), {"heads", "window_size"}),
        (lambda: DCTLSA(3, features=12, blocks=1, heads=3), {"heads", "window_size"}),
    ],
)
def test_other_sizes_are_inferred(net, unknown):
    net = net()
    found = type(net).published(net.state_dict())
    assert set(found.unknown) == unknown
    twin = type(net)(**found.arguments, **{key: getattr(net, key) for key in unknown})
    twin.load_state_dict(found.tensors)
    lr = torch.rand(1, 3, 9, 10)
    assert torch.equal(twin.eval()(lr), net.eval()(lr))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors | {"B1.c1_r.rep1x1.weight": torch.zeros(1)}, "branches of its training"),
        (lambda tensors: {n: x for n, x in tensors.items() if "upsampler" not in n}, "branches of its training"),
        (lambda tensors: {n: x for n, x in tensors.items() if n != "c1.weight"}, "missing c1.weight"),
    ],
)
def test_lkdn_before_its_branches_are_merged(change, message):
    with pytest.raises(MTKDError, match=message):
        LKDN.published(change(LKDN(2, features=6, blocks=1).state_dict()))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", SIZES)
def test_any_size(name, scale, size):
    net = TINY[name](scale)
    for mode in (True, False):
        sr = net.train(mode)(torch.rand(1, 3, *size))
        assert sr.shape == (1, 3, scale * size[0], scale * size[1])
        assert sr.isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_every_tap_has_the_promised_shape(tiny, size):
    assert list(tiny.tap_channels) == ["shallow", "block0", "block1", "block2", "deep"]
    lr = torch.rand(2, 3, *size)
    sr, features = tiny.forward_features(lr, tiny.tap_channels)
    assert torch.equal(sr, tiny(lr))
    assert torch.equal(sr, tiny.reconstruct(features["deep"], lr))
    assert {tap: tuple(f.shape) for tap, f in features.items()} == {
        tap: (2, channels, *size) for tap, channels in tiny.tap_channels.items()
    }
    assert list(tiny.forward_features(lr, ["block1"])[1]) == ["block1"]


def test_taps_do_not_change_after_they_were_kept(tiny):
    lr = torch.rand(1, 3, 9, 10)
    _, features = tiny.forward_features(lr, tiny.tap_channels)
    for tap in features:
        (alone,) = tiny.forward_features(lr, [tap])[1].values()
        assert [other for other, x in features.items() if torch.equal(x, alone)] == [tap]


def test_every_parameter_learns(tiny):
    tiny.train()
    (tiny(torch.rand(2, 3, 17, 19)) - torch.rand(2, 3, 34, 38)).abs().mean().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_reconstruct_alone_is_differentiable_in_a_foreign_feature(tiny):
    tiny.requires_grad_(False)
    deep = torch.rand(1, tiny.tap_channels["deep"], 5, 6, requires_grad=True)
    tiny.reconstruct(deep, torch.rand(1, 3, 5, 6)).sum().backward()
    assert deep.grad.abs().min() > 0


def test_channels_last_and_bf16(tiny):
    lr = torch.rand(2, 3, 16, 20)
    expected = tiny(lr).detach()
    tiny.to(memory_format=torch.channels_last)
    lr = lr.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(tiny(lr), expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sr = tiny(lr)
    assert sr.dtype == torch.bfloat16
    assert torch.allclose(sr.float(), expected, atol=0.05)
    sr.float().mean().backward()
    assert all(p.grad.isfinite().all() for p in tiny.parameters())


def test_pictures_of_a_batch_do_not_touch(tiny):
    lr = torch.rand(3, 3, 13, 18)
    assert torch.allclose(tiny(lr), torch.cat([tiny(one[None]) for one in lr]), atol=1e-6)


def test_copies_hold_the_same_weights(tiny):
    lr = torch.rand(1, 3, 9, 9)
    assert torch.equal(copy.deepcopy(tiny)(lr), tiny(lr))


@pytest.mark.parametrize("name", TINY)
def test_exports_with_sides_of_any_multiple(name):
    tiny = TINY[name](2, blocks=1).eval()
    sides = {side: 8 * torch.export.Dim(f"n{side}", min=2, max=64) for side in (2, 3)}
    with torch.no_grad():
        program = torch.export.export(tiny, (torch.rand(1, 3, 24, 32),), dynamic_shapes=(sides,))
        lr = torch.rand(1, 3, 40, 16)
        assert torch.allclose(program.module()(lr), tiny(lr), atol=1e-6)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that live at the same time."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and (key := (storage := x.untyped_storage())._cdata) not in self.live:
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize(("kind", "channels"), [(SMFANetPlus, 500), (LKDN, 1100), (DCTLSA, 1000)])
def test_memory_grows_with_the_pixels(kind, channels):
    """Published sizes on pictures of one and eight times the pixels, in float32 values for each LR pixel."""
    with torch.device("meta"):
        net = kind(4).eval()
        peaks = []
        for height, width in ((64, 96), (128, 384)):
            with torch.no_grad(), PeakMemory() as memory:
                net(torch.empty(1, 3, height, width))
            peaks.append(memory.peak / 4 / height / width)
    assert peaks[1] < 1.05 * peaks[0]
    assert 100 < peaks[1] < channels


@pytest.mark.parametrize("size", [(16, 24), (17, 31), (8, 15)])
def test_self_modulation_is_that_of_the_paper(size):
    torch.manual_seed(0)
    layer = SelfModulation(4)
    torch.nn.init.normal_(layer.belt)
    x = torch.randn(2, 4, *size)
    detail, y = layer.linear_0(x).chunk(2, 1)
    coarse = layer.dw_conv(F.adaptive_max_pool2d(y, (size[0] // 8, size[1] // 8)))
    gate = F.gelu(layer.linear_1(coarse * layer.alpha + y.var((2, 3), keepdim=True) * layer.belt))
    expected = layer.linear_2(y * F.interpolate(gate, size, mode="nearest") + layer.lde(detail))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_a_quarter_of_the_feed_forward_part_sees_neighbours():
    layer = FeedForward(4, 8)
    assert layer.conv_1.in_channels == 2
    for parameter in layer.conv_1.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 4, 5, 5)
    y = F.gelu(layer.conv_0(x))
    assert torch.allclose(layer(x), layer.conv_2(torch.cat([torch.zeros(1, 2, 5, 5), y[:, 2:]], 1)), atol=1e-6)


def test_small_pictures_are_those_of_their_mirrored_ones():
    net = SMFANetPlus(2, features=6, blocks=2).eval()
    lr = torch.rand(1, 3, 5, 7)
    mirrored = F.pad(lr, (0, 1, 0, 3), mode="reflect")
    features = net.forward_features(mirrored, ["block1"])[1]
    assert torch.allclose(net.forward_features(lr, ["block1"])[1]["block1"], features["block1"][..., :5, :7], atol=1e-6)


def test_linear_attention_is_that_of_separate_heads():
    torch.manual_seed(0)
    attention = LinearAttention(12, heads=3)
    x = torch.randn(5, 16, 12)
    q, k, v = attention.qkv(x).view(5, 16, 3, 3, 4).permute(2, 0, 3, 1, 4)
    heads = (q * 4**-0.5) @ (k.softmax(-2).transpose(-2, -1) @ v)
    expected = attention.proj(heads.transpose(1, 2).reshape(5, 16, 12)) + x
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_windows_are_mirrored_and_cropped_in_every_module():
    torch.manual_seed(0)
    module = WindowModule(4, heads=2, window=8).eval()
    x = torch.randn(2, 4, 13, 16)
    expected = module(F.pad(x, (0, 0, 0, 3), mode="reflect"))[..., :13, :]
    assert torch.equal(module(x), expected)

    net = DCTLSA(2, features=4, blocks=1, heads=2, window_size=8).eval()
    lr = torch.rand(1, 3, 13, 16)
    once = net(F.pad(lr, (0, 0, 0, 3), mode="reflect"))[..., :26, :]
    assert (net(lr) - once).abs().max() > 1e-4


def test_shifted_windows_wrap_around():
    torch.manual_seed(0)
    block = Block(4, heads=2, window=4, shift=2).eval()
    x = torch.randn(1, 8, 12, 4, requires_grad=True)
    block(x)[0, 0, 0].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    rows, columns = torch.tensor([6, 7, 0, 1]), torch.tensor([10, 11, 0, 1])
    assert seen[rows][:, columns].all()
    # The local part sees one pixel more.
    assert not seen[3:5].any()
    assert not seen[:, 3:9].any()


def test_batch_statistics_move_in_training_alone():
    net = DCTLSA(2, features=4, blocks=1, heads=2, window_size=4)
    lr = torch.rand(2, 3, 8, 8)
    before = {name: x.clone() for name, x in net.state_dict().items() if "running" in name}
    assert len(before) == 16
    net.eval()(lr)
    assert all(torch.equal(net.state_dict()[name], x) for name, x in before.items())
    net.train()(lr)
    assert not any(torch.equal(net.state_dict()[name], x) for name, x in before.items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SMFANetPlus(5), "SMFANetPlus has no scale 5; set scale to 2, 3 or 4"),
        (lambda: LKDN(1), "LKDN has no scale 1"),
        (lambda: DCTLSA(8), "DCTLSA has no scale 8"),
        (lambda: SMFANetPlus(2, features=0), "SMFANetPlus got features=0, blocks=12, expansion=2.0"),
        (lambda: SMFANetPlus(2, features=3, expansion=1.0), "features . expansion of 4 or more"),
        (lambda: LKDN(2, blocks=0), "LKDN got features=56, blocks=0; it needs 2 features and a block at least"),
        (lambda: DCTLSA(2, heads=4), "cannot split 55 features into 4 heads; heads must divide features"),
        (lambda: DCTLSA(2, window_size=0), "window_size=0; set each to 1 or more"),
        (
            lambda: LKDN(2).forward_features(torch.rand(1, 3, 4, 4), ["group0"]),
            "LKDN has no tap 'group0'; it has shallow, block0, ..., block7, deep",
        ),
    ],
)
def test_errors(build, message):
    with torch.device("meta"), pytest.raises(MTKDError, match=message):
        build()
