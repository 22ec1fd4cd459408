"""Fixtures shared by all tests: where the reference data lies, a picture, a main job that takes seconds."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("MTKD_SHARED", Path(__file__).parents[2] / "shared"))

# The demonstration with networks and trainings so small that only the path through them is tested.
TINY = [
    "+experiment=rcan_multi_teacher",
    "scale=2",
    "student.features=4",
    "student.groups=1",
    "student.blocks=1",
    "student.reduction=2",
    "teacher.members.edsr.backbone.features=4",
    "teacher.members.edsr.backbone.blocks=1",
    "teacher.members.swinir.backbone.embed_dim=4",
    "teacher.members.swinir.backbone.depths=[2]",
    "teacher.members.swinir.backbone.num_heads=[2]",
    "teacher.members.rcan.backbone.features=4",
    "teacher.members.rcan.backbone.groups=1",
    "teacher.members.rcan.backbone.blocks=1",
    "teacher.members.rcan.backbone.reduction=2",
    "aggregator.embed_dim=4",
    "aggregator.features=4",
    *(
        f"training.{stage}.{setting}"
        for stage in ("teachers", "aggregation", "distillation")
        for setting in ("steps=6", "batch_size=2", "lr_patch=8", "validate_every=3", "checkpoint_every=2")
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


Job = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def job(tmp_path) -> Job:
    """Run the main job as a user does, in a process of its own, in an empty folder."""

    def run(*overrides: str, cwd: Path = tmp_path, tiny: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(command(*overrides, tiny=tiny), cwd=cwd, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def killed_job(tmp_path) -> Callable[..., None]:
    """Start the main job and kill it (SIGKILL) as soon as a file exists."""

    def run(*overrides: str, when: Path, cwd: Path = tmp_path) -> None:
        process = subprocess.Popen(command(*overrides), cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not when.exists():
            assert process.poll() is None, "the job ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()

    return run


def command(*overrides: str, tiny: bool = True) -> list[str]:
    return [sys.executable, "-m", "mtkd_lightning", *(TINY if tiny else []), *overrides]
