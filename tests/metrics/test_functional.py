import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from skimage.color import rgb2ycbcr
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.metrics.functional import Protocol, luma, psnr, quantize, ssim


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def degraded(picture):
    noise = np.random.default_rng(0).integers(-12, 13, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("y", [False, True])
def test_published_values(shared, scale, cropped, y):
    sr = load_file(shared / "golden" / f"bicubic_astronaut_x{scale}.safetensors")["bicubic_up_uint8"]
    hr = astronaut()[: sr.shape[0], : sr.shape[1]]
    protocol = Protocol(scale * cropped, y)
    expected = json.loads((shared / "golden" / "index.json").read_text())["metrics_astronaut_bicubic"][
        f"x{scale}_crop{protocol.crop_border}_{'y' if y else 'rgb'}"
    ]
    assert psnr(tensor(sr), tensor(hr), protocol).item() == pytest.approx(expected["psnr"], abs=1e-3)
    assert ssim(tensor(sr), tensor(hr), protocol).item() == pytest.approx(expected["ssim"], abs=1e-4)


@pytest.mark.parametrize("protocol", [Protocol(0), Protocol(3), Protocol(4, luma=False)], ids=str)
def test_equal_to_scikit_image(picture, degraded, protocol):
    border = protocol.crop_border
    inner = slice(border, -border or None), slice(border, -border or None)
    ours, theirs = degraded[inner].astype(np.float64), picture[inner].astype(np.float64)
    if protocol.luma:
        ours, theirs = (rgb2ycbcr(image / 255)[..., :1] for image in (ours, theirs))
    expected = structural_similarity(
        theirs,
        ours,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(tensor(degraded), tensor(picture), protocol).item() == pytest.approx(expected, abs=1e-9)
    expected = peak_signal_noise_ratio(theirs, ours, data_range=255)
    assert psnr(tensor(degraded), tensor(picture), protocol).item() == pytest.approx(expected, abs=1e-9)


def test_luma_of_known_colours():
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    y = luma(colours.T.reshape(3, 1, 5))
    assert y.shape == (1, 1, 5)
    expected = torch.tensor([16, 235, 81.481, 144.553, 40.966], dtype=torch.float64)
    torch.testing.assert_close(y.flatten(), expected)


def test_quantize_clamps_and_rounds():
    values = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 1.0, 1.7, torch.nan])
    assert quantize(values)[:-1].tolist() == [0, 0, 0, 1, 100, 255, 255]
    assert quantize(values)[-1].isnan()
    levels = torch.arange(256)
    assert torch.equal(quantize(levels / 255), levels.float())
    assert torch.equal(quantize(levels.double() / 255), levels.float())


def test_images_are_judged_after_rounding(picture, degraded):
    sr, hr = tensor(degraded), tensor(picture)
    protocol = Protocol(2)
    torch.testing.assert_close(psnr(sr + 0.3 / 255, hr, protocol), psnr(sr, hr, protocol))
    beyond = torch.where(sr >= 1, 1.5, sr)
    torch.testing.assert_close(ssim(beyond, hr, protocol), ssim(sr, hr, protocol))


def test_identical_pictures(picture):
    hr = tensor(picture)
    for protocol in (Protocol(0), Protocol(2, luma=False)):
        assert psnr(hr, hr, protocol).tolist() == [float("inf")]
        assert ssim(hr, hr, protocol).item() == pytest.approx(1.0, abs=1e-12)


def test_one_value_per_picture(picture, degraded):
    hr = tensor(picture).repeat(3, 1, 1, 1)
    sr = torch.cat([tensor(degraded), hr[:1], tensor(degraded).flip(-1)])
    for score in (psnr, ssim):
        values = score(sr, hr, Protocol(4))
        assert values.shape == (3,)
        assert values.dtype == torch.float64
        single = [score(sr[i : i + 1], hr[i : i + 1], Protocol(4)).item() for i in range(3)]
        assert values.tolist() == single
        assert values[1] > values[0] > values[2]


def test_the_border_is_left_out(picture):
    hr = tensor(picture)
    sr = hr.clone()
    sr[..., :4, :] = 0
    sr[..., -4:] = 1
    assert psnr(sr, hr, Protocol(4)).isinf()
    assert psnr(sr, hr, Protocol(3)) < 40


def test_nan_is_not_hidden(picture):
    hr = tensor(picture)
    sr = hr.clone()
    sr[0, 0, 30, 40] = torch.nan
    assert psnr(sr, hr, Protocol(2)).isnan()
    assert ssim(sr, hr, Protocol(2)).isnan()


def test_protocol_names_itself():
    assert str(Protocol(4)) == "Y, crop 4, uint8, mean of images"
    assert str(Protocol(0, luma=False)) == "RGB, crop 0, uint8, mean of images"
    with pytest.raises(MTKDError, match="crop_border=-1"):
        Protocol(-1)


@pytest.mark.parametrize("score", [psnr, ssim])
def test_pictures_that_cannot_be_compared(score):
    image = torch.zeros(1, 3, 20, 20)
    for other in (image[..., 1:], image[0], torch.zeros(2, 3, 20, 20), torch.zeros(1, 1, 20, 20)):
        with pytest.raises(MTKDError, match=r"\(b, 3, h, w\)"):
            score(other, image, Protocol(0))
    with pytest.raises(MTKDError, match=r"\(b, 3, h, w\)"):
        score(image[:, :1], image[:, :1], Protocol(0))
    with pytest.raises(MTKDError, match=r"torch\.uint8"):
        score(image.byte(), image.byte(), Protocol(0))
    with pytest.raises(MTKDError, match="crop_border=10 leaves 0x0"):
        score(image, image, Protocol(10))


def test_ssim_needs_one_window():
    image = torch.rand(1, 3, 19, 21)
    assert ssim(image, image, Protocol(4)).item() == pytest.approx(1.0)
    with pytest.raises(MTKDError, match="leaves 9x11; it needs 11x11"):
        ssim(image, image, Protocol(5))
    assert psnr(image, image, Protocol(5)).isinf()
