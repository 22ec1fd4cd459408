"""``python -m mtkd_lightning.evaluate`` as its user meets it, and that its numbers are those of the literature."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtkd_lightning.data.images import write_png
from mtkd_lightning.evaluation import protocol_of


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Run the command in an empty folder; the weights come from the reference data, not from the network."""
    monkeypatch.setenv("MTKD_LIGHTNING_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setenv("MTKD_LIGHTNING_OFFLINE", "1")

    def run(*overrides: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mtkd_lightning.evaluate", *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def mirror(shared, monkeypatch) -> Path:
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(shared / "weights"))
    return shared / "weights"


@pytest.fixture
def benchmarks(tmp_path) -> Path:
    """Two benchmarks of small pictures, and DIV2K's validation set."""
    from skimage.data import astronaut

    root = tmp_path / "benchmarks"
    for name, count in (("A/HR", 2), ("B/HR", 1), ("DIV2K_valid_HR", 1)):
        for k in range(count):
            cut = astronaut()[40 * k : 40 * k + 96, 200 + 10 * k : 296 + 10 * k]
            write_png(root / name / f"{k}.png", cut)
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_name_stands_for_all_its_scales(evaluate, mirror, benchmarks, tmp_path):
    result = evaluate("weights=[lkdn,dctlsa_x4]", "mean=true", f"data.root={benchmarks}")
    assert result.returncode == 0, result.stdout + result.stderr
    table = rows(tmp_path / "evaluation/results.csv")
    named = {(row["scale"], row["network"]) for row in table}
    assert named == {
        *((scale, "bicubic") for scale in "234"),
        *((scale, f"lkdn_x{scale}") for scale in "234"),
        ("4", "dctlsa_x4"),
        ("4", "mean of the 2"),
    }
    assert {row["benchmark"] for row in table} == {"A", "B", "DIV2K_valid"}
    protocols = {(row["benchmark"], row["protocol"]) for row in table if row["scale"] == "4"}
    assert ("A", "Y, crop 4, uint8, mean of images") in protocols
    assert ("DIV2K_valid", "RGB, crop 6, uint8, mean of images") in protocols
    images = rows(tmp_path / "evaluation/images.csv")
    of_a = [float(x["psnr"]) for x in images if (x["benchmark"], x["network"]) == ("A", "lkdn_x2")]
    (mean,) = [float(x["psnr"]) for x in table if (x["benchmark"], x["network"]) == ("A", "lkdn_x2")]
    assert len(of_a) == 2
    assert mean == pytest.approx(sum(of_a) / 2, abs=6e-4)
    shown = (tmp_path / "evaluation/results.md").read_text()
    assert shown in result.stdout
    order = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("| ")]
    assert order[-1] == "bicubic"


def test_pictures_tiles_and_self_ensemble(evaluate, mirror, benchmarks, tmp_path):
    common = ("weights=lkdn_x4", f"data.root={benchmarks}", "data.only=[B]")
    for name, options in {
        "plain": [],
        "tiled": ["tile=22", "overlap=6"],
        "turned": ["self_ensemble=true"],
    }.items():
        result = evaluate(*common, *options, f"save={name}", f"output={name}")
        assert result.returncode == 0, result.stdout + result.stderr

    def picture(name: str) -> np.ndarray:
        with Image.open(tmp_path / name / "x4/lkdn_x4/B/0.png") as image:
            assert image.size == (96, 96)
            return np.asarray(image).astype(int)

    def psnr(name: str) -> float:
        return next(float(x["psnr"]) for x in rows(tmp_path / name / "results.csv") if x["network"] == "lkdn_x4")

    assert np.abs(picture("plain") - picture("tiled")).mean() < 1
    assert psnr("tiled") == pytest.approx(psnr("plain"), abs=0.1)
    assert psnr("turned") > psnr("plain")


def test_a_run_by_its_name_and_a_file(evaluate, finished, benchmarks, tmp_path):
    for text in ("tiny", str(finished / "weights/tiny.safetensors"), str(finished / "runs/tiny")):
        result = evaluate(
            f"weights={text}", f"data.root={benchmarks}", "data.only=[A]", f"paths.weights={finished / 'weights'}"
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert {row["network"] for row in rows(tmp_path / "evaluation/results.csv")} == {"bicubic", "tiny"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "no value for weights"),
        (["weights=lkdm_x4"], "Did you mean lkdn_x4"),
        (["weights=lkdn_x4", "scale=5"], "scale=5: allowed are 2, 3, 4"),
        (["weights=lkdn_x4", "+til=5"], "no key 'til': did you mean tile?"),
        (["weights=lkdn_x4"], "no benchmark at"),
        (["weights=[]"], "weights=[]: name at least one"),
        (["weights=lkdn_x4", "device=tpu"], "device=tpu: allowed are cpu"),
        (["weights=lkdn_x4", "tile=abc"], "tile=abc: it must be a whole number"),
        (["weights=lkdn_x4", "output=benchmarks/A/HR/0.png"], "cannot be written"),
        (["weights=lkdn_x4", "data.root=benchmarks", "data.only=[C]"], "no benchmark C at"),
        (["weights=lkdn_x4", "data.root=benchmarks", "scale=2"], "there are weights for x4"),
        (["weights=lkdn_x4", "data.root=benchmarks", "tile=8", "overlap=8"], "overlap"),
    ],
)
def test_bad_input(evaluate, mirror, benchmarks, overrides, expected):
    result = evaluate(*overrides)
    assert result.returncode == 1
    assert expected in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_picture_that_cannot_be_scored_is_told_of_at_once(evaluate, mirror, benchmarks):
    write_png(benchmarks / "B/HR/tiny.png", np.zeros((16, 16, 3), np.uint8))
    result = evaluate("weights=lkdn_x4", f"data.root={benchmarks}")
    assert result.returncode == 1
    assert "B/HR/tiny.png has a side of 16 pixels; scoring needs 19" in result.stdout + result.stderr


def test_without_the_file_and_the_network(evaluate, benchmarks):
    result = evaluate("weights=edsr_large_x4", f"data.root={benchmarks}")
    assert result.returncode == 1
    assert "MTKD_LIGHTNING_OFFLINE" in result.stdout + result.stderr


def test_an_aggregator_is_no_network_of_its_own(evaluate, finished, benchmarks):
    stem = "tiny_edsr-swinir_x2_dctswin_repaired_tiny"
    result = evaluate(f"weights={stem}", f"data.root={benchmarks}", f"paths.weights={finished / 'weights'}")
    assert result.returncode == 1
    assert "is of an aggregator" in result.stdout


def test_a_sidecar_cannot_run_code(evaluate, finished, benchmarks, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "net.safetensors").write_bytes((finished / "weights/tiny.safetensors").read_bytes())
    (weights / "net.json").write_text('{"sha256": "", "config": {"network": {"_target_": "os.mkdir", "path": "x"}}}')
    result = evaluate("weights=net", f"data.root={benchmarks}")
    assert result.returncode == 1
    assert "asks for os.mkdir" in result.stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "network",
    [
        '"{_target_: os.mkdir, path: x}"',
        '{"_target_": "mtkd_lightning.backbones.edsr.EDSR", "scale": "${oc.create:{_target_:os.mkdir,path:x}}"}',
        '{"_target_": "mtkd_lightning.backbones.base.torch.hub.get_dir"}',
    ],
)
def test_a_sidecar_that_tries_harder(evaluate, finished, benchmarks, tmp_path, network):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/net.safetensors").write_bytes((finished / "weights/tiny.safetensors").read_bytes())
    (tmp_path / "weights/net.json").write_text(f'{{"sha256": "", "config": {{"network": {network}}}}}')
    result = evaluate("weights=net", f"data.root={benchmarks}")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_protocols():
    assert str(protocol_of("Set5", 3)) == "Y, crop 3, uint8, mean of images"
    assert str(protocol_of("DIV2K_valid", 3)) == "RGB, crop 5, uint8, mean of images"


def test_set5_agrees_with_a_reference_implementation(evaluate, shared, mirror, tmp_path):
    """PSNR-Y and SSIM-Y measured with the networks' reference code under the same protocol."""
    root = shared / "data" / "benchmarks"
    result = evaluate("weights=[smfanet_plus_df2k_x4,lkdn_x4]", f"data.root={root}", "data.only=[Set5]", "mean=false")
    assert result.returncode == 0, result.stdout + result.stderr
    found = {row["network"]: row for row in rows(tmp_path / "evaluation/results.csv")}
    wanted = {"bicubic": (28.429, 0.8111), "smfanet_plus_df2k_x4": (32.511, 0.8985), "lkdn_x4": (32.390, 0.8979)}
    for name, (psnr, ssim) in wanted.items():
        assert float(found[name]["psnr"]) == pytest.approx(psnr, abs=0.005)
        assert float(found[name]["ssim"]) == pytest.approx(ssim, abs=0.0002)
