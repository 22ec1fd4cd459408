import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mtkd_lightning.data import archives
from mtkd_lightning.data.archives import need_space, unpack
from mtkd_lightning.data.images import write_png
from mtkd_lightning.errors import MTKDError


def zip_of(path: Path, files: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return path


@pytest.fixture
def pictures(picture, tmp_path_factory) -> list[bytes]:
    """Two PNG files."""
    folder = tmp_path_factory.mktemp("png")
    for i in range(2):
        write_png(folder / f"{i}.png", picture[i : i + 24, :24])
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked_zip(path: Path) -> Path:
    info = zipfile.ZipInfo("hr/1.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/hosts")
    return path


def understated(path: Path) -> Path:
    """A bomb whose headers say that it is small."""
    zip_of(path, {"hr/1.png": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    for header, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        start = content.index(header) + offset
        content[start : start + 4] = (100).to_bytes(4, "little")
    return written(path, content)


def flipped(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    return written(path, content)


def cut(path: Path, size: int) -> Path:
    return written(path, path.read_bytes()[:size])


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p, x: zip_of(p / "a.zip", {"hr/../../1.png": x}), "'hr/../../1.png' points out of the folder"),
        (lambda p, x: tar_of(p / "a.tar", {"hr/1.png": x, "../1.png": x}), "'../1.png' points out of the folder"),
        (lambda p, x: zip_of(p / "a.zip", {"/hr/1.png": x}), "'/hr/1.png' points out of the folder"),
        (lambda p, x: tar_of(p / "a.tar", {"/hr/1.png": x}), "'/hr/1.png' points out of the folder"),
        (lambda p, x: tar_of(p / "a.tar", {"hr\\..\\1.png": x}), "points out of the folder"),
        (lambda p, x: tar_of(p / "a.tar", {"C:/hr/1.png": x}), "points out of the folder"),
        (lambda p, x: linked_zip(p / "a.zip"), "'hr/1.png' is a link or a device"),
        (lambda p, x: tar_of(p / "a.tar", {}, link("hr/1.png", "/etc/hosts")), "'hr/1.png' is a link or a device"),
        (lambda p, x: tar_of(p / "a.tar", {}, link("hr", "/tmp")), "'hr' is a link or a device"),
        (lambda p, x: tar_of(p / "a.tar", {}, link("hr/1.png", "x", tarfile.LNKTYPE)), "is a link or a device"),
        (lambda p, x: tar_of(p / "a.tar", {}, link("hr/1.png", "", tarfile.CHRTYPE)), "is a link or a device"),
        (lambda p, x: tar_of(p / "a.tar", {}, link("hr/1.png", "", tarfile.FIFOTYPE)), "is a link or a device"),
        (
            lambda p, x: zip_of(p / "a.zip", {"hr/1.png": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED),
            "more than 10 times larger unpacked",
        ),
        (lambda p, x: understated(p / "a.zip"), "is damaged (Bad CRC-32"),
        (lambda p, x: tar_of(p / "a.tar.gz", {"no": bytes(10**6), "hr/1.png": x}), "10 times larger unpacked"),
        (lambda p, x: tar_of(p / "a.tar.gz", {f"{i}": b"" for i in range(60)}), "more than 50 files"),
        (lambda p, x: tar_of(p / "a.tar", {"hr/1.png": x, "./hr/1.png": x}), "hr/1.png' twice"),
        (lambda p, x: zip_of(p / "a.zip", {"hr/1.png": x, "hr/2.png": x}), "has 2 pictures in hr/ where 1 should be"),
        (lambda p, x: zip_of(p / "a.zip", {"other/1.png": x}), "has 0 pictures in hr/ where 1 should be"),
        (lambda p, x: flipped(zip_of(p / "a.zip", {"hr/1.png": x})), "is damaged (Bad CRC-32"),
        (lambda p, x: cut(zip_of(p / "a.zip", {"hr/1.png": x}), 200), "is no zip or tar file, or was cut short"),
        (lambda p, x: cut(tar_of(p / "a.tar", {"hr/1.png": x}), 800), "is damaged (unexpected end of data"),
        (lambda p, x: cut(tar_of(p / "a.tar.gz", {"hr/1.png": x}), 800), "is damaged (Compressed file ended"),
        (lambda p, x: written(p / "a.zip", b"<html>not found</html>"), "leads to the archive and not to a page"),
    ],
)
def test_archives_that_are_refused(make, expected, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 50)
    archive = make(tmp_path, pictures[0])
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(MTKDError) as error:
        unpack(archive, "hr", folder, 1)
    assert expected in str(error.value)
    assert archive.name in str(error.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", archive.name}


@pytest.mark.parametrize("make", [lambda p, x: zip_of(p / "a.zip", x), lambda p, x: tar_of(p / "a.tar.gz", x)])
def test_only_the_pictures_of_one_folder_are_taken(make, pictures, tmp_path):
    rest = ("1.png", "hr/deep/1.png", "hr2/1.png", "hr/.1.png", "__MACOSX/hr/._1.png", "hr/read.me", "hr/run.py")
    archive = make(tmp_path, {"hr/1.png": pictures[0], "./hr/2.PNG": pictures[1], **dict.fromkeys(rest, b"x")})
    (tmp_path / "folder").mkdir()
    unpack(archive, "hr", tmp_path / "folder", 2)
    assert files(tmp_path / "folder") == {"1.png": pictures[0], "2.PNG": pictures[1]}


def test_space_that_is_there(tmp_path):
    need_space(tmp_path, 1, "a byte")
    with pytest.raises(MTKDError, match=r"a file needs 1000000000\.00 GB in .* GB are free: free some space"):
        need_space(tmp_path, 10**18, "a file")


def test_unpacking_goes_on(pictures, tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"hr/1.png": pictures[0], "hr/2.png": pictures[1]})
    (tmp_path / "1.png").write_bytes(pictures[0])
    (tmp_path / "2.png").write_bytes(pictures[1][:10])
    before = (tmp_path / "1.png").stat().st_ino
    unpack(archive, "hr", tmp_path, 2)
    assert (tmp_path / "1.png").stat().st_ino == before
    assert (tmp_path / "2.png").read_bytes() == pictures[1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of a chosen size")
def test_a_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        archive = zip_of(tmp_path / "a.zip", {"hr/1.png": bytes(100_000)})
        with pytest.raises(MTKDError, match=r"a\.zip needs 0\.00 GB in .*root=\.\.\..* it goes on from here"):
            unpack(archive, "hr", small, 1)
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
