"""The report on an installation, as its user calls it."""

import subprocess
import sys
from pathlib import Path

import pytest


def doctor(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mtkd_lightning.doctor", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    root = tmp_path_factory.mktemp("doctor")
    (root / "weights").mkdir()
    (root / "weights/net.json").write_text("{}")
    (root / "data/DIV2K/DIV2K_train_HR").mkdir(parents=True)
    return doctor("--root", str(root), cwd=root), root


def test_a_working_installation(healthy):
    result, _ = healthy
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines), result.stdout
    topics = [line.split()[1] for line in lines]
    assert topics[0] == "python"
    assert {"package", "device", "data", "weights", "disk"} <= set(topics)


def test_what_it_names(healthy):
    result, root = healthy
    output = result.stdout
    assert sys.version.split()[0] in output
    assert "torch " in output
    assert "bf16" in output
    assert "Seven photographs of scikit-image" in output
    assert f"DIV2K at {root}/data/DIV2K" in output
    assert "1 finished networks" in output
    assert "GiB free at" in output


def test_it_writes_nothing(healthy):
    _, root = healthy
    assert sorted(path.name for path in root.iterdir()) == ["data", "weights"]


def test_a_root_that_is_not_there(tmp_path):
    result = doctor("--root", "nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert "there is no folder nowhere" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
