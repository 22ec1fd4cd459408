"""Pictures decoded once, then read through memory maps."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mtkd_lightning.data.images import RGB, DeepRGB, read_deep_rgb, read_rgb
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256, replacing

# A map holds a file descriptor, of which a process may have 256 on some systems.
OPENED = 128


class PictureStore:
    """Decoded pictures under `root`, named by the sha256 of the file that they came from.

    `<root>/ab/ab....npy` is a picture, `<root>/ab/ab...-bicubic-x4.npy` its low-resolution version,
    `<root>/ab/ab...-deep.npy` one that keeps its 16 bits, `<root>/digests` remembers which file had which sha256.
    All of it can be deleted and is made again.
    Processes and threads may share a root; a store that is sent to another process opens its own maps.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._open = lru_cache(maxsize=OPENED)(_open)
        self._writing = Lock()

    def __reduce__(self) -> tuple[type["PictureStore"], tuple[Path]]:
        return PictureStore, (self.root,)

    def rgb(self, path: str | Path) -> RGB:
        """Give the picture, read-only (H, W, 3).

        Raises:
            MTKDError: the file is not a picture that can be read, or the store cannot be written.
        """
        picture: RGB = self._get(self._file(path, ""), lambda: read_rgb(path))
        return picture

    def lr(self, path: str | Path, scale: int) -> RGB:
        """Give the bicubic LR (H // scale, W // scale, 3), read-only; cropped right and bottom before.

        Raises:
            MTKDError: as `rgb`, or the picture is smaller than the scale.
        """
        picture: RGB = self._get(self._file(path, f"-bicubic-x{scale}"), lambda: self._downscale(path, scale))
        return picture

    def deep(self, path: str | Path) -> DeepRGB:
        """Give the picture in 16 bits if the file has them, else in 8, read-only (H, W, 3)."""
        return self._get(self._file(path, "-deep"), lambda: read_deep_rgb(path))

    def mapped(self, file: Path) -> DeepRGB:
        """Open an array that is a file of its own, (H, W, 3) of 8 or 16 bits, read-only.

        Raises:
            MTKDError: it is missing or damaged.
        """
        try:
            return self._open(file)
        except (OSError, ValueError, EOFError) as error:
            raise MTKDError(f"{file} cannot be read ({error}): delete it, and it is made again") from error

    def digest(self, path: str | Path) -> str:
        """Give the sha256 of the file's content, computed again when its size or time of change differ."""
        file = Path(path).absolute()
        try:
            stat = file.stat()
            key = (file, stat.st_size, stat.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = self._remembered_digest(*key)
        except OSError as error:
            raise MTKDError(f"{file} cannot be read ({error.strerror}): check the path and its permissions") from error
        return self._digests[key]

    def _remembered_digest(self, file: Path, size: int, mtime_ns: int) -> str:
        path = os.fsencode(file)
        head = b"%s\n%d %d\n" % (path, size, mtime_ns)
        name = sha256(path).hexdigest()
        # One small file a picture: writers never meet, and damage costs one hash.
        memo = self.root / "digests" / name[:2] / name
        text = b""
        with suppress(OSError):
            text = memo.read_bytes()
        if text.startswith(head) and re.fullmatch(rb"[0-9a-f]{64}", text[len(head) :]):
            return text[len(head) :].decode()
        digest = file_sha256(file)
        self._write(memo, head + digest.encode())
        return digest

    def _file(self, path: str | Path, what: str) -> Path:
        digest = self.digest(path)
        return self.root / digest[:2] / f"{digest}{what}.npy"

    def _get(self, file: Path, make: Callable[[], DeepRGB]) -> Any:
        with suppress(OSError, ValueError, EOFError):  # absent, or damaged since it was written
            return self._open(file)
        data = BytesIO()
        np.save(data, make())
        self._write(file, data.getbuffer())
        return self._open(file)

    def _downscale(self, path: str | Path, scale: int) -> RGB:
        picture = self.rgb(path)
        height, width = (side - side % scale for side in picture.shape[:2])
        if min(height, width) == 0:
            raise MTKDError(f"{path} is {picture.shape[0]}x{picture.shape[1]}, too small for x{scale}: remove it")
        return downscale(picture[:height, :width], scale)

    def _write(self, file: Path, data: bytes | memoryview) -> None:
        try:
            with self._writing, replacing(file) as temporary:
                temporary.write_bytes(data)
        except (OSError, MTKDError) as error:
            there = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
            free = shutil.disk_usage(there).free / 2**20
            reason = getattr(error, "strerror", None) or "the disk is full"
            raise MTKDError(
                f"decoded pictures cannot be stored in {self.root}: {reason} ({free:.0f} MiB free). "
                "Free some space or choose another folder with paths.cache=..."
            ) from error


def _open(file: Path) -> DeepRGB:
    # np.load with a map does the same in twice the time, and training opens two files a sample. Its way to read the
    # header, ast.literal_eval, also fails now and then when threads use it at once (CPython issue 106905).
    with file.open("rb") as handle:
        head = _HEAD.match(handle.read(128))
        if head is None:
            raise ValueError(f"{file} holds no picture of 8 or 16 bits")
        dtype, height, width = np.dtype(head[1].decode()), int(head[2]), int(head[3])
        content = mmap(handle.fileno(), 0, access=ACCESS_READ)
        return np.frombuffer(content, dtype, 3 * height * width, head.end()).reshape(height, width, 3)


# Of a .npy file as numpy writes it for pictures: magic, version 1, length of what follows, padded to 128 bytes in all.
_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '([|<]u[12])', 'fortran_order': False, 'shape': \((\d+), (\d+), 3\), } *\n",
    re.DOTALL,
)
