from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut, immunohistochemistry

from mtkd_lightning.data import sources
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.data.sources import demo_photographs, df2k, div2k, flickr2k, folders
from mtkd_lightning.errors import MTKDError


def names(images) -> list[str]:
    return [pair.name for pair in images.pairs]


def fill(folder: Path, picture: np.ndarray, count: int, lr: Path | None = None, scale: int = 4) -> None:
    for i in range(count):
        write_png(folder / f"{i:04}.png", picture[i : i + 32])
        if lr is not None:
            write_png(lr / f"{i:04}x{scale}.png", downscale(picture[i : i + 32], scale))


def test_demo_photographs(tmp_path):
    pictures = demo_photographs(4, tmp_path)
    assert names(pictures.train) == ["coffee", "rocket", "hubble_deep_field", "retina"]
    assert {name: names(images) for name, images in pictures.benchmarks.items()} == {
        "photographs": ["astronaut", "chelsea"]
    }
    assert "not a benchmark" in pictures.note
    assert not list(tmp_path.iterdir())  # listing reads no picture
    np.testing.assert_array_equal(pictures.validation[0][1], immunohistochemistry())
    np.testing.assert_array_equal(pictures.benchmarks["photographs"][0][1], astronaut())
    assert all(pair.hr.is_file() for pair in pictures.train.pairs)


def test_absent_photograph(tmp_path, monkeypatch):
    monkeypatch.setitem(sources.TRAIN, "coffee", "tea.png")
    with pytest.raises(MTKDError, match=r"without .*tea\.png: reinstall"):
        demo_photographs(4, tmp_path)


def test_folders_hold_out_validation(picture, tmp_path):
    fill(tmp_path / "train" / "a", picture, 6)
    fill(tmp_path / "train" / "b", picture, 4)
    pictures = folders(tmp_path, 4, tmp_path / "cache", validation_pictures=2)
    assert names(pictures.validation) == ["a/0002", "b/0001"]
    assert len(pictures.train) == 8
    assert not set(names(pictures.train)) & set(names(pictures.validation))
    assert pictures.benchmarks == {}
    assert "8 pictures" in pictures.note
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_hold_out_is_spread_and_of_the_wanted_size(picture, tmp_path, count):
    fill(tmp_path / "train", picture, 10)
    held = [int(name) for name in names(folders(tmp_path, 4, tmp_path, count).validation)]
    assert len(held) == count
    gaps = np.diff(held)
    assert count == 1 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("count", [0, 10, 11])
def test_hold_out_must_leave_something(picture, tmp_path, count):
    fill(tmp_path / "train", picture, 10)
    with pytest.raises(MTKDError, match=rf"cannot hold {count} of the 10 .*data\.validation_pictures="):
        folders(tmp_path, 4, tmp_path, validation_pictures=count)


def test_folders_with_everything_given(picture, tmp_path):
    for part in ("train", "validation", "benchmarks/One"):
        fill(tmp_path / part / "HR", picture, 3, tmp_path / part / "LR_bicubic" / "X4")
    fill(tmp_path / "benchmarks" / "Two" / "HR", picture, 2)
    fill(tmp_path / "benchmarks" / ".hidden" / "HR", picture, 2)
    pictures = folders(tmp_path, 4, tmp_path / "cache")
    assert names(pictures.train) == names(pictures.validation) == ["0000", "0001", "0002"]
    assert list(pictures.benchmarks) == ["One", "Two"]
    assert pictures.train.pairs[0].lr == tmp_path / "train/LR_bicubic/X4/0000x4.png"
    assert pictures.benchmarks["One"].pairs[0].lr is not None
    assert pictures.benchmarks["Two"].pairs[0].lr is None
    np.testing.assert_array_equal(pictures.benchmarks["Two"][0][0], pictures.benchmarks["One"][0][0])
    assert folders(tmp_path, 2, tmp_path / "cache").train.pairs[0].lr is None


def test_strict_size_reaches_every_set(picture, tmp_path):
    for part in ("train", "validation", "benchmarks/One"):
        fill(tmp_path / part, picture[:, :83], 2)
    pictures = folders(tmp_path, 4, tmp_path / "cache", strict_size=True)
    for images in (pictures.train, pictures.validation, pictures.benchmarks["One"]):
        with pytest.raises(MTKDError, match="strict_size"):
            images[0]


def test_missing_folder_shows_the_layout(tmp_path):
    for root in (tmp_path / "none", tmp_path):
        with pytest.raises(MTKDError) as error:
            folders(root, 3, tmp_path)
        for text in (str(root / "train"), "LR_bicubic/X3", "benchmarks/Set5/HR", "validation/", "data.root="):
            assert text in str(error.value)


def test_lr_pictures_are_not_trained_on(picture, tmp_path):
    """HR pictures lie beside their folder, not in one of their own."""
    fill(tmp_path / "train", picture, 2)
    fill(tmp_path / "train/LR_bicubic/X2", picture, 2)
    with pytest.raises(MTKDError, match=r"train/LR_bicubic has no .*train/HR beside it: move the HR pictures there"):
        folders(tmp_path, 2, tmp_path / "cache")


def test_benchmark_without_pictures_is_reported(picture, tmp_path):
    fill(tmp_path / "train", picture, 10)
    (tmp_path / "benchmarks" / "Empty" / "HR").mkdir(parents=True)
    with pytest.raises(MTKDError, match="Empty/HR"):
        folders(tmp_path, 4, tmp_path)


@pytest.mark.parametrize("lr", [True, False])
def test_div2k(picture, tmp_path, lr):
    for part, count in (("train", 5), ("valid", 12)):
        small = tmp_path / f"DIV2K_{part}_LR_bicubic" / "X4" if lr else None
        fill(tmp_path / f"DIV2K_{part}_HR", picture, count, small)
    fill(tmp_path / "benchmarks" / "Set5" / "HR", picture, 1)
    pictures = div2k(tmp_path, 4, tmp_path / "cache")
    assert len(pictures.train) == 5
    assert names(pictures.validation) == [f"{i:04}" for i in range(10)]
    assert (pictures.train.pairs[0].lr is not None) == lr
    assert (pictures.validation.pairs[0].lr is not None) == lr
    assert list(pictures.benchmarks) == ["Set5"]
    assert pictures.train[0][0].shape == (8, 21, 3)
    assert len(div2k(tmp_path, 4, tmp_path / "cache", validation_pictures=3).validation) == 3
    with pytest.raises(MTKDError, match="validation_pictures 0"):
        div2k(tmp_path, 4, tmp_path / "cache", validation_pictures=0)


def test_flickr2k_and_df2k(picture, tmp_path):
    for folder, count in (("DIV2K_train", 3), ("DIV2K_valid", 2), ("Flickr2K/Flickr2K", 4)):
        fill(tmp_path / f"{folder}_HR", picture, count, tmp_path / f"{folder}_LR_bicubic" / "X4")
    alone = flickr2k(tmp_path, 4, tmp_path / "cache", validation_pictures=1)
    assert names(alone.train) == ["0000", "0001", "0003"]
    assert names(alone.validation) == ["0002"]
    both = df2k(tmp_path, 4, tmp_path / "cache", validation_pictures=1)
    assert [pair.hr.parent.name for pair in both.train.pairs] == ["DIV2K_train_HR"] * 3 + ["Flickr2K_HR"] * 4
    assert names(both.validation) == ["0000"]
    assert both.validation.pairs[0].hr.parent.name == "DIV2K_valid_HR"
    for pair in (*alone.train.pairs, *both.train.pairs, *both.validation.pairs):
        assert pair.lr == Path(str(pair.hr).replace("_HR/", "_LR_bicubic/X4/").replace(".png", "x4.png"))
    assert df2k(tmp_path, 2, tmp_path).train.pairs[0].lr is None
    assert "7 training" in both.note


@pytest.mark.parametrize(
    ("source", "there", "absent"),
    [
        (div2k, "DIV2K_train_HR", "no folder DIV2K_valid_HR"),
        (flickr2k, "Flickr2K", "no folder Flickr2K/Flickr2K_HR"),
        (df2k, "DIV2K_valid_HR", "no folder DIV2K_train_HR and no Flickr2K/Flickr2K_HR"),
    ],
)
def test_missing_data_set_says_how_to_get_it(picture, tmp_path, source, there, absent):
    fill(tmp_path / there, picture, 1)
    with pytest.raises(MTKDError) as error:
        source(tmp_path, 3, tmp_path / "cache")
    message = str(error.value)
    assert absent in message
    assert f"python -m mtkd_lightning.data name={source.__name__} root={tmp_path} scales=[3]\n" in message
    assert "academic" in message
    assert "data.root=" in message


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_reference_data(shared, tmp_path, scale):
    pictures = folders(shared / "data", scale, tmp_path)
    assert len(pictures.train) == 563
    assert len(pictures.validation) == 8
    sizes = {name: len(images) for name, images in pictures.benchmarks.items()}
    assert sizes == {"B100": 100, "Set14": 14, "Set5": 5}
    for name in ("Set5", "Set14"):
        assert all(pair.lr is not None for pair in pictures.benchmarks[name].pairs)
        assert len(pictures.benchmarks[name].prepare()) == sizes[name]
    lr, hr, name = pictures.benchmarks["B100"][0]
    assert lr.shape[0] * scale == hr.shape[0]
    assert name == "101085"
