"""``python -m mtkd_lightning.export``: each format beside the network that it is of, and the model card."""

import io
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mtkd_lightning
from mtkd_lightning import artifacts, graphs
from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.lkdn import LKDN
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.export import main
from mtkd_lightning.files import file_sha256

ARGUMENTS = {"scale": 2, "features": 4, "blocks": 1, "res_scale": 0.1}
CONFIG = {
    "stage": "distillation",
    "scale": 2,
    "network": {"_target_": "mtkd_lightning.backbones.edsr.EDSR", **ARGUMENTS},
    "method": {"_target_": "mtkd_lightning.methods.mtkd.MTKD"},
    "recipe": {"steps": 5},
    "data": "0123abcd",
    "teacher": {
        "members": [
            ["lkdn", "f534422583c99dad994fd7df897f6f872637218430cfedf6c2d2a072ea86dbd7"],
            ["mine_|_*x*", "00ff"],
        ],
        "aggregator": {"_target_": "mtkd_lightning.teachers.aggregators.Mean"},
    },
}
TINY = {
    "EDSR": lambda: EDSR(2, features=4, blocks=1),
    "RCAN": lambda: RCAN(3, features=4, groups=1, blocks=1, reduction=2),
    "LKDN": lambda: LKDN(4, features=4, blocks=1),
    "SMFANetPlus": lambda: SMFANetPlus(2, features=4, blocks=1),
    "SwinIR": lambda: SwinIR(2, embed_dim=4, depths=(2,), num_heads=(2,)),
    "DCTLSA": lambda: DCTLSA(2, features=4, blocks=1, heads=2, window_size=4),
}
SIZES = ((1, 25, 39), (3, 24, 40), (1, 5, 70), (1, 8, 16), (1, 1, 1), (1, 1, 9))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTKD_LIGHTNING_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setenv("MTKD_LIGHTNING_OFFLINE", "1")


@pytest.fixture
def export(monkeypatch, capsys):
    """Run the command in this process; give its status and what it wrote."""

    def run(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["export", *overrides])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, "".join(capsys.readouterr())

    return run


@pytest.fixture
def edsr(tmp_path) -> EDSR:
    torch.manual_seed(0)
    network = EDSR(**ARGUMENTS).eval().requires_grad_(False)
    metrics = {"val/psnr": 27.5, "val/ssim": 0.8}
    artifacts.save(
        tmp_path / "weights" / "net.safetensors",
        network.state_dict(),
        CONFIG,
        steps=5,
        seconds=1.5,
        seed=3,
        metrics=metrics,
        protocol="Y, crop 2, uint8, mean of images",
        device="cpu, 1 threads",
    )
    return network


@pytest.fixture
def scored(edsr, tmp_path) -> None:
    """The run that made it, with its benchmark and data."""
    run = tmp_path / "runs" / "net"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("data: {_target_: mtkd_lightning.data.sources.df2k, root: /secret}\n")
    cost = {"parameters": 0, "flops": None, "seconds_per_megapixel": 0.25}
    metrics = {
        "of": {"student": file_sha256(tmp_path / "weights" / "net.safetensors")},
        "scale": 2,
        "protocols": {"Set5": "Y, crop 2, uint8, mean of images"},
        "networks": {"bicubic": cost, "teacher lkdn": cost, "student": cost},
        "images": [
            {"benchmark": "Set5", "network": network, "image": image, "psnr": psnr, "ssim": 0.9}
            for network, psnr in (("bicubic", 30.0), ("teacher lkdn", 33.0), ("student", 31.0))
            for image in ("a", "b")
        ],
    }
    (run / "metrics.json").write_text(json.dumps(metrics))


@pytest.mark.slow
def test_every_format_by_the_command(edsr, scored, tmp_path):
    command = [sys.executable, "-m", "mtkd_lightning.export", "weights=net", "format=[safetensors,onnx,torch_export]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    folder = tmp_path / "export"
    assert {path.name for path in folder.iterdir()} == {"net.safetensors", "net.onnx", "net.pt2", "net.md"}
    assert "[torch.onnx]" not in result.stdout
    assert "opset 18" in result.stdout
    assert "largest difference to PyTorch in float32" in result.stdout
    assert "ms, PyTorch" in result.stdout

    lr = torch.rand(2, 3, 11, 20)
    wanted = edsr(lr)
    alone = mtkd_lightning.load(folder / "net.safetensors")
    assert torch.equal(alone(lr), wanted)
    session = onnxruntime.InferenceSession(folder / "net.onnx")
    assert np.abs(session.run(None, {"lr": lr.numpy()})[0] - wanted.numpy()).max() < 1e-5
    again = torch.export.load(folder / "net.pt2").module(check_guards=False)
    assert torch.allclose(again(lr), wanted, atol=1e-6)

    model = onnx.load(folder / "net.onnx")
    assert next((entry.domain, entry.version) for entry in model.opset_import) == ("", 18)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(dim.dim_param) for dim in dims] == [True, False, True, True]
    for text in (
        model.metadata_props[-1].value,
        safe_open(folder / "net.safetensors", "pt").metadata()[artifacts.EMBEDDED],
    ):
        told = json.loads(text)
        assert told["config"] == CONFIG
        assert told["about"]["teachers"][0]["licence"].startswith("MIT")
        assert told["about"]["scores"][1] == {"benchmark": "Set5", "network": "student", "psnr": 31.0, "ssim": 0.9}


def test_the_card_says_what_is_known(export, edsr, scored, tmp_path):
    assert export("weights=net", "licence=CC0")[0] == 0
    card = (tmp_path / "export/net.md").read_text()
    for line in (
        "# net",
        "* Network: EDSR (scale=2, features=4, blocks=1, res\\_scale=0.1)".replace("\\", ""),
        "* Parameters: 1,259",
        "* Licence of the weights: CC0",
        "* Time: 0.25 s per output megapixel where it was scored (cpu, 1 threads)",
        "* Method: MTKD",
        "* Training: steps 5, seed 3, seconds 1.5, device cpu, 1 threads",
        "* Teacher lkdn (sha256 f534422583c9): licence MIT, of the repository stella-von/LKDN; trained on DF2K "
        "(DIV2K and Flickr2K)",
        "* Teacher mine\\_\\|\\_\\*x\\* (sha256 00ff): licence not recorded; trained on not recorded",
        "* Their pictures were merged by: Mean",
        "* Training pictures: DF2K: DIV2K (academic use) and Flickr2K (no licence is stated; take it as academic use)",
        "| Set5      | student | 31.0 |  0.9 |",
        "Protocol: Y, crop 2, uint8, mean of images.",
    ):
        assert line in card.splitlines(), f"{line}\n\n{card}"
    assert "teacher lkdn |" not in card
    assert "/secret" not in card
    (code,) = [part for part in card.split("```") if part.startswith("python")]
    code = code.removeprefix("python") + "\nassert sr.shape == (1, 3, 8, 10)"
    lines = "import torch; lr = torch.rand(1, 3, 4, 5)" + code
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path / "export", check=True, timeout=120)


def test_the_card_of_a_run_without_benchmarks(export, edsr, tmp_path):
    assert export("weights=net")[0] == 0
    card = (tmp_path / "export/net.md").read_text()
    assert "On the pictures that its training was validated on, no benchmark: psnr 27.5, ssim 0.8." in card
    assert "* Licence of the weights: none is stated" in card
    assert "* Training pictures: not recorded" in card
    assert export("weights=export/net.safetensors", "output=again")[0] == 0  # all of it is in the file
    again = (tmp_path / "again/net.md").read_text()
    assert again == card


def test_the_card_of_a_file_that_nothing_is_known_of(export, tmp_path):
    torch.manual_seed(0)
    save_file(RCAN(2, features=4, groups=1, blocks=1, reduction=2).state_dict(), tmp_path / "a.safetensors")
    status, written = export("weights=a.safetensors")
    assert status == 0, written
    card = (tmp_path / "export/a.md").read_text()
    assert "None is recorded." in card
    assert "What it was trained to undo is not recorded." in card
    assert mtkd_lightning.load(tmp_path / "export/a.safetensors").scale == 2


def test_a_name_of_the_catalogue_in_half(export, shared, monkeypatch, tmp_path):
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(shared / "weights"))
    status, written = export("weights=lkdn_x4", "half=true")
    assert status == 0, written
    path = tmp_path / "export/lkdn_x4_half.safetensors"
    assert path.stat().st_size < 0.6 * (shared / "weights/lkdn_x4.pth").stat().st_size
    network, original = mtkd_lightning.load(path), mtkd_lightning.load(shared / "weights/lkdn_x4.pth")
    lr = torch.rand(1, 3, 12, 12)
    assert next(network.parameters()).dtype == torch.float32
    assert 0 < (network(lr) - original(lr)).abs().max() < 0.02
    card = path.with_suffix(".md").read_text()
    assert "* Licence of the weights: MIT, of the repository stella-von/LKDN" in card
    assert "| Set5      |  32.39 |" in card
    assert "* Training pictures: DF2K (DIV2K and Flickr2K)" in card


def test_what_is_there_stays(export, edsr, tmp_path):
    assert export("weights=net")[0] == 0
    before = (tmp_path / "export/net.safetensors").read_bytes()
    status, written = export("weights=net", "licence=BSD")
    assert status == 1
    assert "net.safetensors is there: say existing=replace" in written
    assert "BSD" not in (tmp_path / "export/net.md").read_text()
    assert export("weights=net", "licence=BSD", "existing=replace")[0] == 0
    assert "BSD" in (tmp_path / "export/net.md").read_text()
    assert (tmp_path / "export/net.safetensors").read_bytes() != before
    status, written = export("weights=net", "output=weights", "existing=replace")
    assert status == 1
    assert "is what would be exported" in written
    mtkd_lightning.load(tmp_path / "weights/net.safetensors")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "no value for weights"),
        (["weights=lkdm_x4"], "Did you mean lkdn_x4"),
        (["weights=a.pth"], "a.pth cannot be read as weights"),
        (["weights=b.safetensors"], "holds no network of a known kind"),
        (["weights=a.pth", "format=tflite"], "format=tflite: allowed are safetensors, onnx, torch_export"),
        (["weights=a.pth", "format=[]"], "format=[]"),
        (["weights=a.pth", "half=maybe"], "half=maybe: it must be true or false"),
        (["weights=a.pth", "existing=remake"], "existing=remake: allowed are stop, replace"),
        (["weights=a.pth", "+opset=18"], "no key 'opset'"),
        (["weights=c.safetensors", "output=a.pth"], "cannot be written"),
    ],
)
def test_bad_input(export, tmp_path, overrides, expected):
    (tmp_path / "a.pth").write_text("<html>")
    save_file({"x": torch.ones(1)}, tmp_path / "b.safetensors")
    save_file(EDSR(2).state_dict(), tmp_path / "c.safetensors")
    status, written = export(*overrides)
    assert status == 1
    assert expected in written
    assert "Traceback" not in written
    assert not (tmp_path / "export").exists()


def test_without_the_packages(export, edsr, monkeypatch):
    monkeypatch.setattr("mtkd_lightning.export.NEEDED", ("onnx", "no_such_package"))
    status, written = export("weights=net", "format=onnx")
    assert status == 1
    assert "format=onnx needs no_such_package: pip install 'mtkd_lightning[export]'" in written


def test_weights_that_float16_cannot_hold():
    network = EDSR(2, features=4, blocks=1).eval().requires_grad_(False)
    network.conv_first.weight.mul_(1e4)
    half = graphs.InHalf(network)
    with pytest.raises(MTKDError, match=r"differ by nan.* need more than float16 can hold"):
        graphs._checked(network, half, b"", "ONNX", True)


def test_another_picture_is_refused():
    network = EDSR(2, features=4, blocks=1).eval().requires_grad_(False)
    with pytest.raises(MTKDError, match=r"by 0\.001, and 0\.0001 of 1\.0 is allowed; nothing was written"):
        graphs._checked(network, lambda lr: network(lr) + 1e-3, b"", "ONNX", False)


class Branching(EDSR):
    """A network that no graph for every size can hold."""

    def extract(self, lr, keep):
        return super().extract(lr * (2 if lr.sum() > 0 else 1), keep)


def test_a_network_that_cannot_be_exported():
    network = Branching(2, features=4, blocks=1).eval().requires_grad_(False)
    with pytest.raises(MTKDError, match="cannot export this Branching for pictures of every size"):
        graphs.to_torch_export(network, False, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_graph_for_every_size_of_every_backbone(tmp_path, name):
    torch.manual_seed(0)
    network = TINY[name]().eval().requires_grad_(False)
    for half in (False, True):
        exported = graphs.to_onnx(network, half, {"name": name})
        (tmp_path / "net.onnx").write_bytes(exported.content)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        for count, height, width in SIZES:
            lr = torch.rand(count, 3, height, width)
            sr = torch.from_numpy(session.run(None, {"lr": lr.numpy()})[0])
            assert torch.allclose(sr, network(lr), atol=0.02 if half else 1e-5), (half, height, width)
    program = torch.export.load(io.BytesIO(graphs.to_torch_export(network, False, {}).content))
    for count, height, width in SIZES:
        lr = torch.rand(count, 3, height, width)
        assert torch.allclose(program.module(check_guards=False)(lr), network(lr), atol=1e-5), (height, width)
