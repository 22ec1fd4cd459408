from pathlib import Path

import numpy as np
import pytest

from mtkd_lightning.data.images import read_rgb, write_png
from mtkd_lightning.data.paired import Pair, PairedImages, find_pairs
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError


@pytest.fixture
def store(tmp_path) -> PictureStore:
    return PictureStore(tmp_path / "store")


@pytest.fixture
def hr(tmp_path, picture) -> Path:
    write_png(tmp_path / "hr" / "0001.png", picture)
    write_png(tmp_path / "hr" / "a" / "0002.png", picture[:41, :53])
    return tmp_path / "hr"


def add_lr(hr: Path, suffix: str = "", scale: int = 4) -> Path:
    folder = hr.parent / "lr"
    for path in hr.rglob("*.png"):
        image = read_rgb(path)
        height, width = (side - side % scale for side in image.shape[:2])
        target = folder / path.relative_to(hr).with_name(f"{path.stem}{suffix}.png")
        write_png(target, downscale(image[:height, :width], scale))
    return folder


@pytest.mark.parametrize("suffix", ["", "x4"])
def test_pairs_are_found_by_relative_name(hr, suffix):
    lr = add_lr(hr, suffix)
    assert find_pairs(hr, lr, 4) == [
        Pair("0001", hr / "0001.png", lr / f"0001{suffix}.png"),
        Pair("a/0002", hr / "a/0002.png", lr / f"a/0002{suffix}.png"),
    ]


def test_without_lr(hr):
    assert find_pairs(hr, None, 4) == [Pair("0001", hr / "0001.png"), Pair("a/0002", hr / "a/0002.png")]


def test_missing_lr_is_listed(hr, picture):
    lr = add_lr(hr, "x4")
    with pytest.raises(MTKDError, match=r"2 of 2 pictures have no LR .*: 0001, a/0002\. .*x3"):
        find_pairs(hr, lr, 3)
    for i in range(20):
        write_png(hr / f"{i:02}.png", picture)
    with pytest.raises(MTKDError, match=r"20 of 22 .*: 00, 01, 02, 03, 04, \.\.\.\."):
        find_pairs(hr, lr, 4)


def test_duplicate_names(hr, picture):
    lr = add_lr(hr)
    write_png(lr / "0001x4.png", picture)
    with pytest.raises(MTKDError, match=r"0001\.png has two LR pictures, .*0001\.png and .*0001x4\.png"):
        find_pairs(hr, lr, 4)
    (hr / "0001.bmp").touch()
    with pytest.raises(MTKDError, match=r"0001\.bmp and .*0001\.png have the same name"):
        find_pairs(hr, None, 4)


def test_missing_folders(hr, tmp_path):
    with pytest.raises(MTKDError, match="nothere"):
        find_pairs(tmp_path / "nothere", None, 4)
    with pytest.raises(MTKDError, match="nothere"):
        find_pairs(hr, tmp_path / "nothere", 4)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_items(hr, picture, store, scale, given):
    lr = add_lr(hr, f"x{scale}", scale) if given else None
    images = PairedImages(find_pairs(hr, lr, scale), scale, store)
    assert len(images) == 2
    items = list(images)
    assert [name for _, _, name in items] == ["0001", "a/0002"]
    for (small, large, _), source in zip(items, (picture, picture[:41, :53]), strict=True):
        height, width = (side - side % scale for side in source.shape[:2])
        np.testing.assert_array_equal(large, source[:height, :width])
        np.testing.assert_array_equal(small, downscale(source[:height, :width], scale))
        assert not small.flags.writeable
        assert not large.flags.writeable


def test_given_lr_is_used_as_it_is(hr, picture, store):
    lr = add_lr(hr)
    write_png(lr / "0001.png", picture[:15, :21])
    small, _, _ = PairedImages(find_pairs(hr, lr, 4), 4, store)[0]
    np.testing.assert_array_equal(small, picture[:15, :21])


@pytest.mark.parametrize(("height", "width"), [(11, 13), (10, 14), (9, 13), (10, 12), (41, 53)])
def test_lr_of_another_size_is_refused(hr, picture, store, height, width):
    lr = add_lr(hr)
    write_png(lr / "a" / "0002.png", picture[:height, :width])
    images = PairedImages(find_pairs(hr, lr, 4), 4, store)
    message = rf"lr/a/0002\.png is {height}x{width} but .*hr/a/0002\.png is 41x53: .* 10x13"
    with pytest.raises(MTKDError, match=message):
        images[1]


@pytest.mark.parametrize("given", [True, False])
def test_strict_size(hr, store, given):
    images = PairedImages(find_pairs(hr, add_lr(hr) if given else None, 4), 4, store, strict_size=True)
    assert images[0][2] == "0001"
    with pytest.raises(MTKDError, match=r"0002\.png is 41x53, not a multiple of the scale 4"):
        images[1]


def test_prepare_decodes_everything(hr, store):
    images = PairedImages(find_pairs(hr, None, 4), 4, store)
    seen = []
    sizes = images.prepare(lambda done, total: seen.append((done, total)))
    assert sizes == [(15, 21), (10, 13)]
    assert seen == [(1, 2), (2, 2)]
    assert len(list(store.root.rglob("*.npy"))) == 4


def test_prepare_reports_a_bad_picture(hr, store):
    (hr / "b.png").write_bytes(b"no picture")
    with pytest.raises(MTKDError, match=r"b\.png is not a picture"):
        PairedImages(find_pairs(hr, None, 4), 4, store).prepare()


def test_manifest(hr, store):
    lr = add_lr(hr)
    assert PairedImages(find_pairs(hr, lr, 4), 4, store).manifest() == {
        "scale": 4,
        "names": ["0001", "a/0002"],
        "hr": [store.digest(hr / "0001.png"), store.digest(hr / "a/0002.png")],
        "lr": [store.digest(lr / "0001.png"), store.digest(lr / "a/0002.png")],
    }
    assert PairedImages(find_pairs(hr, None, 4), 4, store).manifest()["lr"] == [None, None]


def test_manifest_hash_follows_the_content_not_the_place(hr, store, tmp_path, picture):
    def made(folder: Path, scale: int = 4) -> str:
        return PairedImages(find_pairs(folder, None, scale), scale, store).manifest_hash()

    first = made(hr)
    given = PairedImages(find_pairs(hr, add_lr(hr), 4), 4, store).manifest_hash()
    moved = hr.rename(tmp_path / "moved")
    assert made(moved) == first
    other_scale = made(moved, scale=2)
    write_png(moved / "0001.png", picture[::-1])
    assert len({first, given, other_scale, made(moved)}) == 4


def test_bad_scale(store):
    with pytest.raises(MTKDError, match="scale 0"):
        PairedImages([], 0, store)
