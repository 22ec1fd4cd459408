import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from omegaconf import OmegaConf

from mtkd_lightning import catalogue
from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.catalogue import Entry, cache_folder, entries, obtain
from mtkd_lightning.config import CONF, SCALES, build
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256
from mtkd_lightning.metrics.complexity import parameters

BACKBONES = {
    "edsr_baseline": "edsr_baseline",
    "edsr_large": "edsr_large",
    "swinir_m_df2k": "swinir_medium",
    "swinir_m_div2k": "swinir_medium",
    "swinir_s": "swinir_light",
}
COMPACT = ("dctlsa", "lkdn", "smfanet_plus_df2k")
FILES = sorted((CONF / "catalogue").glob("*.yaml"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("MTKD_LIGHTNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MTKD_LIGHTNING_OFFLINE", "1")
    monkeypatch.delenv("MTKD_LIGHTNING_MIRROR", raising=False)


def test_the_catalogue_is_complete():
    assert {path.stem for path in FILES} == {*BACKBONES, *COMPACT}
    assert set(entries()) == {f"{path.stem}_x{scale}" for path in FILES for scale in SCALES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files(path):
    network = OmegaConf.to_container(OmegaConf.load(path))
    derived = {"name", "network", "scale", "file"}
    of_scale = {"url", "sha256", "parameters", "expected"}
    assert set(network) == {field.name for field in fields(Entry)} - derived - of_scale | {"scales"}
    assert list(network["scales"]) == list(SCALES)
    assert all(set(values) == of_scale for values in network["scales"].values())
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    stated = re.search(r"([\d.]+) / ([\d.]+) / ([\d.]+) M parameters", " ".join(comment)).groups()
    assert [f"{values['parameters'] / 1e6:.3f}" for values in network["scales"].values()] == list(stated)
    assert not any("\t" in line or len(line) > 120 for line in comment)


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
def test_entries(entry):
    assert entry.name == f"{entry.network}_x{entry.scale}"
    assert entry.file in (f"{entry.name}.pt", f"{entry.name}.pth")
    assert entry.file.endswith(Path(urlsplit(entry.url).path).suffix)
    assert entry.url.startswith("https://")
    assert f"{entry.scale}" in Path(entry.url).name
    assert all(isinstance(text, str) and text for text in (entry.licence, entry.training_data, entry.source))
    assert re.match("(MIT|Apache-2.0), ", entry.licence)
    assert entry.training_data.split()[0] in ("DIV2K", "DF2K")
    assert set(entry.expected) <= {"Set5", "Set14", "B100", "Urban100", "Manga109"}
    assert all(isinstance(value, float) and 25 < value < 40 for value in entry.expected.values())
    if "cv.snu.ac.kr" in entry.url:
        assert re.search(r"-([0-9a-f]{8})\.pt$", entry.url)[1] == entry.sha256
    elif "raw.githubusercontent.com" in entry.url:
        assert re.search("/[0-9a-f]{40}/", entry.url)
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
    else:
        assert entry.sha256 is None


def test_expected_numbers():
    known = entries()
    assert [name for name in known if not known[name].expected] == ["edsr_baseline_x3"]
    for network in (path.stem for path in FILES):
        for smaller, larger in ((2, 3), (3, 4)):
            easy, hard = known[f"{network}_x{smaller}"], known[f"{network}_x{larger}"]
            assert all(easy.expected[name] > hard.expected[name] for name in easy.expected if name in hard.expected)
    assert known["edsr_large_x4"].expected["Urban100"] == 26.64
    assert known["swinir_m_df2k_x4"].expected["Manga109"] == 32.03
    assert known["dctlsa_x2"].expected == {"Set5": 38.246, "Set14": 34.033, "B100": 32.376}


@pytest.mark.parametrize("network", BACKBONES)
def test_parameters_are_those_of_our_networks(network):
    for scale in SCALES:
        config = OmegaConf.create(
            {"scale": scale, "network": OmegaConf.load(CONF / f"backbone/{BACKBONES[network]}.yaml")}
        )
        OmegaConf.resolve(config)
        entry = entries()[f"{network}_x{scale}"]
        with torch.device("meta"):
            assert parameters(build(config.network)) == entry.parameters
        for name, value in entry.arguments.items():
            assert config.network[name] == value


def test_arguments_of_dctlsa_are_its_constructor_s():
    defaults = inspect.signature(DCTLSA).parameters
    for name, value in entries()["dctlsa_x2"].arguments.items():
        assert defaults[name].default == value


def test_parameters_are_those_published(shared):
    index = OmegaConf.load(shared / "golden" / "index.json")
    known = entries()
    published = index.published_parameter_counts
    assert known["edsr_baseline_x4"].parameters == published["EDSR x4 64f 16b"]
    assert known["edsr_large_x4"].parameters == published["EDSR x4 256f 32b"]
    assert known["swinir_m_df2k_x4"].parameters == published["SwinIR classical x4"]
    assert known["swinir_s_x4"].parameters == published["SwinIR light x4"]
    for network in COMPACT:
        for scale in SCALES:
            golden = index[f"pretrained_{network}_x{scale}"]
            assert known[f"{network}_x{scale}"].parameters == golden.parameters
            assert known[f"{network}_x{scale}"].file == Path(golden.weights).name


@pytest.mark.parametrize("network", COMPACT)
def test_obtain_from_a_mirror(shared, network, monkeypatch):
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(shared / "weights"))
    paths = [obtain(f"{network}_x{scale}") for scale in SCALES]
    assert [file_sha256(path) for path in paths] == [entries()[path.stem].sha256 for path in paths]
    assert {path.parent for path in paths} == {cache_folder() / "weights"}
    monkeypatch.delenv("MTKD_LIGHTNING_MIRROR")
    assert [obtain(path.stem) for path in paths] == paths


def test_a_file_that_cannot_be_had(tmp_path):
    with pytest.raises(MTKDError) as error:
        obtain("swinir_s_x4")
    assert entries()["swinir_s_x4"].url in str(error.value)
    assert str(tmp_path / "cache" / "weights" / "swinir_s_x4.pth") in str(error.value)


@pytest.mark.parametrize("content", [b"<html>sign in first</html>", b"PK\x03\x04 cut short"])
def test_what_came_in_place_of_a_file_is_not_kept(tmp_path, monkeypatch, content):
    """No sha256 of it is published."""
    (tmp_path / "mirror").mkdir()
    file = tmp_path / "mirror" / "swinir_s_x4.pth"
    file.write_bytes(content)
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(file.parent))
    with pytest.raises(MTKDError, match="It was removed: the same command fetches it again"):
        obtain("swinir_s_x4")
    torch.save({"x": torch.zeros(1)}, file)
    assert obtain("swinir_s_x4").read_bytes() == file.read_bytes()


def test_an_unknown_name():
    with pytest.raises(MTKDError, match=r"no 'edsr_baselin_x4': did you mean edsr_baseline_x4.*lkdn_x2, lkdn_x3"):
        obtain("edsr_baselin_x4")
    with pytest.raises(MTKDError, match="no 'rcan': It has dctlsa_x2, "):
        obtain("rcan")


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("MTKD_LIGHTNING_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.delenv("MTKD_LIGHTNING_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "mtkd_lightning"


@pytest.mark.parametrize("content", ["licence: MIT", "scales: {2: {}}", "scales: {2: {url: a/b.pt}}", "[1]"])
def test_a_file_that_is_no_entry(tmp_path, monkeypatch, content):
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "net.yaml").write_text(content)
    monkeypatch.setattr(catalogue, "CONF", tmp_path)
    with pytest.raises(MTKDError, match=r"catalogue/net\.yaml is not an entry of the catalogue"):
        entries()


def test_reading_does_not_import_torch():
    code = "import sys, mtkd_lightning.catalogue as c; c.entries(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
