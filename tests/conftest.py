"""Fixtures shared by all tests: reference data, a picture, and a main job that takes seconds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Of the tests and of the jobs they start: tiny networks lose more to waiting threads than they gain from a second one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("MTKD_SHARED", Path(__file__).parents[2] / "shared"))
STAGES = ("teachers", "aggregation", "distillation")

# The demonstration with networks and trainings so small that only the path through them is tested.
TINY = [
    "+experiment=rcan_multi_teacher",
    "trainer.accelerator=cpu",  # bit for bit
    "scale=2",
    "name=tiny",
    "teacher.name=tiny",
    "student.features=4",
    "student.groups=1",
    "student.blocks=1",
    "student.reduction=2",
    "teacher.members.edsr.backbone.features=4",
    "teacher.members.edsr.backbone.blocks=1",
    "teacher.members.swinir.backbone.embed_dim=4",
    "teacher.members.swinir.backbone.depths=[2]",
    "teacher.members.swinir.backbone.num_heads=[2]",
    "~teacher.members.rcan",
    "teacher.accept_weak=true",
    *(
        f"training.{stage}.{setting}"
        for stage in STAGES
        for setting in ("steps=6", "batch_size=2", "lr_patch=8", "validate_every=6", "checkpoint_every=2")
    ),
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data outside the repository: golden tensors and benchmark pictures."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED} (set MTKD_SHARED)")
    return SHARED


@pytest.fixture
def picture() -> np.ndarray:
    """A real photograph, uint8 (60, 84, 3)."""
    from skimage.data import chelsea

    return chelsea()[100:160, 120:204].copy()


@pytest.fixture(scope="session")
def job() -> Callable[..., subprocess.CompletedProcess]:
    """Run the tiny main job in a process of its own, as a user does."""

    def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
        return subprocess.run(_command(*overrides), cwd=folder, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def killed_job() -> Callable[..., None]:
    """Start the tiny main job and kill it (SIGKILL) as soon as a file exists."""

    def run(folder: Path, *overrides: str, when: Path) -> None:
        process = subprocess.Popen(
            _command(*overrides), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not when.exists():
            assert process.poll() is None, "the job ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, job) -> Path:
    """A folder in which the tiny main job has run, all stages of it; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("finished")
    result = job(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "output").write_text(result.stdout)
    return folder


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Run the main job in this process, where it must end with status 1; give what it wrote."""

    def run(*overrides: str, tiny: bool = True, cwd: Path = tmp_path) -> str:
        from mtkd_lightning.__main__ import main

        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["mtkd_lightning", *(TINY if tiny else []), *overrides])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        written = "".join(capsys.readouterr())
        assert stop.value.code == 1, written
        assert "Traceback" not in written
        assert not list(cwd.rglob("*.tmp"))
        return written

    return run


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """The command line of the tiny main job."""
    return _command


def _command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "mtkd_lightning", *TINY, *overrides]
