from hashlib import sha256

import numpy as np
import pytest
from safetensors.numpy import load_file
from skimage.data import astronaut

from mtkd_lightning.data.images import list_pictures, read_rgb
from mtkd_lightning.data.resize import downscale, imresize, upscale
from mtkd_lightning.errors import MTKDError

# Start of the sha256 of LR and of LR enlarged again; the pictures are those of test_golden_bicubic.
DIGESTS = {
    2: ("d8e0a30af38a0773", "25d7b6d88b9c0b2a"),
    3: ("b330cb3d82526ff1", "4ee38da7cd06816f"),
    4: ("2b5f4cd2ae5ecb31", "5b9047dd8ec81552"),
}


@pytest.mark.parametrize("scale", DIGESTS)
def test_golden_digests(scale):
    lr = downscale(astronaut()[:504, :504], scale)
    assert tuple(sha256(image).hexdigest()[:16] for image in (lr, upscale(lr, scale))) == DIGESTS[scale]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_golden_bicubic(shared, scale):
    golden = load_file(shared / "golden" / f"bicubic_astronaut_x{scale}.safetensors")
    lr = downscale(astronaut()[:504, :504], scale)
    np.testing.assert_array_equal(lr, golden["lr_uint8"])
    np.testing.assert_array_equal(upscale(lr, scale), golden["bicubic_up_uint8"])


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("benchmark", ["Set5", "Set14"])
def test_published_lr_pictures(shared, benchmark, scale):
    folder = shared / "data" / "benchmarks" / benchmark
    pictures = list_pictures(folder / "HR")
    assert len(pictures) in (5, 14)
    for path in pictures:
        hr = read_rgb(path)
        height, width = (side - side % scale for side in hr.shape[:2])
        lr = read_rgb(folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png")
        np.testing.assert_array_equal(downscale(hr[:height, :width], scale), lr, err_msg=path.name)


def test_by_hand():
    # x2 of a ramp, weights of the cubic at 1/4 and 3/4: (-9, 111, 29, -3) / 128 and mirrored, borders mirrored.
    ramp = np.array([0, 100, 200], np.uint8).reshape(1, 3, 1).repeat(3, axis=2)
    taps = np.array([-3, 29, 111, -9]) / 128
    mirrored = np.array([100, 0, 0, 100, 200, 200, 100])
    expected = []
    for i in range(3):
        expected += [taps @ mirrored[i : i + 4], taps[::-1] @ mirrored[i + 1 : i + 5]]
    expected = np.clip(np.floor(np.array(expected) + 0.5), 0, 255)
    np.testing.assert_array_equal(imresize(ramp, 1, 6)[0, :, 0], expected)


def test_the_side_that_shrinks_more_goes_first(picture):
    narrow = imresize(picture, 60, 21)
    np.testing.assert_array_equal(imresize(picture, 45, 21), imresize(narrow, 45, 21))
    flat = imresize(picture, 15, 84)
    np.testing.assert_array_equal(imresize(picture, 15, 63), imresize(flat, 15, 63))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (60, 84), (61, 83), (200, 3)])
def test_any_size(picture, size):
    resized = imresize(picture, *size)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(imresize(np.full_like(picture, 77), *size), 77)


def test_same_size_is_the_same_picture(picture):
    np.testing.assert_array_equal(imresize(picture, 60, 84), picture)


def test_mirror_symmetry(picture):
    np.testing.assert_array_equal(downscale(picture[:, ::-1], 4), downscale(picture, 4)[:, ::-1])


def test_tiny_picture():
    assert upscale(np.full((1, 2, 3), 9, np.uint8), 4).shape == (4, 8, 3)
    assert (downscale(np.full((4, 4, 3), 9, np.uint8), 4) == 9).all()


def test_refuses(picture):
    with pytest.raises(MTKDError, match=r"60x84 by 8.*multiples"):
        downscale(picture, 8)
    with pytest.raises(MTKDError, match="uint8"):
        imresize(picture / 255, 10, 10)
    with pytest.raises(MTKDError, match="uint8"):
        imresize(picture[..., 0], 10, 10)
    with pytest.raises(MTKDError, match="at least 1"):
        imresize(picture, 0, 10)
