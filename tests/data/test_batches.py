from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mtkd_lightning.data.batches import StepSampler, TrainingBatches, WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import PairedImages, find_pairs
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.typing import SRBatch

SCALE = 2


def paired(folder: Path) -> PairedImages:
    return PairedImages(find_pairs(folder, None, SCALE), SCALE, PictureStore(folder.parent / "store"))


@pytest.fixture
def pictures(picture, tmp_path) -> PairedImages:
    """Five pictures of different, partly odd, sizes."""
    for i, (height, width) in enumerate([(60, 84), (41, 53), (24, 24), (25, 70), (60, 24)]):
        write_png(tmp_path / "hr" / f"{i}.png", picture[i:][:height, :width])
    return paired(tmp_path / "hr")


@pytest.fixture
def coordinates(tmp_path) -> PairedImages:
    """One picture that says where a pixel lies: red is the row, green the column."""
    rows, columns = np.mgrid[:80, :100].astype(np.uint8)
    write_png(tmp_path / "hr" / "where.png", np.stack([rows, columns, rows // 2 + columns], axis=2))
    return paired(tmp_path / "hr")


def make(pictures: PairedImages, **options) -> TrainingBatches:
    return TrainingBatches(pictures, **{"batch_size": 8, "lr_patch": 12, "seed": 3, **options})


def same(one: SRBatch, other: SRBatch) -> bool:
    return torch.equal(one.lr, other.lr) and torch.equal(one.hr, other.hr) and one.name == other.name


def test_shapes(pictures):
    batch = make(pictures)[0]
    assert isinstance(batch, SRBatch)
    assert batch.lr.shape == (8, 3, 12, 12)
    assert batch.hr.shape == (8, 3, 24, 24)
    assert batch.lr.dtype == batch.hr.dtype == torch.uint8
    assert batch.lr.is_contiguous()
    assert len(batch.name) == 8


def test_a_batch_depends_on_seed_and_step_alone(pictures):
    batches = make(pictures)
    late = batches[1000]
    assert same(make(pictures)[1000], late)
    np.random.seed(5)  # noqa: NPY002 (the global generator must not matter)
    torch.manual_seed(5)
    assert same(batches[1000], late)
    assert not same(batches[1001], late)
    assert not same(make(pictures, seed=4)[1000], late)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_epoch_holds_every_picture_once(pictures, batch_size):
    batches = make(pictures, batch_size=batch_size)
    names = [name for step in range(40) for name in batches[step].name]
    epochs = [tuple(names[i : i + 5]) for i in range(0, len(names) - 4, 5)]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert len(set(epochs)) > 3


def test_order_does_not_depend_on_the_batch_size(pictures):
    one = [name for step in range(12) for name in make(pictures, batch_size=2)[step].name]
    other = [name for step in range(4) for name in make(pictures, batch_size=6)[step].name]
    assert one == other


def test_ranks_together_see_what_one_process_sees(pictures):
    whole = make(pictures)
    parts = [make(pictures, rank=rank, world_size=2) for rank in (0, 1)]
    for step in (0, 1, 77):
        for rank, part in enumerate(parts):
            assert torch.equal(part[step].lr, whole[step].lr[rank::2])
            assert torch.equal(part[step].hr, whole[step].hr[rank::2])
            assert part[step].name == whole[step].name[rank::2]


def test_a_loader_gives_the_same_with_and_without_workers(pictures):
    batches = make(pictures)
    expected = [batches[step] for step in range(5, 11)]
    for workers in (0, 2):
        loader = DataLoader(batches, batch_size=None, sampler=StepSampler(5, 11), num_workers=workers)
        given = list(loader)
        assert len(loader) == len(given) == 6
        assert all(isinstance(batch, SRBatch) for batch in given)
        assert all(same(one, other) for one, other in zip(given, expected, strict=True))


def test_started_by_spawn_it_gives_the_same(pictures):
    batches = make(pictures)
    batches.prepare()
    loader = DataLoader(
        batches, batch_size=None, sampler=StepSampler(0, 2), num_workers=1, multiprocessing_context="spawn"
    )
    assert all(same(batch, batches[step]) for step, batch in enumerate(loader))


def symmetry_and_corner(rows: torch.Tensor, columns: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Read off a patch of coordinates how it was turned and where it was cut."""
    turned = rows[0, 0] == rows[1, 0]
    down = rows[-1, -1] - rows[0, 0] > 0
    right = columns[-1, -1] - columns[0, 0] > 0
    return (int(turned), int(down), int(right)), (int(rows.min()), int(columns.min()))


def test_all_symmetries_and_corners_occur_equally(coordinates):
    batches = make(coordinates, batch_size=100, lr_patch=36)
    found = Counter()
    corners = Counter()
    for step in range(16):
        for hr in batches[step].hr.int():
            symmetry, corner = symmetry_and_corner(hr[0], hr[1])
            found[symmetry] += 1
            corners[corner] += 1
    assert len(found) == 8
    assert 130 < min(found.values()) < max(found.values()) < 270
    # LR is 40x50: a patch of 36 has 5x15 places, of even HR coordinates.
    assert set(corners) == {(2 * row, 2 * column) for row in range(5) for column in range(15)}
    assert max(corners.values()) < 60


def test_without_augmentation_patches_are_upright(coordinates):
    turned = make(coordinates, batch_size=32)
    upright = make(coordinates, batch_size=32, augment=False)
    for one, other in zip(turned[2].hr.int(), upright[2].hr.int(), strict=True):
        symmetry, corner = symmetry_and_corner(other[0], other[1])
        assert symmetry == (0, 1, 1)
        assert corner == symmetry_and_corner(one[0], one[1])[1]


def test_lr_and_hr_are_aligned(coordinates):
    # Away from the borders LR is the mean of 2x2 pixels of a ramp: within rounding of the HR below it.
    batch = make(coordinates, batch_size=64, lr_patch=10)[0]
    below = torch.nn.functional.avg_pool2d(batch.hr.float(), SCALE)
    error = (batch.lr.float() - below).abs()
    assert error.max() <= 1.5
    assert error.mean() < 0.6


def test_patches_come_from_their_picture(pictures):
    batch = make(pictures, augment=False)[4]
    for lr, name in zip(batch.lr.numpy(), batch.name, strict=True):
        whole = pictures[int(name)][0].transpose(2, 0, 1)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (12, 12), axis=(1, 2))
        assert (windows == lr[:, None, None]).all(axis=(0, 3, 4)).any()


def test_a_patch_as_large_as_the_picture_fits(picture, tmp_path):
    write_png(tmp_path / "hr" / "a.png", picture[:24, :25])
    batches = make(paired(tmp_path / "hr"), augment=False)
    np.testing.assert_array_equal(batches[0].hr[0].permute(1, 2, 0), picture[:24, :24])


def test_small_pictures_are_reported_before_training(pictures):
    make(pictures, lr_patch=12).prepare()
    with pytest.raises(MTKDError, match=r"lr_patch is 13.* 3 of 5 .*2\.png \(LR 12x12\), .*3\.png \(LR 12x35\), "):
        make(pictures, lr_patch=13).prepare()
    with pytest.raises(MTKDError, match=r"lr_patch is 31.* \(LR \d\dx\d\d\).*smaller lr_patch or remove"):
        make(pictures, lr_patch=31)[0]


def test_prepare_reports_progress(pictures):
    seen = []
    make(pictures).prepare(lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "world_size": 2}, "batch_size 9 .* use a multiple of 2"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"lr_patch": 0}, "lr_patch 0"),
        ({"seed": -1}, "seed -1"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
    ],
)
def test_bad_options(pictures, options, message):
    with pytest.raises(MTKDError, match=message):
        make(pictures, **options)


def test_no_pictures(pictures):
    with pytest.raises(MTKDError, match="no pictures to train on"):
        make(PairedImages([], SCALE, pictures.store))


def test_step_sampler():
    assert list(StepSampler(3, 6)) == [3, 4, 5]
    assert len(StepSampler(3, 6)) == 3
    assert len(StepSampler(6, 6)) == 0


def test_whole_pictures(pictures):
    items = list(DataLoader(WholePictures(pictures), batch_size=None))
    assert len(items) == len(WholePictures(pictures)) == 5
    for batch, (lr, hr, name) in zip(items, pictures, strict=True):
        np.testing.assert_array_equal(batch.lr[0].permute(1, 2, 0), lr)
        np.testing.assert_array_equal(batch.hr[0].permute(1, 2, 0), hr)
        assert batch.name == [name]
        assert batch.hr.dtype == torch.uint8
    items[0].hr.zero_()
    assert pictures[0][1].any()
