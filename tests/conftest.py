"""Fixtures shared by all tests: where the reference data lies, tiny networks and pictures."""

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("MTKD_SHARED", Path(__file__).parents[2] / "shared"))


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
