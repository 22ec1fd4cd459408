"""Which windows are kept, and how."""

import numpy as np
import pytest
import torch
from PIL import Image

from mtkd_lightning import pictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import Pair, PairedImages
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.evaluation import Bicubic

CPU = torch.device("cpu")


@pytest.fixture
def benchmarks(tmp_path, picture) -> dict[str, PairedImages]:
    """Two of two pictures and one, of different sizes."""
    store = PictureStore(tmp_path / "store")

    def pairs(**images: np.ndarray) -> PairedImages:
        for name, image in images.items():
            write_png(tmp_path / f"{name}.png", image)
        return PairedImages([Pair(f"x/{name}", tmp_path / f"{name}.png") for name in images], 2, store)

    return {"first": pairs(a=picture, b=picture[:40, :50]), "second": pairs(c=picture[20:, 30:])}


def test_each_benchmark_is_asked_in_turn(benchmarks):
    assert pictures.chosen(benchmarks, 6) == [("first", 0), ("second", 0), ("first", 1)]
    assert pictures.chosen(benchmarks, 2) == [("first", 0), ("second", 0)]
    assert pictures.chosen(benchmarks, 0) == []


def test_windows_are_kept_exactly_and_linked(benchmarks, tmp_path, picture):
    asked = pictures.chosen(benchmarks, 1)
    arguments = {"benchmarks": benchmarks, "asked": asked, "device": CPU}
    pictures.keep({"a / b": Bicubic(2)}, folder=tmp_path / "shared", given=True, **arguments)
    pictures.keep({"student": Bicubic(2)}, folder=tmp_path / "run", **arguments)
    pictures.link(tmp_path / "shared", tmp_path / "run")
    pictures.link(tmp_path / "shared", tmp_path / "run")
    (folder,) = (tmp_path / "run").glob("*/*")
    assert sorted(path.name for path in folder.iterdir()) == ["HR.webp", "LR.webp", "a %2F b.webp", "student.webp"]
    found = {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}
    (record,) = pictures.records(benchmarks, asked)
    top, left, height, width = record["window"]
    assert (height, width) == (60, 84)
    assert (found["HR.webp"] == picture[top : top + height, left : left + width]).all()
    assert found["LR.webp"].shape == (30, 42, 3)
    assert (found["student.webp"] == found["a %2F b.webp"]).all()
    assert (folder / "HR.webp").stat().st_nlink == 2


def test_what_is_complete_is_not_made_again(benchmarks, tmp_path):
    class Fails(torch.nn.Module):
        def forward(self, lr):
            raise AssertionError

    arguments = {"benchmarks": benchmarks, "asked": [("first", 0)], "device": CPU, "folder": tmp_path / "x"}
    pictures.keep({"net": Bicubic(2)}, given=True, **arguments)
    pictures.keep({"net": Fails()}, given=True, **arguments)


@pytest.mark.parametrize("ground", [0, 60, 200])
@pytest.mark.parametrize(("top", "left"), [(40, 72), (0, 0), (64, 96)])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_window_is_where_the_detail_is(ground, top, left, scale):
    hr = np.full((96, 128, 3), ground, np.uint8)
    hr[top : top + 32, left : left + 32] += np.random.default_rng(0).integers(0, 30, (32, 32, 1), np.uint8)
    found = pictures.window(hr, scale, 32)
    assert found[2:] == (32, 32)
    assert abs(found[0] - top) <= scale
    assert abs(found[1] - left) <= scale
    assert found[0] % scale == found[1] % scale == 0


def test_a_small_picture_is_kept_as_far_as_its_bands_go():
    assert pictures.window(np.zeros((45, 50, 3), np.uint8), 3, 256)[2:] == (42, 48)
