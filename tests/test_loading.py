"""``mtkd_lightning.load``: three lines of Python, by every name of a network, without what they do not need."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtkd_lightning
from mtkd_lightning import artifacts
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError

ARGUMENTS = {"scale": 2, "features": 4, "blocks": 1, "res_scale": 0.1}
CONFIG = {
    "stage": "distillation",
    "scale": 2,
    "network": {"_target_": "mtkd_lightning.backbones.edsr.EDSR", **ARGUMENTS},
}


@pytest.fixture
def edsr(tmp_path) -> EDSR:
    """A network whose arguments its tensors do not tell, finished as ``weights/net.safetensors``."""
    torch.manual_seed(0)
    network = EDSR(**ARGUMENTS).eval()
    artifacts.save(tmp_path / "weights" / "net.safetensors", network.state_dict(), CONFIG, steps=5)
    return network


def python(code: str, cwd: Path) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_takes_no_time_and_brings_nothing(tmp_path):
    code = (
        "import sys, time; start = time.perf_counter(); import mtkd_lightning; took = time.perf_counter() - start\n"
        "print(took, sorted({'torch', 'lightning', 'hydra', 'omegaconf', 'numpy'} & sys.modules.keys()))"
    )
    found = [python(code, tmp_path).split(maxsplit=1) for _ in range(3)]
    assert {modules.strip() for _, modules in found} == {"[]"}
    assert statistics.median(float(seconds) for seconds, _ in found) < 0.2


def test_three_lines_in_a_program_that_has_neither_lightning_nor_hydra(edsr, tmp_path):
    """Both are hidden, so that an import of either ends the program."""
    lr = torch.rand(1, 3, 8, 9)
    save_file({"lr": lr}, tmp_path / "lr.safetensors")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('lightning', 'pytorch_lightning', 'hydra')))\n"
        "from safetensors.torch import load_file, save_file\n"
        "lr = load_file('lr.safetensors')['lr']\n"
        "import mtkd_lightning\n"
        "student = mtkd_lightning.load('net')\n"
        "sr = student(lr)\n"
        "save_file({'sr': sr}, 'sr.safetensors'); print(sr.requires_grad, student.training, student.scale)"
    )
    assert python(code, tmp_path).split() == ["False", "False", "2"]
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "sr.safetensors")["sr"], edsr(lr))


def test_every_name(edsr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "net").mkdir(parents=True)
    for name in ("net", "runs/net", "weights/net.safetensors", tmp_path / "weights" / "net.safetensors"):
        network = mtkd_lightning.load(name)
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())
        assert torch.equal(network.conv_last.weight, edsr.conv_last.weight)


def test_a_name_of_the_catalogue(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTKD_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(shared / "weights"))
    network = mtkd_lightning.load("lkdn_x3")
    assert network(torch.rand(1, 3, 5, 6)).shape == (1, 3, 15, 18)


def test_a_file_without_its_sidecar_is_enough(edsr, tmp_path):
    alone = tmp_path / "elsewhere.safetensors"
    alone.write_bytes((tmp_path / "weights" / "net.safetensors").read_bytes())
    network = mtkd_lightning.load(alone)
    assert network.body[0].res_scale == 0.1
    lr = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        assert torch.equal(network(lr), edsr(lr))


def test_arguments_that_tensors_do_not_tell(edsr, tmp_path):
    torch.save(edsr.state_dict(), tmp_path / "net.pth")
    with pytest.raises(MTKDError, match=r"do not tell res_scale.*load\(\.\.\., res_scale=\.\.\.\)"):
        mtkd_lightning.load(tmp_path / "net.pth")
    lr = torch.rand(1, 3, 8, 9)
    assert torch.equal(mtkd_lightning.load(tmp_path / "net.pth", res_scale=0.1)(lr), edsr(lr))
    with pytest.raises(MTKDError, match="tells what its network is; leave res_scale out"):
        mtkd_lightning.load(tmp_path / "weights/net.safetensors", res_scale=0.1)


def test_a_network_in_another_range_of_values_is_told_of(tmp_path, caplog):
    """It works in 0..255, as its biases do, which its file does not tell."""
    torch.manual_seed(0)
    network = SwinIR(2, 12, depths=[2], num_heads=[2], window_size=4, image_range=255.0).eval()
    network.conv_last.bias.data.fill_(20.0)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    mtkd_lightning.load(tmp_path / "net.pth")
    assert "may have been trained for another range of values" in caplog.text
    caplog.clear()
    lr = torch.rand(1, 3, 8, 9)
    assert torch.allclose(mtkd_lightning.load(tmp_path / "net.pth", image_range=255.0)(lr), network(lr), atol=1e-5)
    assert not caplog.text


def test_weights_that_are_not_finite(edsr, tmp_path):
    tensors = {name: torch.full_like(x, torch.nan) for name, x in edsr.state_dict().items()}
    torch.save(tensors, tmp_path / "net.pth")
    with pytest.raises(MTKDError, match=r"net\.pth: \d+ of its tensors are not finite"):
        mtkd_lightning.load(tmp_path / "net.pth", res_scale=0.1)


def test_equal_weights_are_equal_files(edsr, tmp_path):
    artifacts.save(tmp_path / "again.safetensors", edsr.state_dict(), CONFIG, steps=6, seconds=1.5)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "weights" / "net.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"config": {"network": {"_target_": "os.mkdir", "path": "x"}}}', "asks for os.mkdir"),
        ('{"config": {"network": {"_target_": "mtkd_lightning.backbones.edsr.torch.hub.get_dir"}}}', "asks for"),
        ('{"config": {"network": {"_target_": "mtkd_lightning.backbones.edsr.EDSR", "size": 3}}}', "does not fit"),
        ('{"config": {"network": {"_target_": "mtkd_lightning.backbones.edsr.EDSR", "scale": 3}}}', "another network"),
        ('{"config": {"stage": "aggregation", "network": {"_target_": "x"}}}', "is of an aggregator"),
        ('{"config": {"network": "EDSR"}}', "cannot be read"),
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_metadata_is_not_trusted(edsr, tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    save_file(edsr.state_dict(), tmp_path / "bad.safetensors", {artifacts.EMBEDDED: text})
    with pytest.raises(MTKDError, match=expected):
        mtkd_lightning.load("bad.safetensors")
    assert not (tmp_path / "x").exists()


def test_foreign_metadata_is_passed_over(tmp_path):
    torch.manual_seed(0)
    network = EDSR(2)
    save_file(network.state_dict(), tmp_path / "net.safetensors", {"format": "pt"})
    assert mtkd_lightning.load(tmp_path / "net.safetensors").scale == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lkdn_x5", "Did you mean lkdn_x"), ("nothing.pth", "there is no such file"), ("notes.txt", "ends in none of")],
)
def test_what_is_no_network(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(MTKDError, match=expected):
        mtkd_lightning.load(name)


@pytest.mark.parametrize(
    "lr", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.rand(8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_what_is_no_batch_of_pictures(edsr, lr):
    with pytest.raises(MTKDError, match=r"EDSR takes RGB pictures in 0\.\.1 as floating point \(b, 3, h, w\), and got"):
        edsr(lr)


def test_gradients_reach_the_picture_through_frozen_windows():
    """SwinIR has a faster attention for weights that take no gradient."""
    torch.manual_seed(0)
    network = SwinIR(2, embed_dim=4, depths=(2,), num_heads=(2,), window_size=4, drop_path_rate=0.0).eval()
    lr = torch.rand(1, 3, 9, 8, requires_grad=True)
    (slow,) = torch.autograd.grad(network(lr).square().sum(), lr)
    (fast,) = torch.autograd.grad(network.requires_grad_(False)(lr).square().sum(), lr)
    assert torch.allclose(slow, fast, rtol=1e-4, atol=1e-6)


def test_a_short_side_is_mirrored_alone():
    torch.manual_seed(0)
    network = SMFANetPlus(2, features=8, blocks=1).eval()
    lr = torch.rand(1, 3, 5, 12)
    mirrored = torch.cat([lr, lr[..., 1:4, :].flip(-2)], -2)
    with torch.no_grad():
        upper = slice(None, 8)  # the last convolution sees the cut
        assert torch.allclose(network(lr)[..., upper, :], network(mirrored)[..., upper, :], atol=1e-6)


def test_the_sidecar_and_the_metadata_agree(edsr, tmp_path):
    path = tmp_path / "weights" / "net.safetensors"
    assert json.loads(artifacts.embedded(path))["config"] == json.loads(path.with_suffix(".json").read_text())["config"]
