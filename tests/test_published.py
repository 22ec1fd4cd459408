"""Weight files in circulation: every naming and wrapping loads, everything else is refused."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from mtkd_lightning.backbones.base import RGB_MEAN
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.published import BACKBONES, build_network, load_published, read_tensors

CONFS = Path(__file__).parents[1] / "conf" / "backbone"
OURS = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in BACKBONES}

TINY = {
    "EDSR": (EDSR, {"scale": 4, "features": 6, "blocks": 3, "res_scale": 0.1}),
    "RCAN": (RCAN, {"scale": 3, "features": 6, "groups": 3, "blocks": 2, "reduction": 3}),
    "SwinIR": (SwinIR, {"scale": 4, "embed_dim": 8, "depths": (2, 3), "num_heads": (2, 4), "window_size": 4}),
    "SwinIR light": (
        SwinIR,
        {
            "scale": 3,
            "embed_dim": 8,
            "depths": (2,),
            "num_heads": (2,),
            "mlp_ratio": 1.5,
            "upsampler": "pixelshuffledirect",
        },
    ),
}


@pytest.fixture(params=TINY)
def tiny(request):
    """A network and what must be given beside its tensors."""
    torch.manual_seed(0)
    kind, arguments = TINY[request.param]
    return kind(**arguments).eval(), {"res_scale": 0.1} if kind is EDSR else {}


@pytest.fixture
def edsr():
    torch.manual_seed(0)
    return EDSR(2, features=6, blocks=2).eval()


def named_by_authors(edsr, mean=RGB_MEAN, image_range=255.0):
    """The tensors of an x2 EDSR as EDSR-PyTorch names them."""
    names = {"conv_first": "head.0", "upsample.0": "tail.0.0", "conv_last": "tail.1", "conv1": "body.0"}
    names |= {"conv2": "body.2", "conv_after_body": f"body.{len(edsr.body)}"}
    tensors = {}
    for name, x in edsr.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        tensors[name] = x
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        tensors[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        tensors[f"{name}.bias"] = sign * image_range * torch.tensor(mean)
    return tensors


def same(network, other):
    lr = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        return torch.allclose(network.eval()(lr), other.eval()(lr), atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    "family", ["edsr", "edsr_official_names", "rcan", "rcan_official_names", "swinir_classical", "swinir_light"]
)
def test_equal_to_the_reference(shared, tmp_path, family, scale):
    golden = load_file(shared / "golden" / f"{family}_x{scale}.safetensors")
    weights = {name.removeprefix("weights/"): x for name, x in golden.items() if name.startswith("weights/")}
    save_file(weights, tmp_path / "net.safetensors")
    torch.save({"params": weights}, tmp_path / "net.pth")
    image_range = 255.0 if "official" in family else 1.0
    for path in tmp_path.iterdir():
        network = build_network(read_tensors(path), path, **({"res_scale": 0.1} if "edsr" in family else {}))
        with torch.no_grad():
            sr = network.eval()(golden["input"] / image_range) * image_range
        assert network.scale == scale
        assert (sr - golden["output"]).abs().max() / golden["output"].abs().max() < 1e-5


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".PTH"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"params": x},
        lambda x: {"params_ema": x},
        lambda x: {"params": {"a": torch.zeros(1)}, "params_ema": x},
        lambda x: {"state_dict": x, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda x: {"model": x},
        lambda x: {"model": {"params": x}},
        lambda x: {f"module.{name}": t for name, t in x.items()},
        lambda x: {"state_dict": {f"module._orig_mod.{name}": t for name, t in x.items()}},
        lambda x: {"params": {name: nn.Parameter(t) for name, t in x.items()}},
    ],
)
def test_every_wrapping(tmp_path, edsr, wrap, suffix):
    weights = edsr.state_dict()
    path = tmp_path / f"net{suffix}"
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=suffix != ".pt")
    read = read_tensors(path)
    assert list(read) == list(weights)
    assert all(torch.equal(read[name], x) for name, x in weights.items())
    assert same(build_network(read, path, res_scale=1.0), edsr)


def test_prefix_in_safetensors(tmp_path, edsr):
    weights = edsr.state_dict()
    save_file({f"module.{name}": x for name, x in weights.items()}, tmp_path / "net.safetensors")
    assert read_tensors(tmp_path / "net.safetensors").keys() == weights.keys()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (argparse.Namespace(scale=2), "argparse.Namespace"),
        (np.float64(38.1), "numpy._core.multiarray.scalar"),
        (nn.Conv2d(3, 3, 1), "torch.nn.modules.conv.Conv2d"),
        (Malicious, "mkdir"),
    ],
)
def test_other_pickled_content_is_refused_and_not_run(tmp_path, content, named, zipped):
    ran = tmp_path / "ran"
    content = Malicious(ran) if content is Malicious else content
    weights = {"params": {"a": torch.ones(1)}, "extra": content}
    torch.save(weights, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(MTKDError, match=rf"holds a pickled [\w.]*{named}, and .* could run code and is refused"):
        read_tensors(tmp_path / "net.pth")
    assert not ran.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_cut_files(tmp_path, edsr, suffix):
    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        save_file(edsr.state_dict(), path)
    else:
        torch.save(edsr.state_dict(), path, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    for size in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(MTKDError, match=r"net.* cannot be read as weights: it is empty, cut off, damaged"):
            read_tensors(path)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights: it is empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "git lfs pull"),
        (b"not weights", "cannot be read as weights"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
    with pytest.raises(MTKDError, match="no weights file at"):
        read_tensors(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MTKDError, match=message):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict, .* it holds list"),
        ({"epoch": 3, "generator": {"a": torch.ones(1)}}, "holds no state dict, .* it holds epoch, generator"),
        ({"params": {"a": 1.0}}, "holds no state dict, .* it holds a$"),
        ({"params": {}}, "its state dict is empty"),
        ({}, "its state dict is empty"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(MTKDError, match=message):
        read_tensors(tmp_path / "net.pth")


def test_other_suffix(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "net.zip")
    with pytest.raises(MTKDError, match=r"net.zip .* ends in none of .safetensors, .pth, .pt, .ckpt"):
        read_tensors(tmp_path / "net.zip")


def test_build_what_was_saved(tiny):
    network, given = tiny
    built = build_network(network.state_dict(), "net.pth", **given)
    assert type(built) is type(network)
    assert same(built, network)


@pytest.mark.parametrize("damage", [lambda x: None, lambda x: x.flatten(), lambda x: x[None], lambda x: x[:-1]])
def test_any_tensor_missing_or_misshapen_is_refused(tiny, damage):
    network, given = tiny
    weights = network.state_dict()
    variants = [weights] if not isinstance(network, EDSR) else [weights, named_by_authors(EDSR(2, 6, 2))]
    for tensors in variants:
        for name, x in tensors.items():
            damaged = {**tensors, name: damage(x)}
            if damaged[name] is None:
                del damaged[name]
            elif damaged[name].shape == x.shape:
                continue
            with pytest.raises(MTKDError, match=r"net\.pth"):
                build_network(damaged, "net.pth", **given)


def test_differences_are_listed(tiny):
    network, given = tiny
    weights = network.state_dict()
    for name in ("conv_after_body.bias", "upsample.0.bias"):
        weights[f"{name}2"] = weights.pop(name)
    weights["conv_first.bias"] = torch.ones(5)
    with pytest.raises(MTKDError) as error:
        build_network(weights, "net.pth", **given)
    for line in ("missing conv_after_body.bias", "unexpected upsample.0.bias2 ", "conv_first.bias is (5,) in the file"):
        assert line in str(error.value)


def test_two_tensors_for_one_name(edsr):
    weights = named_by_authors(edsr)
    for name in ("body.7.weight", "conv_first.weight"):
        with pytest.raises(MTKDError, match=r"net\.pth looks like EDSR, but: unexpected .* a second tensor"):
            build_network({**weights, name: torch.ones(1)}, "net.pth", res_scale=1.0)


def test_unknown_kinds():
    with pytest.raises(MTKDError) as error:
        build_network(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), "net.pth")
    message = str(error.value)
    assert "net.pth holds no network of a known kind; known are EDSR, RCAN, SwinIR, " in message
    assert "0.weight (4, 3, 3, 3)" in message


def test_ambiguous_res_scale(edsr):
    weights = edsr.state_dict()
    with pytest.raises(MTKDError) as error:
        build_network(weights, "net.pth")
    for part in (
        "net.pth is of the kind EDSR (features=6, blocks=2, scale=2)",
        "load(..., res_scale=...)",
        "0.1 in the",
    ):
        assert part in str(error.value)
    for res_scale in (1.0, 0.1):
        assert build_network(weights, "net.pth", res_scale=res_scale).res_scale == res_scale


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": 4}, "net.pth has scale=2, not scale=4 as given"),
        ({"features": 64}, "net.pth has features=6, not features=64 as given"),
        ({"image_range": 1.0}, "net.pth has image_range=255.0, not image_range=1.0"),
        ({"rgb_mean": [0.5, 0.5, 0.5]}, r"net.pth has rgb_mean=\(0.4488, 0.4371, 0.404\), not"),
        ({"res_scael": 1.0}, "EDSR, which has no argument res_scael; it has scale, features, blocks, res_scale"),
    ],
)
def test_given_arguments_that_cannot_be(edsr, given, message):
    with pytest.raises(MTKDError, match=message):
        build_network(named_by_authors(edsr), "net.pth", res_scale=1.0, **given)


def test_given_arguments_that_agree(edsr):
    network = SwinIR(**TINY["SwinIR"][1])
    assert same(build_network(network.state_dict(), "net.pth", scale=4, depths=[2, 3], mlp_ratio=2), network)
    mean = list(RGB_MEAN)
    built = build_network(named_by_authors(edsr), "net.pth", res_scale=1.0, image_range=255, rgb_mean=mean)
    assert same(built, edsr)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("absolute_pos_embed", (1, 4, 8), "absolute position embedding"),
        ("conv_after_body.0.weight", (2, 8, 3, 3), "3conv"),
        ("conv_up1.weight", (64, 64, 3, 3), r"nearest\+conv"),
        ("conv_first.weight", (8, 1, 3, 3), "takes 1 channels"),
    ],
)
def test_variants_of_swinir_that_are_not_supported(name, shape, message):
    weights = SwinIR(**TINY["SwinIR"][1]).state_dict()
    with pytest.raises(MTKDError, match=f"net.pth looks like SwinIR, but: .*{message}"):
        build_network({**weights, name: torch.ones(shape)}, "net.pth")


def test_swinir_without_upsampler_and_other_scales():
    weights = SwinIR(**TINY["SwinIR"][1]).state_dict()
    restoration = {name: x for name, x in weights.items() if "upsample" not in name}
    with pytest.raises(MTKDError, match="denoising or JPEG"):
        build_network(restoration, "net.pth")
    weights |= {name.replace("2", "4"): x for name, x in weights.items() if name.startswith("upsample.2")}
    with pytest.raises(MTKDError, match="SwinIR has no scale 8"):
        build_network(weights, "net.pth")


@pytest.mark.parametrize("image_range", [255.0, 1.0])
def test_colour_of_the_file(edsr, image_range):
    mean = (0.4469, 0.4367, 0.4044)
    expected = EDSR(2, 6, 2, image_range=image_range, rgb_mean=mean)
    expected.load_state_dict(edsr.state_dict())
    weights = named_by_authors(edsr, mean, image_range)
    assert not same(expected, edsr)
    built = build_network(weights, "net.pth", res_scale=1.0)
    assert (built.image_range, built.mean_shift.image_range) == (image_range, image_range)
    assert same(built, expected)
    configured = EDSR(2, 6, 2, image_range=image_range)
    load_published(configured, weights, "net.pth")
    assert same(configured, expected)
    # Saved and loaded again, as a student that began with this file is.
    again = EDSR(2, 6, 2, image_range=image_range)
    again.load_state_dict(configured.state_dict())
    assert same(again, expected)


def test_file_without_colour(edsr):
    weights = {name: x for name, x in named_by_authors(edsr).items() if "_mean." not in name}
    assert same(build_network(weights, "net.pth", res_scale=1.0), edsr)
    stated = EDSR(2, 6, 2, rgb_mean=(0.5, 0.4, 0.3))
    load_published(stated, weights, "net.pth")
    assert stated.mean_shift.mean.flatten().tolist() == pytest.approx((0.5, 0.4, 0.3))


def test_mean_of_another_shape_is_unexpected(edsr):
    with pytest.raises(MTKDError, match=r"unexpected mean_shift.mean \(3,\)"):
        load_published(edsr, {**edsr.state_dict(), "mean_shift.mean": torch.zeros(3)}, "net.pth")


def test_colour_that_was_trained():
    torch.manual_seed(0)
    inner = EDSR(2, 6, 2, image_range=1.0, rgb_mean=(0, 0, 0)).eval()
    weights = named_by_authors(inner)
    del weights["mean_shift.mean"]
    for name in ("sub_mean", "add_mean"):
        weights[f"{name}.weight"] += 0.1 * torch.randn(3, 3, 1, 1)
        weights[f"{name}.bias"] += 10 * torch.randn(3)
    lr = 255 * torch.rand(2, 3, 7, 9)
    with torch.no_grad():
        sr = inner(F.conv2d(lr, weights["sub_mean.weight"], weights["sub_mean.bias"]))
        sr = F.conv2d(sr, weights["add_mean.weight"], weights["add_mean.bias"])
        built = build_network(weights, "net.pth", res_scale=1.0).eval()
        assert (255 * built(lr / 255) - sr).abs().max() / sr.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("configured", "lines"),
    [
        (lambda: EDSR(4, 6, 2), ["scale: 4 configured, 2 in the file"]),
        (lambda: EDSR(3, 8, 5), ["scale: 3", "features: 8 configured, 6 in the file", "blocks: 5 configured, 2 in"]),
        (lambda: EDSR(2, 6, 2, image_range=1.0), ["image_range: 1.0 configured, 255.0 in the file"]),
    ],
)
def test_load_published_says_what_differs(edsr, configured, lines):
    network = configured()
    before = network.conv_first.weight.clone()
    with pytest.raises(MTKDError) as error:
        load_published(network, named_by_authors(edsr), "net.pth")
    for line in ("net.pth is another EDSR than the one configured", *lines):
        assert line in str(error.value)
    assert torch.equal(network.conv_first.weight, before)


def test_load_published_takes_what_the_tensors_do_not_tell_from_the_configuration(edsr):
    network = EDSR(2, 6, 2, res_scale=0.3)
    load_published(network, named_by_authors(edsr), "net.pth")
    assert network.res_scale == 0.3
    network = RCAN(2, features=16, groups=1, blocks=1, reduction=6)
    load_published(network, RCAN(2, features=16, groups=1, blocks=1, reduction=7).state_dict(), "net.pth")
    with torch.device("meta"):
        large = EDSR(2, 256, 32, res_scale=1.0)
        load_published(large, EDSR(2, 256, 32, res_scale=0.1).state_dict(), "net.pth")
    assert large.res_scale == 1.0


def test_load_published_of_another_kind_and_into_other_networks(edsr):
    with pytest.raises(MTKDError, match="another network than this RCAN"):
        load_published(RCAN(2, 6, 1, 1, 2), edsr.state_dict(), "net.pth")
    network, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    load_published(network, other.state_dict(), "net.pth")
    assert torch.equal(network.weight, other.weight)
    with pytest.raises(MTKDError, match="another network than this Conv2d"):
        load_published(network, edsr.state_dict(), "net.pth")


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("path", sorted(CONFS.glob("*.yaml")), ids=lambda path: path.stem)
def test_sizes_of_all_configurations_are_inferred(path, scale):
    config = OmegaConf.create({"scale": scale, "network": OmegaConf.load(path)})
    stated = OmegaConf.to_container(config, resolve=True)["network"]
    if (kind := OURS.get(stated.pop("_target_"))) is None:
        pytest.skip("has no weight files in circulation")
    with torch.device("meta"):
        network = kind(**stated)
        tensors = dict(network.state_dict())
        if kind is SwinIR:
            # Present in the authors' files.
            block = "layers.0.residual_group.blocks.1."
            tensors |= {f"{block}attn_mask": torch.ones(64, 64, 64)}
            tensors |= {f"{block}attn.relative_position_index": torch.ones(64, 64, dtype=torch.int64)}
        found = kind.published(tensors)
        given = {key: stated[key] for key in found.unknown}
        built = build_network(tensors, "net.pth", **given)
    assert found.arguments["scale"] == scale
    for key, value in found.arguments.items():
        assert value == (tuple(stated[key]) if isinstance(value, tuple) else stated[key]), key
    not_told = stated.keys() - found.arguments.keys()
    assert not_told <= {"res_scale", "image_range", "drop_path_rate"}
    assert set(found.unknown) == (
        {"res_scale"} if kind is EDSR and path.stem[5:] not in ("baseline", "large") else set()
    )
    if kind is EDSR:
        assert built.res_scale == stated["res_scale"]
    assert {name: x.shape for name, x in built.state_dict().items()} == {
        name: x.shape for name, x in network.state_dict().items()
    }


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["smfanet_plus_df2k", "lkdn", "dctlsa"])
def test_files_of_the_compact_networks(shared, name, scale):
    golden = load_file(shared / "golden" / f"pretrained_{name}_x{scale}.safetensors")
    (path,) = (shared / "weights").glob(f"{name}_x{scale}.p*")
    network = build_network(read_tensors(path), path).eval()
    assert network.scale == scale
    with torch.no_grad():
        assert (network(golden["input"]) - golden["output"]).abs().max() < 1e-4
