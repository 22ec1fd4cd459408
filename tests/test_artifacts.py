"""Weights and their sidecars, and files that are whole or not there."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mtkd_lightning import artifacts
from mtkd_lightning.artifacts import OtherConfigurationError
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256, replacing

CONFIG = {
    "scale": 2,
    "network": {"features": 4, "depths": [2, 2]},
    "recipe": {"steps": 5, "validate_every": 10, "checkpoint_every": 10, "init_from": None},
}


def changed(**values: object) -> dict:
    return {**CONFIG, **values}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.rand(2, 3).T, "b": torch.arange(3)}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights" / "net.safetensors"


def test_what_is_saved_is_found(path, weights):
    saved = artifacts.save(path, weights, CONFIG, steps=5, metrics={"val/psnr": 30.0})
    found = artifacts.find(path, CONFIG)
    assert found.sha256 == saved.sha256 == file_sha256(path)
    assert all(torch.equal(found.tensors()[name], x) for name, x in weights.items())
    assert found.record["config"] == CONFIG
    assert (found.record["steps"], found.record["metrics"]) == (5, {"val/psnr": 30.0})
    assert found.record["versions"]["torch"] == torch.__version__
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.json", "net.safetensors"]
    assert path.stat().st_mode == path.with_suffix(".json").stat().st_mode  # readable by others, too


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_one_file_of_the_two_is_none(path, weights, suffix):
    assert artifacts.find(path, CONFIG) is None
    artifacts.save(path, weights, CONFIG)
    path.with_suffix(suffix).unlink()
    assert artifacts.find(path, CONFIG) is None


def test_a_file_without_its_sidecar_is_not_overwritten(path, weights):
    path.parent.mkdir()
    path.write_bytes(b"a user's")
    artifacts.save(path, weights, CONFIG)
    assert path.with_stem(f"{path.stem}.old").read_bytes() == b"a user's"
    assert artifacts.find(path, CONFIG) is not None


def test_a_changed_file_is_refused(path, weights):
    artifact = artifacts.save(path, weights, CONFIG)
    save_file({"a": weights["a"].contiguous(), "b": torch.arange(1, 4)}, path)
    with pytest.raises(MTKDError, match="sha256 differs"):
        artifact.tensors()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"config": {}}', '{"config_hash": "0"}'])
def test_a_broken_sidecar_is_refused(path, weights, text):
    artifacts.save(path, weights, CONFIG)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(MTKDError, match=r"net\.json cannot be read .* delete it and net\.safetensors"):
        artifacts.find(path, CONFIG)


@pytest.mark.parametrize("key", ["validate_every", "checkpoint_every", "init_from"])
def test_how_a_training_is_watched_is_not_in_the_hash(path, weights, key):
    other = changed(recipe={**CONFIG["recipe"], key: 7})
    artifacts.save(path, weights, CONFIG)
    assert artifacts.find(path, other) is not None


def test_everything_else_is_in_the_hash():
    one = artifacts.config_hash(CONFIG)
    assert one == artifacts.config_hash(dict(reversed(CONFIG.items())))
    assert len(one) == 16
    others = [
        changed(scale=3),
        changed(network={**CONFIG["network"], "depths": [2]}),
        changed(recipe={**CONFIG["recipe"], "steps": 6}),
        changed(init_sha256="0"),
    ]
    assert len({one, *map(artifacts.config_hash, others)}) == 5


def test_the_order_of_members_is_in_the_hash():
    members = [["edsr", "1"], ["rcan", "2"]]
    assert artifacts.config_hash(changed(members=members)) != artifacts.config_hash(changed(members=members[::-1]))


def test_differences_are_named(path, weights):
    artifacts.save(path, weights, CONFIG)
    before = path.read_bytes()
    asked = {**changed(scale=4, method="mtkd", recipe={**CONFIG["recipe"], "steps": 9, "init_from": "x"})}
    del asked["network"]
    with pytest.raises(OtherConfigurationError) as error:
        artifacts.find(path, asked)
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
    assert lines == [
        'method: absent there, "mtkd" asked',
        'network: {"features": 4, "depths": [2, 2]} there, absent asked',
        "recipe.steps: 5 there, 9 asked",
        "scale: 2 there, 4 asked",
    ]
    assert path.read_bytes() == before


def test_put_aside_keeps_the_last_one(path, weights):
    for first in (1.0, 2.0):
        artifacts.save(path, {"a": torch.tensor([first])}, CONFIG)
        artifacts.put_aside(path)
        assert not path.exists()
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.old.json", "net.old.safetensors"]
    assert artifacts.find(path.with_stem("net.old"), CONFIG).tensors()["a"] == 2
    artifacts.put_aside(path)


def test_load_into():
    network, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    artifacts.load_into(network, other.state_dict(), "a file")
    assert torch.equal(network.weight, other.weight)


def test_load_into_another_network_says_what_differs():
    network = nn.Conv2d(3, 4, 3)
    before = network.weight.clone()
    with pytest.raises(MTKDError) as error:
        artifacts.load_into(network, {"weight": torch.ones(5, 3, 3, 3), "extra": torch.ones(1)}, "net.pth")
    message = str(error.value)
    assert "net.pth holds the weights of another network than this Conv2d" in message
    for line in (
        "missing bias (4,)",
        "unexpected extra (1,)",
        "weight is (5, 3, 3, 3) in the file and (4, 3, 3, 3) in the network",
    ):
        assert line in message
    assert torch.equal(network.weight, before)


def test_load_into_does_not_list_hundreds():
    with pytest.raises(MTKDError, match="and 18 more"):
        artifacts.load_into(nn.Identity(), {str(i): torch.ones(1) for i in range(30)}, "net.pth")


def test_replacing(tmp_path):
    path = tmp_path / "new" / "file"
    for text in ("one", "two"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent  # else the rename is a copy
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_nothing_on_failure(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
def test_no_space_is_said_so(tmp_path):
    def write() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            Path("/dev/full").write_text("x" * 100_000)

    with pytest.raises(MTKDError, match=r"no space left to write .*file .* nothing was changed"):
        write()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_artefact(small_disk):
    path = small_disk / "net.safetensors"
    artifacts.save(path, {"a": torch.zeros(4000)}, CONFIG)
    files = {file: file.read_bytes() for file in small_disk.iterdir()}
    with pytest.raises(MTKDError, match="no space left to write"):
        artifacts.save(path, {"a": torch.ones(20_000)}, CONFIG)
    assert files == {file: file.read_bytes() for file in small_disk.iterdir()}
    assert load_file(path)["a"].sum() == 0
    assert json.loads(path.with_suffix(".json").read_text())["sha256"] == file_sha256(path)
