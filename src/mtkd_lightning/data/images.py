"""Pictures on disk: find them, read them as RGB uint8, write them as PNG."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import replacing

RGB = NDArray[np.uint8]
DeepRGB = NDArray[np.unsignedinteger[Any]]

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
ALLOWED = "allowed are PNG, JPEG, WebP, TIFF and BMP with 8 or 16 bits per channel"
WITH_ALPHA = {"P", "PA", "LA", "La", "RGBA", "RGBa"}
WITHOUT_ALPHA = {"1", "L", "RGB", "RGBX", "CMYK", "YCbCr"}
TIFF_BITS = 258
TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
TIFF_PLANAR, SEPARATE = 284, 2


def read_rgb(path: str | Path) -> RGB:
    """Read a picture as uint8 (H, W, 3); 16 bits are scaled to 8 with rounding. Else as `read_deep_rgb`."""
    picture = read_deep_rgb(path)
    if picture.dtype == np.uint16:
        picture = (picture.astype(np.uint32) + 128) // 257
    return picture.astype(np.uint8, copy=False)


def read_deep_rgb(path: str | Path) -> DeepRGB:
    """Read a picture as (H, W, 3), uint8 or, of 16 bits, uint16.

    Grey is replicated, palettes are expanded, alpha is dropped (not blended), CMYK is converted without its profile,
    the EXIF orientation is applied; of several frames the first is taken.

    Raises:
        MTKDError: the file is missing, empty, damaged, too large, or not a picture of an allowed kind.
    """
    with decoding(Path(path)) as data:
        return _decode(data)


@contextmanager
def decoding(path: Path) -> Iterator[bytes]:
    """Give a file's content, and say what is wrong with a picture that cannot be made of it.

    Raises:
        MTKDError: the file is missing, empty, damaged, too large, or not a picture of an allowed kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MTKDError(f"{path} cannot be read ({error.strerror}): check the path and its permissions") from error
    if not data:
        raise MTKDError(f"{path} is an empty file: copy it again or remove it")
    try:
        yield data
    except MTKDError:
        raise
    except UnidentifiedImageError as error:
        raise MTKDError(f"{path} is not a picture that can be read; {ALLOWED}: convert or remove it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MTKDError(f"{path} is too large to be decoded safely ({error}): cut it into smaller pictures") from error
    except NotImplementedError as error:
        raise MTKDError(f"{path} is a picture with {error}; {ALLOWED}: convert it") from error
    except Exception as error:  # a decoder raises nearly anything on damaged bytes
        raise MTKDError(f"{path} is damaged or cut short ({error}): copy it again or remove it") from error


def write_png(path: str | Path, array: RGB) -> None:
    """Write uint8 (H, W, 3) as PNG, making the folder; the file is there whole or not at all."""
    path = Path(path)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise MTKDError(f"{path}: got {array.dtype} of shape {array.shape}; a picture is uint8 (H, W, 3)")
    try:
        with replacing(path) as temporary:
            Image.fromarray(array).save(temporary, format="PNG")
    except OSError as error:
        reason = error.strerror or error
        raise MTKDError(f"{path} cannot be written ({reason}): free space or choose another folder") from error


def list_pictures(folder: str | Path, recursive: bool = True) -> list[Path]:
    """List the pictures of a folder, sorted by relative path; hidden files and folders are left out.

    Raises:
        MTKDError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    suffixes = " ".join(PICTURE_SUFFIXES)
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise MTKDError(f"{folder} {what}: give a folder that holds pictures ({suffixes})")
    found = [path for path in _files(folder, recursive) if path.suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        where = f"{folder} and its sub-folders" if recursive else f"{folder} (sub-folders not searched)"
        raise MTKDError(f"no pictures in {where}: put some there, allowed suffixes are {suffixes}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    # Data sets are often linked into place, which rglob would not follow; `seen` ends a loop of links.
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        folders[:] = [name for name in folders if os.path.realpath(Path(parent, name)) not in seen]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _decode(data: bytes) -> DeepRGB:
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        deep, mode = is_deep(image), image.mode
        image.load()
        if deep:
            return _decode_deep(data)
        if mode not in WITH_ALPHA | WITHOUT_ALPHA:
            raise NotImplementedError(f"pixels of the kind {mode!r}")
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("RGBA" if mode in WITH_ALPHA else "RGB"))[..., :3].copy()


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a picture, not loaded yet, has 16 bits per channel.

    Raises:
        NotImplementedError: in a way that OpenCV does not read.
    """
    tags = getattr(image, "tag_v2", {})
    # How Pillow names the bits of a PNG, "RGB;16B"; it does not say so of every TIFF.
    deep = 16 in tags.get(TIFF_BITS, ()) or (image.format == "PNG" and ";16" in str(image.tile))
    other = image.mode == "CMYK" or tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO or tags.get(TIFF_PLANAR) == SEPARATE
    if deep and other:
        raise NotImplementedError("16 bits in CMYK, in separate planes or with white as zero")
    return deep


def _decode_deep(data: bytes) -> DeepRGB:
    # Pillow has no 16-bit colour: it keeps the high byte, which is not rounding.
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if bgr is None or bgr.dtype != np.uint16:
        raise NotImplementedError("pixels of 16 bits that are not unsigned integers")
    return np.ascontiguousarray(bgr[..., ::-1], np.uint16)
