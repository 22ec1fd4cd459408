import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from mtkd_lightning.data.images import PICTURE_SUFFIXES, list_pictures, read_rgb, write_png
from mtkd_lightning.errors import MTKDError

# What an orientation tag asks for, done to an array.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(array: np.ndarray, extra: bytes = b"") -> bytes:
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]]
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def deep() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (9, 7, 4), dtype=np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_lossless_formats_come_back(picture, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    read = read_rgb(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, picture)


def test_jpeg_is_close(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_rgb(tmp_path / "a.jpg").astype(int) - picture).mean() < 3


def test_grey_is_replicated_and_palette_expanded(picture, tmp_path):
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(picture[..., :1], 3, axis=2))
    Image.fromarray(picture[..., 0] > 128).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "bits.png")[..., 1], 255 * (picture[..., 0] > 128))
    few = Image.fromarray(picture).quantize(16)
    few.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_rgb(tmp_path / "palette.png"), np.asarray(few.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_dropped_not_blended(picture, tmp_path, suffix):
    alpha = np.zeros_like(picture[..., :1])
    Image.fromarray(np.concatenate([picture, alpha], axis=2)).save(tmp_path / f"rgba{suffix}")
    np.testing.assert_array_equal(read_rgb(tmp_path / f"rgba{suffix}"), picture)
    Image.fromarray(np.concatenate([picture[..., :1], alpha], axis=2)).save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "la.png")[..., 2], picture[..., 0])


def test_cmyk_is_converted(picture, tmp_path):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "a.tif")
    assert np.abs(read_rgb(tmp_path / "a.tif").astype(int) - picture).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_rounded(deep, tmp_path, suffix, channels):
    cv2.imwrite(str(tmp_path / f"a{suffix}"), deep[..., :channels])
    colours = deep[..., :1].repeat(3, 2) if channels == 1 else deep[..., 2::-1]
    expected = np.floor(colours / 257 + 0.5)
    assert (expected != colours >> 8).any()
    np.testing.assert_array_equal(read_rgb(tmp_path / f"a{suffix}"), expected)


def test_16_bit_grey_with_alpha(deep, tmp_path):
    (tmp_path / "a.png").write_bytes(png16(deep[..., :2]))
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png")[..., 1], np.floor(deep[..., 0] / 257 + 0.5))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied(picture, deep, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".png", ".tif"):
        Image.fromarray(picture).save(tmp_path / f"a{suffix}", exif=exif)
        np.testing.assert_array_equal(read_rgb(tmp_path / f"a{suffix}"), UPRIGHT[orientation](picture))
    (tmp_path / "deep.png").write_bytes(png16(deep[..., :3], chunk(b"eXIf", exif.tobytes()[6:])))
    Image.fromarray(deep[..., 0]).save(tmp_path / "deep.tif", exif=exif)
    eight = np.floor(deep / 257 + 0.5)
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.png"), UPRIGHT[orientation](eight[..., :3]))
    np.testing.assert_array_equal(read_rgb(tmp_path / "deep.tif"), UPRIGHT[orientation](eight[..., [0, 0, 0]]))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("part", [0.1, 0.6, 0.95])
def test_truncated_file_is_refused(picture, tmp_path, suffix, part):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(MTKDError, match=rf"a{suffix} is .*remove it"):
        read_rgb(path)


def test_truncated_16_bit_file_is_refused(deep, tmp_path):
    (tmp_path / "a.png").write_bytes(png16(deep)[:-60])
    with pytest.raises(MTKDError, match="damaged or cut short"):
        read_rgb(tmp_path / "a.png")


def test_flipped_bit_in_png_is_refused(picture, tmp_path):
    write_png(tmp_path / "a.png", picture)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(MTKDError, match=r"a\.png is damaged"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty file"), (b"hello, I am no picture", "not a picture"), (b"GIF89a\1\0\1\0\0\0\0;", "not a picture")],
)
def test_what_is_no_picture_is_refused(tmp_path, data, message):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(MTKDError, match=rf"a\.png is .*{message}"):
        read_rgb(tmp_path / "a.png")


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(MTKDError, match=r"none\.png cannot be read \(No such file"):
        read_rgb(tmp_path / "none.png")
    with pytest.raises(MTKDError, match="directory"):
        read_rgb(tmp_path)


def test_decompression_bomb_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    )
    with pytest.raises(MTKDError, match=r"a\.png is too large .*cut it"):
        read_rgb(tmp_path / "a.png")


def test_other_pixels_are_refused(picture, tmp_path):
    Image.fromarray((picture[..., 0] / 255).astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(picture[..., 0].astype(np.int32)).save(tmp_path / "integer.tif")
    cv2.imwrite(str(tmp_path / "colour.tif"), (picture / 255).astype(np.float32))
    for name in ("float", "integer", "colour"):
        with pytest.raises(MTKDError, match=rf"{name}\.tif is .*8 or 16 bits.*convert"):
            read_rgb(tmp_path / f"{name}.tif")


def test_16_bit_layouts_that_decoders_misread_are_refused(deep, tmp_path):
    planes = np.ascontiguousarray(deep[..., :3].transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "white.tif", deep[..., 0], photometric="miniswhite")
    tifffile.imwrite(tmp_path / "ink.tif", deep, photometric="separated")
    for name in ("planes", "white", "ink"):
        with pytest.raises(MTKDError, match="16 bits in CMYK, in separate planes or with white as zero"):
            read_rgb(tmp_path / f"{name}.tif")


def test_write_png_makes_its_folder_and_leaves_nothing_else(picture, tmp_path):
    path = tmp_path / "new" / "folder" / "a.png"
    write_png(path, picture)
    write_png(path, picture[::-1])
    np.testing.assert_array_equal(read_rgb(path), picture[::-1])
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_failed_write_leaves_the_old_file(picture, tmp_path, monkeypatch):
    write_png(tmp_path / "a.png", picture)

    def save(self, target, **_):
        Path(target).write_bytes(b"half")
        raise OSError("disk gone")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(MTKDError, match="disk gone"):
        write_png(tmp_path / "a.png", picture[::-1])
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), picture)


def test_write_png_refuses_other_arrays(picture, tmp_path):
    for array in (picture[..., 0], picture / 255):
        with pytest.raises(MTKDError, match="a picture is uint8"):
            write_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


def test_list_pictures(picture, tmp_path):
    names = ["b/2.png", "a.JPG", "b/c/1.bmp", "z.tiff", ".hidden.png", ".git/3.png", "notes.txt", "b/._2.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path)]
    assert found == ["a.JPG", "b/2.png", "b/c/1.bmp", "z.tiff"]
    assert [path.name for path in list_pictures(tmp_path, recursive=False)] == ["a.JPG", "z.tiff"]


def test_linked_folder_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set").symlink_to(tmp_path / "elsewhere")
    assert list_pictures(tmp_path / "data") == [tmp_path / "data" / "set" / "1.png"]


def test_list_pictures_says_where_it_looked(tmp_path):
    with pytest.raises(MTKDError, match=r"nowhere does not exist.*\.png"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MTKDError, match=r"notes\.txt is not a folder"):
        list_pictures(tmp_path / "notes.txt")
    with pytest.raises(MTKDError) as error:
        list_pictures(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert all(suffix in str(error.value) for suffix in PICTURE_SUFFIXES)
