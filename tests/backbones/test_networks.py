"""EDSR, RCAN and SwinIR: equal to the reference networks, and what every network of ours must do."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from mtkd_lightning.backbones.base import RGB_MEAN
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.swinir import SwinBlock, SwinIR, merge, partition
from mtkd_lightning.errors import MTKDError

LIGHT = {"embed_dim": 60, "depths": (6,) * 4, "num_heads": (6,) * 4, "upsampler": "pixelshuffledirect"}


def edsr(scale, config):
    return EDSR(scale, config["num_feat"], config["num_block"], config["res_scale"], config["img_range"])


def rcan(scale, config):
    sizes = (config[key] for key in ("num_feat", "num_group", "num_block", "squeeze_factor", "img_range"))
    return RCAN(scale, *sizes)


def swinir(scale, config):
    keys = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "upsampler")
    return SwinIR(scale, **{key: config[key] for key in keys}, image_range=config["img_range"])


BUILD = {"edsr": edsr, "rcan": rcan, "swinir_classical": swinir, "swinir_light": swinir}

TINY = {
    "EDSR": lambda scale: EDSR(scale, features=6, blocks=3, res_scale=0.1),
    "RCAN": lambda scale: RCAN(scale, features=6, groups=3, blocks=1, reduction=2),
    "SwinIR": lambda scale: SwinIR(scale, 8, [2, 2, 2], [2, 2, 2], window_size=4),
    "SwinIR light": lambda scale: SwinIR(scale, 8, (2, 2, 2), (2, 2, 2), window_size=4, upsampler="pixelshuffledirect"),
}


@pytest.fixture(params=TINY)
def tiny(request):
    torch.manual_seed(0)
    return TINY[request.param](2).eval()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("family", BUILD)
def test_equal_to_the_reference(shared, family, scale):
    golden = load_file(shared / "golden" / f"{family}_x{scale}.safetensors")
    entry = json.loads((shared / "golden" / "index.json").read_text())[f"{family}_x{scale}"]
    net = BUILD[family](scale, entry["config"]).eval()
    weights = {name.removeprefix("weights/"): t for name, t in golden.items() if name.startswith("weights/")}
    assert sum(p.numel() for p in net.parameters()) == entry["parameters"]
    assert net.state_dict().keys() == weights.keys()
    net.load_state_dict(weights)
    largest = golden["output"].abs().max()
    assert (net(golden["input"]) - golden["output"]).abs().max() / largest < 1e-5
    with torch.no_grad():
        assert (net(golden["input"]) - golden["output"]).abs().max() / largest < 1e-5


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: EDSR(4), 1_517_571),
        (lambda: EDSR(4, 256, 32, 0.1), 43_089_923),
        (lambda: RCAN(4), 15_592_355),
        (lambda: SwinIR(4), 11_900_199),
        (lambda: SwinIR(4, **LIGHT), 929_628),
    ],
)
def test_parameter_counts_are_the_published_ones(build, parameters):
    with torch.device("meta"):
        net = build()
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 17)])
def test_any_size(name, scale, size):
    with torch.no_grad():
        sr = TINY[name](scale)(torch.rand(1, 3, *size))
    assert sr.shape == (1, 3, scale * size[0], scale * size[1])
    assert sr.isfinite().all()


def test_every_tap_has_the_promised_shape(tiny):
    unit = "block" if isinstance(tiny, EDSR) else "group"
    assert list(tiny.tap_channels) == ["shallow", f"{unit}0", f"{unit}1", f"{unit}2", "deep"]
    lr = torch.rand(2, 3, 5, 6)
    sr, features = tiny.forward_features(lr, tiny.tap_channels)
    assert torch.equal(sr, tiny(lr))
    assert {tap: tuple(f.shape) for tap, f in features.items()} == {
        tap: (2, channels, 5, 6) for tap, channels in tiny.tap_channels.items()
    }
    assert list(tiny.forward_features(lr, [f"{unit}1"])[1]) == [f"{unit}1"]


def test_reconstruct_alone_is_differentiable_in_a_foreign_feature(tiny):
    tiny.requires_grad_(False)
    lr = torch.rand(1, 3, 5, 6)
    deep = torch.rand(1, tiny.tap_channels["deep"], 5, 6, requires_grad=True)
    tiny.reconstruct(deep, lr).sum().backward()
    assert deep.grad.abs().min() > 0
    sr, features = tiny.forward_features(lr, ["deep"])
    if tiny.size_multiple == 1:
        assert torch.equal(tiny.reconstruct(features["deep"], lr), sr)


def test_mean_colour_passes_through_a_silent_network(tiny):
    for parameter in tiny.parameters():
        parameter.data.zero_()
    sr = tiny(torch.rand(1, 3, 4, 4))
    assert torch.allclose(sr.mean((0, 2, 3)), torch.tensor(RGB_MEAN))


def test_channels_last_and_bf16(tiny):
    lr = torch.rand(2, 3, 8, 8)
    expected = tiny(lr).detach()
    tiny.to(memory_format=torch.channels_last)
    lr = lr.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(tiny(lr), expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sr = tiny(lr)
        with torch.no_grad():
            assert torch.allclose(tiny(lr), sr, atol=0.02)
    assert torch.allclose(sr.float(), expected, atol=0.05)
    sr.float().mean().backward()
    assert all(p.grad.isfinite().all() for p in tiny.parameters())


def test_exports_with_sides_of_any_multiple(tiny):
    sides = {side: tiny.size_multiple * torch.export.Dim(f"n{side}", min=1, max=64) for side in (2, 3)}
    with torch.no_grad():
        program = torch.export.export(tiny, (torch.rand(1, 3, 12, 20),), dynamic_shapes=(sides,))
        lr = torch.rand(1, 3, 16, 8)
        assert torch.allclose(program.module()(lr), tiny(lr), atol=1e-6)


def test_copies_and_state_dicts_hold_weights_alone(tiny):
    twin = copy.deepcopy(tiny)
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(twin(lr), tiny(lr))
    assert set(tiny.state_dict()) == {name for name, _ in tiny.named_parameters()}


def test_swinir_loads_files_with_derived_buffers():
    net = SwinIR(2, 8, (2,), (2,), window_size=4)
    published = net.state_dict()
    published["layers.0.residual_group.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    published["layers.0.residual_group.blocks.1.attn_mask"] = torch.zeros(9, 16, 16)
    net.load_state_dict(published)
    assert "layers.0.residual_group.blocks.1.attn_mask" in published
    published["layers.0.residual_group.blocks.1.attn_musk"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="attn_musk"):
        net.load_state_dict(published)


def test_shifted_windows_do_not_see_across_the_border():
    torch.manual_seed(0)
    block = SwinBlock(4, 2, window=4, shifted=True, mlp_ratio=2, drop_path=0.0)
    for linear in (block.attn.qkv, block.attn.proj):
        torch.nn.init.normal_(linear.weight)
    x = torch.rand(1, 8, 12, 4, requires_grad=True)
    block(x)[0, 0, 0].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 1e-12
    assert seen[:2, :2].all()
    assert not seen[2:].any()
    assert not seen[:, 2:].any()


def test_partition_and_merge_are_inverse():
    x = torch.rand(2, 8, 12, 5)
    windows = partition(x, 4)
    assert torch.equal(windows[1].view(4, 4, 5), x[0, :4, 4:8])
    assert torch.equal(merge(windows, 8, 12), x)


def test_drop_path_rises_linearly_and_acts_in_training_only():
    net = SwinIR(2, 8, (2, 3), (2, 2), window_size=4, drop_path_rate=0.4)
    blocks = [module for module in net.modules() if isinstance(module, SwinBlock)]
    assert [block.drop_path for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    torch.manual_seed(0)
    lr = torch.rand(4, 3, 4, 4)
    assert not torch.equal(net(lr), net(lr))
    net.eval()
    assert torch.equal(net(lr), net(lr))


def test_drop_path_keeps_the_expectation():
    block = SwinBlock(4, 2, window=4, shifted=False, mlp_ratio=2, drop_path=0.25).train()
    torch.manual_seed(0)
    dropped = block._drop(torch.ones(4000, 1, 1, 1))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert dropped.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EDSR(5), "EDSR has no scale 5; set scale to 2, 3 or 4"),
        (lambda: RCAN(1), "RCAN has no scale 1"),
        (lambda: SwinIR(8), "SwinIR has no scale 8"),
        (lambda: RCAN(2, features=8), "cannot reduce 8 features by 16; set reduction to 1..8"),
        (lambda: SwinIR(2, 10, (2,), (4,)), "cannot split embed_dim 10 into 4 heads"),
        (lambda: SwinIR(2, 8, (2, 2), (2,)), "got 2 depths and 1 num_heads"),
        (lambda: SwinIR(2, 8, (2,), (2,), upsampler="nearest"), "no upsampler 'nearest'; set it to"),
        (
            lambda: EDSR(2, 8, 16).forward_features(torch.rand(1, 3, 4, 4), ["grp3"]),
            "EDSR has no tap 'grp3'; it has shallow, block0, ..., block15, deep",
        ),
    ],
)
def test_errors(build, message):
    with torch.device("meta"), pytest.raises(MTKDError, match=message):
        build()
