"""Files that are either complete or not there."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from mtkd_lightning.errors import MTKDError

log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to ``path`` on success, remove it on failure.

    Raises:
        MTKDError: the disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        if _no_space(error):
            free = shutil.disk_usage(path.parent).free / 2**20
            raise MTKDError(
                f"no space left to write {path} ({free:.0f} MiB free there): nothing was changed. Free some space "
                "or choose another disk (paths.root=..., output=...), then run the same command again; it goes on."
            ) from error
        if isinstance(error, OSError):
            raise MTKDError(
                f"{path} cannot be written ({error.strerror or error}): check the folder and its permissions, or "
                "choose another"
            ) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        MTKDError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, indented.

    Raises:
        MTKDError: as `replacing`.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Give the mapping that a file holds; None if it is missing, damaged or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def alone(lock: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file, saying ``waiting`` while another process does; the system lets go of it when a process dies.

    Its folder is made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info(waiting)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def file_sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_space(error: BaseException | None) -> bool:
    # torch raises an error of its own on top of the system's, safetensors keeps the system's text alone.
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
