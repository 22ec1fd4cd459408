"""``python -m mtkd_lightning.upscale`` as its user meets it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps
from safetensors.torch import save_file

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.data.resize import upscale as bicubic
from mtkd_lightning.enlarging import Enlarger, bicubic_rows
from mtkd_lightning.files import file_sha256
from mtkd_lightning.networks import Weights, load
from mtkd_lightning.photographs import Photograph, read
from mtkd_lightning.upscale import main
from mtkd_lightning.writers import WRITERS, Sheet, write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    network = {"scale": 2, "features": 8, "blocks": 2, "image_range": 1.0}
    save_file(EDSR(**network).state_dict(), path)
    config = {"network": {"_target_": "mtkd_lightning.backbones.edsr.EDSR", **network}}
    path.with_suffix(".json").write_text(json.dumps({"sha256": file_sha256(path), "config": config}))
    return path


@pytest.fixture
def upscale(tmp_path, monkeypatch, capsys, weights) -> Callable[..., str]:
    """Run the command in this process and an empty folder; give what it says, without a traceback."""

    def run(*overrides: str, status: int = 0) -> str:
        monkeypatch.chdir(tmp_path)
        given = overrides if any(x.startswith("weights=") for x in overrides) else (f"weights={weights}", *overrides)
        monkeypatch.setattr(sys, "argv", ["upscale", *given, "device=cpu"])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        written = "".join(capsys.readouterr())
        assert code == status, written
        assert "Traceback" not in written
        assert not list(tmp_path.rglob("*.tmp"))
        return written

    return run


@pytest.fixture
def photos(tmp_path, picture) -> Path:
    for name in ("a.png", "b.jpg", "deep/er/c.webp", "deep/d.bmp", "e.tif"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "photos"


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def enlarged(weights: Path, pixels: np.ndarray) -> np.ndarray:
    """What the network makes of whole pixels, without any of the command's code."""
    network = load(Weights("net", weights)).eval()
    x = torch.from_numpy(pixels.astype(np.float32) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None]
    with torch.no_grad():
        sr = network(x.expand(-1, 3, -1, -1))[0].clamp(0, 1).permute(1, 2, 0).numpy()
    return sr.mean(2, keepdims=True) if pixels.shape[2] == 1 else sr


def test_a_folder_with_its_folders(upscale, photos, weights, picture):
    written = upscale("input=photos", "output=out")
    assert "5 of 5 enlarged with net on cpu" in written
    assert "MP/s" in written
    names = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert names == {"a_x2.png", "b_x2.jpg", "deep/er/c_x2.webp", "deep/d_x2.bmp", "e_x2.tif"}
    wanted = 255 * enlarged(weights, picture)
    for name in ("a_x2.png", "deep/d_x2.bmp", "e_x2.tif"):
        assert np.abs(levels(Path("out") / name) - wanted).max() < 0.51
    of_jpeg = 255 * enlarged(weights, read(photos / "b.jpg", 1).pixels)
    assert np.abs(levels(Path("out/b_x2.jpg")) - of_jpeg).mean() < 4
    assert levels(Path("out/deep/er/c_x2.webp")).shape == (120, 168, 3)


def test_patterns_files_formats_and_names(upscale, photos):
    upscale("input=photos/*.*", "output=flat", "format=png")
    assert {path.name for path in Path("flat").iterdir()} == {"a_x2.png", "b_x2.png", "e_x2.png"}
    upscale("input=photos/**/*.*p", "output=below", 'pattern="{weights}-{stem}.tif"')
    found = {path.relative_to("below").as_posix() for path in Path("below").rglob("*.*")}
    assert found == {"deep/er/net-c.tif", "deep/net-d.tif"}
    upscale("input=[photos/a.png,photos/deep/d.bmp]", "output=two")
    assert {path.name for path in Path("two").iterdir()} == {"a_x2.png", "d_x2.bmp"}
    upscale("input=photos/a.png", "output=new/one.jpg")
    assert levels(Path("new/one.jpg")).shape == (120, 168, 3)
    upscale("input=photos/a.png", "output=photos")  # beside it, under another name
    assert (photos / "a_x2.png").is_file()


def test_what_is_there_is_left_unless_told(upscale, photos):
    target = Path("out/a_x2.png")
    upscale("input=photos/a.png", "output=out")
    target.write_text("mine")
    written = upscale("input=[photos/a.png,photos/b.jpg]", "output=out")
    assert "1 of 2 are there already" in written
    assert target.read_text() == "mine"
    upscale("input=photos/a.png", "output=out", "overwrite=true")
    assert levels(target).shape == (120, 168, 3)


def test_options_of_the_network(upscale, photos, weights, picture):
    upscale("input=photos/a.png", "output=plain")
    for name, options in {
        "tiled": ["tile=48", "overlap=16"],
        "half": ["precision=bf16-mixed"],
        "turned": ["self_ensemble=true"],
    }.items():
        upscale("input=photos/a.png", f"output={name}", *options)
    plain = levels(Path("plain/a_x2.png"))
    assert np.abs(levels(Path("tiled/a_x2.png")) - plain).max() <= 1
    assert 0 < np.abs(levels(Path("half/a_x2.png")) - plain).mean() < 2
    assert (levels(Path("turned/a_x2.png")) != plain).any()


def test_side_by_side(upscale, photos, weights, picture):
    upscale("input=photos/a.png", "output=out", "compare=true", "tile=48", "overlap=16")
    both = levels(Path("out/a_x2_compare.png"))
    assert np.array_equal(both[:, :168], bicubic(picture, 2))
    assert np.abs(both[:, 168:] - 255 * enlarged(weights, picture)).max() < 0.51


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1)])
def test_tiny_pictures(upscale, tmp_path, picture, size):
    Image.fromarray(picture[: size[0], : size[1]]).save(tmp_path / "in.png")
    upscale("input=in.png", "output=out")
    assert levels(Path("out/in_x2.png")).shape == (2 * size[0], 2 * size[1], 3)


def test_grey_alpha_and_palette(upscale, tmp_path, picture, weights):
    rgb = Image.fromarray(picture)
    alpha = picture[..., 1]
    grey = rgb.convert("L")
    grey.save(tmp_path / "grey.png")
    grey.save(tmp_path / "grey.jpg")
    grey.save(tmp_path / "grey.tif")
    Image.merge("LA", (grey, Image.fromarray(alpha))).save(tmp_path / "greyalpha.png")
    rgb.putalpha(Image.fromarray(alpha))
    for suffix in ("png", "webp", "tif"):
        rgb.save(tmp_path / f"alpha.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    Image.fromarray(picture).quantize(16).save(tmp_path / "palette.png")
    upscale("input=*.*", "output=out")
    of_grey = 255 * enlarged(weights, np.asarray(grey)[..., None])[..., 0]
    assert np.abs(levels(Path("out/grey_x2.png")) - of_grey).max() < 0.51
    assert np.abs(levels(Path("out/grey_x2.tif")) - of_grey).max() < 0.51
    assert np.abs(levels(Path("out/grey_x2.jpg")) - of_grey).mean() < 5
    pair = levels(Path("out/greyalpha_x2.png"))
    wanted = bicubic(alpha[..., None], 2)[..., 0]
    assert np.abs(pair[..., 0] - of_grey).max() < 0.51
    assert np.array_equal(pair[..., 1], wanted)
    for suffix in ("png", "tif"):
        four = levels(Path(f"out/alpha_x2.{suffix}"))
        assert np.array_equal(four[..., 3], wanted)
        assert np.abs(four[..., :3] - 255 * enlarged(weights, picture)).max() < 0.51
    assert np.array_equal(levels(Path("out/alpha_x2.webp"))[..., 3], wanted)
    assert levels(Path("out/palette_x2.png")).shape == (120, 168, 3)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 3), ("tif", 3), ("png", 1), ("tif", 1), ("png", 4)])
def test_sixteen_bits_stay(upscale, tmp_path, picture, weights, suffix, channels):
    deep = picture.astype(np.uint16) * 257 + np.arange(84, dtype=np.uint16)[:, None]
    deep = deep.clip(0, 60000)
    deep = deep[..., :1] if channels == 1 else np.concatenate([deep, deep[..., :1]], 2)[..., :channels]
    cv2.imwrite(str(tmp_path / f"in.{suffix}"), deep)
    upscale(f"input=in.{suffix}", "output=out")
    made = np.atleast_3d(cv2.imread(f"out/in_x2.{suffix}", cv2.IMREAD_UNCHANGED))
    assert made.dtype == np.uint16
    colours = min(channels, 3)
    turned = deep[..., :colours][..., ::-1]  # OpenCV's order is blue, green, red
    assert np.abs(made[..., :colours][..., ::-1] / 65535 - enlarged(weights, turned)).max() < 1e-4
    if channels == 4:
        assert np.array_equal(made[..., 3:], bicubic(deep[..., 3:], 2))
    upscale(f"input=in.{suffix}", "output=out", "format=webp")
    flat = levels(Path("out/in_x2.webp")).mean((0, 1))
    assert np.abs(flat[:colours] - made[..., :colours][..., ::-1].mean((0, 1)) / 257).max() < 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_profile_and_tags(upscale, tmp_path, picture, weights, suffix):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Model] = "Camera"
    if suffix != "tif":
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 200, ExifTags.Base.ExifImageWidth: 84}
    Image.fromarray(picture).save(tmp_path / f"in.{suffix}", exif=exif, icc_profile=profile)
    upscale(f"input=in.{suffix}", "output=out")
    with Image.open(f"out/in_x2.{suffix}") as image:
        assert image.size == (120, 168)
        assert image.info["icc_profile"] == profile
        tags = image.getexif()
        assert tags.get(ExifTags.Base.Orientation, 1) == 1
        assert tags[ExifTags.Base.Model] == "Camera"
        if suffix != "tif":
            camera = tags.get_ifd(ExifTags.IFD.Exif)
            assert (camera[ExifTags.Base.ISOSpeedRatings], camera[ExifTags.Base.ExifImageWidth]) == (200, 120)
        made = np.asarray(image).astype(int)
    with Image.open(tmp_path / f"in.{suffix}") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.abs(made - 255 * enlarged(weights, upright)).mean() < (4 if suffix == "jpg" else 0.51)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_deep_pictures(tmp_path, picture, orientation):
    import tifffile

    tag = (int(ExifTags.Base.Orientation), 3, 1, orientation, True)
    deep = picture.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "in.tif", deep, photometric="rgb", extratags=[tag], metadata=None)
    flat = Image.fromarray(picture)
    flat.getexif()[ExifTags.Base.Orientation] = orientation
    upright = np.asarray(ImageOps.exif_transpose(flat)).astype(np.uint16) * 257
    assert np.array_equal(read(tmp_path / "in.tif", 1).pixels, upright)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_texts_beyond_ascii_stay(upscale, tmp_path, picture, suffix):
    text = "© 2024 Jörg".encode()
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright] = text
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.LensModel: text}
    Image.fromarray(picture).save(tmp_path / "in.jpg", exif=exif)
    upscale("input=in.jpg", "output=out", f"format={suffix}")
    with Image.open(f"out/in_x2.{suffix}") as image:
        tags = image.getexif()
        assert tags[ExifTags.Base.Copyright].encode("latin-1") == text
        if suffix != "tif":
            assert text in image.info["exif"]


def test_tags_that_a_jpeg_cannot_hold_are_left_out(upscale, tmp_path, picture):
    """First the notes of the camera's maker, then all; a PNG holds them."""
    for name, long in (("notes", ExifTags.Base.MakerNote), ("comment", ExifTags.Base.UserComment)):
        exif = Image.Exif()
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 200, long: b"x" * 70_000}
        Image.fromarray(picture).save(tmp_path / f"{name}.png", exif=exif)
    upscale("input=*.png", "output=out", "format=jpg")
    upscale("input=*.png", "output=out", "format=png")
    kept = {}
    for path in Path("out").iterdir():
        with Image.open(path) as image:
            camera = image.getexif().get_ifd(ExifTags.IFD.Exif)
            kept[path.name] = (camera.get(ExifTags.Base.ISOSpeedRatings), len(image.info.get("exif", b"")) > 70_000)
    assert kept == {
        "notes_x2.jpg": (200, False),
        "comment_x2.jpg": (None, False),
        "notes_x2.png": (200, True),
        "comment_x2.png": (200, True),
    }


@pytest.mark.parametrize(("extra", "colours"), [(0, "dropped"), (1, "premultiplied"), (2, "apart")])
def test_the_fourth_channel_of_a_deep_tiff(tmp_path, picture, extra, colours):
    import tifffile

    deep = picture.astype(np.uint16) * 257
    alpha = np.full((*deep.shape[:2], 1), 32768, np.uint16)
    alpha[0] = 0
    stored = deep * (alpha / 65535) if colours == "premultiplied" else deep
    four = np.concatenate([stored.round().astype(np.uint16), alpha], axis=2)
    tifffile.imwrite(tmp_path / "in.tif", four, photometric="rgb", extrasamples=[extra], metadata=None)
    found = read(tmp_path / "in.tif", 1)
    assert np.abs(found.pixels[1:].astype(int) - deep[1:]).max() <= 1
    assert (found.alpha is None) if colours == "dropped" else np.array_equal(found.alpha, alpha)


def test_transparency_of_deep_grey(tmp_path, picture):
    """By a channel, beside EXIF, and by a key."""
    deep = picture.astype(np.uint16) * 257
    Image.fromarray(deep[..., 0]).save(tmp_path / "key.png", transparency=int(deep[5, 5, 0]))
    found = read(tmp_path / "key.png", 1)
    assert np.array_equal(found.pixels, deep[..., :1])
    assert np.array_equal(found.alpha == 0, deep[..., :1] == deep[5, 5, 0])
    origin = Photograph(deep[..., :1], deep[..., 1:2], None, Image.Exif())
    origin.exif[ExifTags.Base.Model] = "Camera"
    sheet = Sheet(*deep.shape[:2], 2, origin, 90)
    write(tmp_path / "channel.png", "png", sheet, iter([deep[..., :2]]))
    assert cv2.imread(str(tmp_path / "channel.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    found = read(tmp_path / "channel.png", 1)
    assert np.array_equal(found.pixels, deep[..., :1])
    assert np.array_equal(found.alpha, deep[..., 1:2])


def test_a_profile_of_other_colours_is_left_out(tmp_path, picture):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture[..., 0]).save(tmp_path / "in.png", icc_profile=profile)
    assert read(tmp_path / "in.png", 1).icc is None
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "in.jpg", icc_profile=profile)
    found = read(tmp_path / "in.jpg", 1)
    assert found.pixels.shape == (60, 84, 3)
    assert found.icc is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bicubic_in_parts_is_that_of_the_whole(picture, dtype):
    pixels = picture.astype(dtype) * (np.iinfo(dtype).max // 255)
    whole = bicubic(pixels, 3)
    assert np.array_equal(whole.astype(float).clip(0, np.iinfo(dtype).max), whole)
    parts = [bicubic_rows(pixels, top, bottom, 3) for top, bottom in ((0, 51), (51, 54), (54, 180))]
    assert np.array_equal(np.concatenate(parts), whole)


def photograph(pixels: np.ndarray) -> Photograph:
    return Photograph(pixels, None, None, Image.Exif())


def test_the_tile_follows_the_memory(monkeypatch):
    network = EDSR(4, features=64, blocks=2)
    enlarger = Enlarger(network, 4, CPU)
    chosen = {}
    for gigabytes in (1, 3, 100):
        monkeypatch.setattr("mtkd_lightning.enlarging.at_hand", lambda _, n=gigabytes: 1e9 * n)
        chosen[gigabytes] = enlarger.choose_tile(4000, 6000)
    assert chosen[1] == 80  # nothing left: the smallest that the overlap allows
    assert 80 < chosen[3] < chosen[100] <= 512
    assert enlarger.choose_tile(4000, 6000, held=4 * 384 * 10**6) < chosen[100]
    assert enlarger.choose_tile(100, 120) == 128
    # The upsampler's last convolution takes 64 features at 16 times the pixels, and makes as many.
    per_pixel = 64 * 16 * 4
    assert 2 * per_pixel <= enlarger._per_pixel <= 4 * per_pixel


def test_strips_are_made_while_others_are_written(picture, weights):
    network = load(Weights("net", weights))
    enlarger = Enlarger(network, 2, CPU, tile=32, overlap=8)
    strips = enlarger.strips(photograph(picture))
    first = next(strips)
    kept = first.copy()
    time.sleep(0.5)  # the next one is there by now
    rest = list(strips)
    assert np.array_equal(first, kept)
    assert len(rest) > 1
    assert np.abs(np.concatenate([first, *rest]) - 255 * enlarged(weights, picture)).max() < 0.51


@pytest.mark.parametrize("file", ["lkdn_x4.pth", "dctlsa_x4.pt"])
def test_no_seam(shared, file):
    """Of a convolutional network and one of window attention; both also see far beyond any overlap."""
    from skimage.data import astronaut

    path = shared / "weights" / file
    pixels = np.ascontiguousarray(astronaut()[60:156, 180:292])
    network = load(Weights(path.stem, path))
    tiled = np.concatenate(list(Enlarger(network, 4, CPU, tile=80).strips(photograph(pixels)))).astype(int)
    whole = np.concatenate(list(Enlarger(network, 4, CPU, tile=112).strips(photograph(pixels)))).astype(int)
    error = tiled - whole
    # Tiles begin at 0 and 16, and at 0 and 32: the seams are in the middle of what they share.
    rows, columns = np.abs(np.diff(error, axis=0)), np.abs(np.diff(error, axis=1))
    at_seams = np.concatenate([rows[4 * 48 - 1].ravel(), columns[:, 4 * 56 - 1].ravel()])
    assert at_seams.mean() < 0.5
    assert at_seams.mean() < 1.2 * np.concatenate([rows.ravel(), columns.ravel()]).mean() + 0.02


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["output=out"], "no value for input"),
        (["weights=lkdm_x4", "input=photos", "output=out"], "Did you mean lkdn_x4"),
        (["weights=photos/a.png", "input=photos", "output=out"], "a.png"),
        (["input=photos", "output=out", "+til=5"], "did you mean tile?"),
        (["input=photos", "output=out", "tile=abc"], "tile=abc: it must be a number from 1 up"),
        (["input=photos", "output=out", "tile=40"], "overlap must be from 0 to less than half the tile"),
        (["input=photos", "output=out", "quality=101"], "quality=101: it must be a number from 1 to 100"),
        (["input=photos", "output=out", "compare=maybe"], "compare=maybe: allowed are true, false"),
        (["input=photos", "output=out", "precision=16"], "allowed are 32-true, bf16-mixed"),
        (["input=photos", "output=out", "format=gif"], "format=gif: allowed are"),
        (["input=photos", "output=out", 'pattern="{name}.png"'], "{scale}, {stem}, {suffix}, {weights} are filled in"),
        (["input=photos", "output=out", "pattern=../x.png"], "it is the name of a file"),
        (["input=photos", "output=out", "pattern=x.png"], "goes, too"),
        (["input=photos", "output=out", 'pattern="{stem}.gif"'], "say format=png"),
        (["input=photos", "output=photos/out"], "output=photos/out lies inside input=photos"),
        (["input=photos", "output=photos"], "lies inside input=photos"),
        (["input=photos/**/*.png", "output=photos/x"], "lies inside"),
        (["input=photos/*.png", "output=photos"], "lies inside"),
        (["input=photos/a.png", "output=photos/a.png"], "which is an input"),
        (["input=photos/*.gif", "output=out"], "no picture matches"),
        (["input=[]", "output=out"], "name at least one picture"),
        (["input=empty", "output=out"], "no pictures in empty"),
        (["input=photos", "output=photos/a.png/x"], "lies inside"),
        (["input=photos", "output=file/x"], "cannot be written to"),
    ],
)
def test_bad_input(upscale, photos, tmp_path, overrides, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert expected in upscale(*overrides, status=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_weights(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "mtkd_lightning.upscale", "input=x", "output=y"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "no value for weights: give it as weights=..." in result.stdout
    assert " torch\n" not in result.stderr


def test_an_encoder_that_fails_does_not_stop_the_rest(upscale, photos, monkeypatch):
    def fail(*_):
        raise ValueError("no such thing")

    monkeypatch.setitem(WRITERS, "jpg", fail)
    written = upscale("input=photos", "output=out", status=1)
    assert "4 of 5 enlarged" in written
    assert "photos/b.jpg: it cannot be enlarged or written (ValueError: no such thing)" in written


def test_broken_pictures_do_not_stop_the_rest(upscale, photos):
    deep = np.full((60, 84, 3), 999, np.uint16)
    deep[::3, ::5] = 31
    cv2.imwrite(str(photos / "3.png"), deep)
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:-100])
    (photos / "0.png").write_bytes((photos / "a.png").read_bytes()[:2000])
    (photos / "1.jpg").write_text("no picture")
    (photos / "2.png").touch()
    written = upscale("input=[photos,missing.jpg]", "output=out", status=1)
    assert "5 of 10 enlarged" in written
    assert "5 of 10 failed:" in written
    for reason in (
        "0.png is damaged",
        "1.jpg is not a picture",
        "2.png is an empty file",
        "3.png is damaged",
        "missing.jpg cannot be read",
    ):
        assert reason in written
    assert sum(path.is_file() for path in Path("out").rglob("*")) == 5


def test_a_bomb_and_what_a_format_cannot_hold(upscale, tmp_path, picture):
    Image.new("L", (1100, 1000)).save(tmp_path / "bomb.png")
    Image.new("L", (1, 9000)).save(tmp_path / "long.png")
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "alpha.png")
    before = Image.MAX_IMAGE_PIXELS
    written = upscale("input=bomb.png", "output=out", "megapixels=1", status=1)
    assert "bomb.png has more than 1 megapixels" in written
    assert "megapixels=... higher" in written
    assert before == Image.MAX_IMAGE_PIXELS
    written = upscale("input=[long.png,alpha.png]", "output=out", "format=webp", status=1)
    assert "has 16383 pixels a side at most: say format=png" in written
    assert Path("out/alpha_x2.webp").is_file()
    assert "would lose the transparency" in upscale("input=alpha.png", "output=out", "format=jpg", status=1)


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_what_is_finished(upscale, photos, tmp_path):
    with mounted(tmp_path / "small", "size=96k"):
        written = upscale("input=[photos/a.png,photos/b.jpg,photos/e.tif]", "output=small", "format=png", status=1)
        assert "no space left to write" in written
        assert "of 3 are done and kept" in written
        found = list((tmp_path / "small").iterdir())
        assert 0 < len(found) < 3
        assert all(levels(path).shape == (120, 168, 3) for path in found)


def test_an_output_that_cannot_be_written(upscale, photos, tmp_path):
    with mounted(tmp_path / "fixed", "ro,size=1m"):
        assert "fixed cannot be written to (Read-only file system)" in upscale("input=photos", "output=fixed", status=1)


def test_killed_in_the_middle(tmp_path, weights, picture):
    Image.fromarray(np.tile(picture, (12, 6, 1))).save(tmp_path / "large.png")
    command = [sys.executable, "-m", "mtkd_lightning.upscale", f"weights={weights}", "input=large.png", "output=out"]
    process = subprocess.Popen([*command, "tile=96"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        while not any(path.stat().st_size > 10**5 for path in tmp_path.glob("out/.*.tmp")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out/large_x2.png").exists()
    (left,) = (tmp_path / "out").iterdir()
    os.utime(left, (0, 0))  # of long ago: the next run removes it
    subprocess.run([*command, "tile=512"], cwd=tmp_path, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["large_x2.png"]
    assert levels(tmp_path / "out/large_x2.png").shape == (1440, 1008, 3)
