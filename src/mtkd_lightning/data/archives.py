"""Pictures out of a zip or tar file that is not trusted."""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from mtkd_lightning.data.images import PICTURE_SUFFIXES
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import replacing

# Flickr2K, the largest, has under 20 000 members; pictures are compressed already and hardly shrink in an archive.
MEMBERS = 100_000
RATIO = 10

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # encrypted, or compressed in a way that is not supported
)


class Member(NamedTuple):
    """An entry of an archive; `plain` if it is a file or a folder, not a link or a device."""

    name: str
    size: int
    plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, inside: str, folder: Path, pictures: int) -> None:
    """Copy the pictures that lie in the archive's folder `inside` into `folder`; nothing else is written.

    A picture that is in `folder` already is kept, so an interrupted call goes on where it was.

    Raises:
        MTKDError: the archive is damaged or unsafe, has another number of pictures, or the disk is too small.
    """
    try:
        with _members(archive) as members:
            wanted = _wanted(archive, members, PurePosixPath(inside))
            if len(wanted) != pictures:
                raise MTKDError(
                    f"{archive} has {len(wanted)} pictures in {inside}/ where {pictures} should be: it was cut short "
                    "or is another archive. Remove it and run the same command again"
                )
            missing = {name: member for name, member in wanted.items() if not _is_there(folder / name, member.size)}
            need_space(folder, sum(member.size for member in missing.values()), archive)
            for name, member in missing.items():
                with replacing(folder / name) as temporary, temporary.open("wb") as file:
                    source = member.open()
                    assert source is not None
                    with source:
                        shutil.copyfileobj(source, file, 2**20)
    except DAMAGED as error:
        raise MTKDError(f"{archive} is damaged ({error}): remove it and run the same command again") from error


def need_space(folder: Path, wanted: int, what: object) -> None:
    """Raise MTKDError unless `wanted` bytes are free on the disk of an existing folder."""
    if (free := shutil.disk_usage(folder).free) < wanted:
        raise MTKDError(
            f"{what} needs {wanted / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free: free some space, or "
            "choose another disk with root=..., then run the same command again; it goes on from here"
        )


def _wanted(archive: Path, members: Iterable[Member], inside: PurePosixPath) -> dict[str, Member]:
    """Look at every member, before anything is written."""
    wanted: dict[str, Member] = {}
    room = RATIO * archive.stat().st_size
    for count, member in enumerate(members, 1):
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
            raise MTKDError(f"{archive} is not safe, nothing was unpacked: {member.name!r} points out of the folder")
        if not member.plain:
            raise MTKDError(f"{archive} is not safe, nothing was unpacked: {member.name!r} is a link or a device")
        room -= member.size
        if room < 0 or count > MEMBERS:
            raise MTKDError(
                f"{archive} is not safe, nothing was unpacked: it holds more than {MEMBERS} files, or is more than "
                f"{RATIO} times larger unpacked, as no archive of pictures is"
            )
        if path.parent == inside and path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            if path.name in wanted:
                raise MTKDError(f"{archive} is not safe, nothing was unpacked: it has {member.name!r} twice")
            wanted[path.name] = member
    return wanted


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield (_zipped(file, info) for info in file.infolist())
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            yield (
                Member(info.name, info.size, info.isreg() or info.isdir(), partial(file.extractfile, info))
                for info in file
            )
    else:
        raise MTKDError(
            f"{archive} is no zip or tar file, or was cut short: remove it and run the same command again, and check "
            "that its address leads to the archive and not to a page"
        )


def _zipped(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on a Unix
    # ZipFile gives no more bytes than the size that is declared, and then compares the CRC.
    opened: Callable[[], Any] = partial(file.open, info)
    return Member(info.filename, info.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR), opened)
