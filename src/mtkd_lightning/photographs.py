"""Photographs as cameras and programs leave them, read with all that an enlarged copy should keep."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps

from mtkd_lightning.data.images import FORMATS, WITH_ALPHA, WITHOUT_ALPHA, decoding, is_deep
from mtkd_lightning.errors import MTKDError

Levels = NDArray[np.unsignedinteger[Any]]

TAGS = ExifTags.Base
# Texts, dates and the camera's settings; not what describes the old file: orientation, size, strips, thumbnail.
KEPT_TAGS = (TAGS.ImageDescription, TAGS.Make, TAGS.Model, TAGS.Software, TAGS.DateTime, TAGS.Artist, TAGS.Copyright)
KEPT_PARTS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
SIZE_TAGS = (TAGS.ExifImageWidth, TAGS.ExifImageHeight)
GREY = {"1", "L", "LA", "La"}
DEEP_GREY = {"I", "I;16", "I;16B", "I;16L"}
TIFF_EXTRA, UNSPECIFIED, PREMULTIPLIED = 338, (0,), (1,)
# What an EXIF orientation asks to be done to rows and columns.
UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@dataclass(frozen=True)
class Photograph:
    """A picture, upright, and what goes with it.

    Attributes:
        pixels: uint8 or uint16 (h, w, 3), or (h, w, 1) of a grey one.
        alpha: the same (h, w, 1), if it has one.
        icc: the colour profile of its pixels, if it has one.
        exif: tags that hold for an enlarged copy, too.
    """

    pixels: Levels
    alpha: Levels | None
    icc: bytes | None
    exif: Image.Exif


def read(path: Path, megapixels: float) -> Photograph:
    """Read a picture of 8 or 16 bits per channel.

    Palettes become RGB; CMYK becomes sRGB by the picture's profile; of several frames the first is taken.

    Args:
        path: PNG, JPEG, WebP, TIFF or BMP, whatever its name ends in.
        megapixels: a picture of more is not decoded.

    Raises:
        MTKDError: the file is missing, empty, damaged, too large, or not a picture of an allowed kind.
    """
    with decoding(path) as data, _limited(path, megapixels), Image.open(BytesIO(data), formats=FORMATS) as image:
        deep, mode = is_deep(image), image.mode
        grey = mode in GREY | DEEP_GREY or "LA;16" in str(image.tile)  # which is empty after getexif
        exif = image.getexif()
        orientation, kept = exif.get(TAGS.Orientation), _kept(exif)
        icc = image.info.get("icc_profile")
        image.load()
        if deep:
            # OpenCV turns a TIFF by itself, and so reads a PNG only without its alpha.
            levels = _decode_deep(data, grey, orientation if image.format == "PNG" else None)
            levels = _with_alpha(levels, image)
        elif mode not in WITH_ALPHA | WITHOUT_ALPHA:
            raise NotImplementedError(f"pixels of the kind {mode!r}")
        else:
            upright = ImageOps.exif_transpose(image)
            if mode == "CMYK" and icc:
                upright, icc = _in_srgb(upright, icc), None
            kind = "L" if grey else "RGB"
            transparent = image.has_transparency_data
            if transparent:
                kind = "LA" if grey else "RGBA"
            levels = np.atleast_3d(np.array(upright.convert(kind)))
    colours = 1 if grey else 3
    alpha = levels[..., colours:] if levels.shape[2] > colours else None
    if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
        icc = None
    return Photograph(levels[..., :colours], alpha, icc, kept)


def exif_bytes(photograph: Photograph, height: int, width: int, most: int | None = None) -> bytes:
    """The tags with the size of the enlarged copy, after the marker "Exif"; empty if there are none.

    Of more than ``most`` bytes, the notes that a maker of cameras keeps for itself are left out, or else all.
    """
    exif = photograph.exif
    if not exif:
        return b""
    if camera := exif.get(ExifTags.IFD.Exif):
        exif[ExifTags.IFD.Exif] = camera | dict(zip(SIZE_TAGS, (width, height), strict=True))
    try:
        content = exif.tobytes()
        if most and len(content) > most and camera:
            exif[ExifTags.IFD.Exif].pop(TAGS.MakerNote, None)
            content = exif.tobytes()
    except Exception:  # tags are whatever a camera wrote; the picture is worth more
        return b""
    return b"" if most and len(content) > most else content


def as_stored(value: Any) -> bytes:
    """The bytes of a text tag: Pillow reads every one as Latin-1, and cannot write what is beyond ASCII."""
    return value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")


@contextmanager
def _limited(path: Path, megapixels: float) -> Iterator[None]:
    # Pillow has this limit for the process alone: it warns above it, and fails above twice as many.
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(1e6 * megapixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MTKDError(
            f"{path} has more than {megapixels:g} megapixels, and may be a file that is made to fill the memory; if it "
            "is not, set megapixels=... higher"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _kept(exif: Image.Exif) -> Image.Exif:
    kept = Image.Exif()
    for tag in KEPT_TAGS:
        if tag in exif:
            kept[tag] = as_stored(exif[tag])
    for part in KEPT_PARTS:
        try:
            if tags := exif.get_ifd(part):
                kept[part] = {
                    tag: as_stored(value) if isinstance(value, str) and not value.isascii() else value
                    for tag, value in tags.items()
                    if tag != ExifTags.IFD.Interop  # an offset in the old file
                }
        except Exception:  # damaged; the picture need not be
            continue
    return kept


def _decode_deep(data: bytes, grey: bool, orientation: int | None) -> Levels:
    """Channels in the order of ours; of a grey picture with alpha OpenCV makes four."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if bgr is None or bgr.dtype != np.uint16:
        raise NotImplementedError("pixels of 16 bits that are not unsigned integers")
    bgr = np.atleast_3d(bgr)
    if bgr.shape[2] > 1:
        order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}[bgr.shape[2]]
        bgr = bgr[..., [0, 3] if grey and len(order) == 4 else order]
    return np.ascontiguousarray(UPRIGHT[orientation](bgr) if orientation in UPRIGHT else bgr, np.uint16)


def _with_alpha(levels: Levels, image: Image.Image) -> Levels:
    """16-bit channels with the alpha that OpenCV leaves to us: a PNG's grey key, a TIFF's kinds of a fourth channel."""
    key = image.info.get("transparency")
    if levels.shape[2] == 1 and isinstance(key, int):
        return np.concatenate([levels, np.where(levels == key, 0, 65535).astype(np.uint16)], axis=2)
    kind = getattr(image, "tag_v2", {}).get(TIFF_EXTRA) if levels.shape[2] == 4 else None
    if kind == UNSPECIFIED:
        return levels[..., :3]
    if kind == PREMULTIPLIED:
        alpha = levels[..., 3:].astype(np.float64)
        colours = np.divide(levels[..., :3] * 65535.0, alpha, out=np.zeros(levels[..., :3].shape), where=alpha > 0)
        return np.concatenate([colours.round().clip(0, 65535).astype(np.uint16), levels[..., 3:]], axis=2)
    return levels


def _in_srgb(image: Image.Image, icc: bytes) -> Image.Image:
    try:
        turned = ImageCms.profileToProfile(image, BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        return image.convert("RGB")
    return turned or image
