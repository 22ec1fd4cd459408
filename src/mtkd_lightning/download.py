"""Files from the network or a folder: complete, verified, fetched once.

MTKD_LIGHTNING_MIRROR (a folder or the beginning of a URL) is asked first, under the file's own name;
MTKD_LIGHTNING_OFFLINE=1 leaves the network alone.
"""

import errno
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage, InvalidURL
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm  # type: ignore[import-untyped]

from mtkd_lightning import __version__
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import alone, file_sha256, replacing

log = logging.getLogger(__name__)

TRIES = 5  # in a row that bring nothing
WAIT = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = 30.0  # seconds in which nothing comes
REPORT = 10.0  # seconds between two lines of progress
CHUNK = 2**16
SCHEMES = ("https://", "http://", "file://")


def fetch(url: str, path: Path, *, sha256: str | None = None) -> str:
    """Put the file of a URL (https, http, file) or of a local path at ``path``, unless it is there already.

    An interrupted download goes on where it stopped. Of several processes that want the same file one downloads it.

    Args:
        url: asked when no mirror has the file.
        path: where the file goes; its last part is the name that a mirror is asked for.
        sha256: the digest or its first digits, 8 or more. Where it is not whole, the digest of the file that comes
            first is recorded in ``<path>.sha256`` and is the wanted one from then on.

    Returns:
        The sha256 of the file.

    Raises:
        MTKDError: no source gives the wanted file, or it cannot be written.
    """
    known = (sha256 or "").lower()
    if sha256 is not None and not re.fullmatch("[0-9a-f]{8,64}", known):
        raise MTKDError(f"sha256 {sha256!r} for {path.name}: give its 64 hexadecimal digits or the first 8 or more")
    try:
        wanted = _wanted(path, known)
        if len(wanted) == 64 and path.is_file() and file_sha256(path) == wanted:
            return wanted  # before anything is written: the folder may be read-only
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_name(f".{path.name}.lock"), f"Waiting for another process that downloads {path}"):
            return _ensure(url, path, known)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MTKDError(_no_space(path, "the disk is full")) from error
        raise MTKDError(f"cannot write {path}: {error}") from error


def forget(path: Path) -> None:
    """Remove a downloaded file and what was recorded of it, so that it is fetched again."""
    for file in (path, _beside(path, ".sha256")):
        file.unlink(missing_ok=True)


def _ensure(url: str, path: Path, known: str) -> str:
    wanted = _wanted(path, known)
    found = file_sha256(path) if path.is_file() else None
    if found is None or not found.startswith(wanted):
        if found is not None:
            log.warning("%s has sha256 %s, not %s: fetching it again", path, found, wanted)
        found = _from_any(_sources(url, path), path, wanted)
    if len(known) < 64 and found != wanted:
        with replacing(_beside(path, ".sha256")) as record:
            record.write_text(f"{found}  {path.name}\n")
        known_part = f"only the first {len(known)} digits of it are" if known else "none is"
        log.info("%s: sha256 %s, recorded beside it, for %s published", path.name, found, known_part)
    return found


def _wanted(path: Path, known: str) -> str:
    """What the digest must begin with: what was recorded of the file, unless it contradicts what is known."""
    record = _beside(path, ".sha256")
    recorded = record.read_text()[:64] if record.is_file() else ""
    return recorded if recorded.startswith(known) else known


def _sources(url: str, path: Path) -> list[str]:
    mirror = os.environ.get("MTKD_LIGHTNING_MIRROR", "").rstrip("/")
    name = quote(path.name) if "://" in mirror else path.name
    places = [f"{mirror}/{name}", url] if mirror else [url]
    return [place if "://" in place else Path(place).expanduser().absolute().as_uri() for place in places]


def _from_any(sources: list[str], path: Path, wanted: str) -> str:
    offline = os.environ.get("MTKD_LIGHTNING_OFFLINE", "0") not in ("", "0")
    failures = []
    for source in sources:
        if offline and not source.startswith("file:"):
            failures.append(f"{source}: not asked, because MTKD_LIGHTNING_OFFLINE is set")
            continue
        try:
            return _from(source, path, wanted)
        except _Failed as error:
            failures.append(str(error))
            if source != sources[-1]:
                log.warning("%s; asking the next source", error)
    raise MTKDError(
        "\n  ".join((f"cannot get {path.name}:", *failures))
        + f"\nPut the file at {path}, or name a folder or URL that has it with MTKD_LIGHTNING_MIRROR=..., or "
        + ("unset MTKD_LIGHTNING_OFFLINE." if offline else "try again later.")
    )


def _from(source: str, path: Path, wanted: str) -> str:
    part = _beside(path, ".part")
    most, tries = 0, 0
    while True:
        try:
            _receive(source, part)
            break
        except _Cut as error:
            if error.stale:
                part.unlink(missing_ok=True)
            size = part.stat().st_size if part.exists() else 0
            tries = 1 if size > most else tries + 1
            most = max(most, size)
            if tries == TRIES:
                raise _Failed(f"{error}; given up after {TRIES} tries") from error
            wait = max(error.wait, WAIT * 2 ** (tries - 1))
            log.warning("%s; going on at %.1f MB in %.0f s", error, size / 1e6, wait)
            time.sleep(wait)
    digest = file_sha256(part)
    right = digest.startswith(wanted)
    if right:
        part.replace(path)
    else:
        part.unlink()
    _beside(part, ".json").unlink()
    if right:
        return digest
    record = _beside(path, ".sha256")
    hint = f" (recorded when it first came; to accept another, delete {record})" if record.exists() else ""
    raise _Failed(f"{source}: removed what came, for its sha256 is {digest}; wanted is {wanted}{hint}")


def _receive(url: str, part: Path) -> None:
    """Add to the partial file what one connection brings; return when the file is complete."""
    begun = _begun(part)
    have = part.stat().st_size if begun.get("url") == url and begun["version"] else 0
    if have and have == begun["size"]:
        return
    headers = {"User-Agent": f"mtkd-lightning/{__version__}"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": begun["version"]}
    with _open(url, headers) as response:
        version, length = _version(response.headers), response.headers.get("Content-Length", "")
        if have and response.status == 206:
            span = response.headers.get("Content-Range", "")
            if not span.startswith(f"bytes {have}-") or version not in (None, begun["version"]):
                raise _Cut(f"{url} has changed", stale=True)
            length = span.rpartition("/")[2]
        else:
            have = 0
        size = int(length) if length.isdigit() else None
        with part.open("ab" if have else "wb") as file:
            if not have:  # the old content is gone and the new not there: the note is never wrong about the file
                _beside(part, ".json").write_text(json.dumps({"url": url, "version": version, "size": size}))
            if size is not None and size - have > shutil.disk_usage(part.parent).free:
                raise MTKDError(_no_space(part.with_suffix(""), f"{(size - have) / 1e6:.1f} MB are to come"))
            with _progress(url, have, size) as report:
                while data := _read(response, url):
                    file.write(data)
                    report(len(data))
            file.flush()
            os.fsync(file.fileno())
    if size is not None and part.stat().st_size < size:
        raise _Cut(f"{url}: the connection was cut")


def _begun(part: Path) -> dict[str, Any]:
    try:
        return json.loads(_beside(part, ".json").read_text()) if part.is_file() else {}
    except (FileNotFoundError, ValueError):
        return {}


def _version(headers: HTTPMessage) -> str | None:
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")  # a weak tag does not promise equal bytes


def _open(url: str, headers: dict[str, str]) -> Any:
    if not url.startswith(SCHEMES):
        raise _Failed(f"{url}: only {', '.join(SCHEMES)} and local paths can be read")
    try:
        return build_opener(_Redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        message = f"{url}: HTTP {error.code}, {error.reason}"
        if error.code < 500 and error.code not in (408, 416, 429):
            raise _Failed(message) from error
        wait = error.headers.get("Retry-After", "")
        raise _Cut(message, min(float(wait), 60) if wait.isdigit() else 0, stale=error.code == 416) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        # A certificate that is refused is a ValueError, too.
        lasting = isinstance(reason, ValueError | InvalidURL) or url.startswith("file:")
        raise (_Failed if lasting else _Cut)(f"{url}: {reason}") from error


def _read(response: IO[bytes], url: str) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:  # told apart here from an error of the disk
        raise _Cut(f"{url}: the connection was cut ({type(error).__name__})") from error


@contextmanager
def _progress(url: str, done: int, size: int | None) -> Iterator[Callable[[int], Any]]:
    """Show the bytes that are reported as a bar in a terminal, as a line now and then elsewhere."""
    if sys.stderr.isatty():
        name = url.rpartition("/")[2]
        with tqdm(desc=name, initial=done, total=size, unit="B", unit_scale=True, leave=False) as bar:
            yield bar.update
        return
    due = time.monotonic() + REPORT

    def report(count: int) -> None:
        nonlocal done, due
        done += count
        if time.monotonic() >= due:
            due = time.monotonic() + REPORT
            log.info("%s: %.1f of %s MB", url, done / 1e6, "?" if size is None else f"{size / 1e6:.1f}")

    log.info("Downloading %s, %s MB", url, "?" if size is None else f"{size / 1e6:.1f}")
    yield report


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _no_space(path: Path, reason: str) -> str:
    free = shutil.disk_usage(path.parent).free / 1e6
    return (
        f"no space for {path}: {reason}, {free:.1f} MB are free. Free some space or choose another disk, then run the "
        "same command again; it goes on with what has come."
    )


class _Redirects(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not newurl.startswith(SCHEMES[:2]) or (req.full_url.startswith("https:") and newurl.startswith("http:")):
            raise HTTPError(req.full_url, code, f"refused to go on to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Failed(MTKDError):
    """A source does not give the file; another one might."""


class _Cut(_Failed):
    """Worth another try after ``wait`` seconds, from the beginning if what has come is ``stale``."""

    def __init__(self, message: str, wait: float = 0.0, stale: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.stale = stale
