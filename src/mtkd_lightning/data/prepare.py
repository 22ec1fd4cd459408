"""A published data set from its archives to what training reads: folders, LR pictures, memory map, manifest."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mtkd_lightning.artifacts import provenance
from mtkd_lightning.data.archives import need_space, unpack
from mtkd_lightning.data.datasets import Archive, Request
from mtkd_lightning.data.images import list_pictures, read_rgb, write_png
from mtkd_lightning.data.paired import PairedImages, find_pairs, first
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.data.sources import picture_store
from mtkd_lightning.download import fetch
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import alone, write_json

log = logging.getLogger(__name__)

Result = TypeVar("Result")

REPORT = 10.0  # seconds between two lines of progress
AGAIN = "and run the same command again to make it anew"


class Preparation:
    """The steps from nothing to a data set that training can start on.

    Each leaves something complete (a folder, a line of the manifest) and is skipped when that is there, so that the
    same call goes on after an interruption. `<root>/manifest.json` holds the url, sha256 and bytes of each archive, and
    of each folder where it is from and the sha256, width and height of its pictures.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.root = request.root
        self.archives = self.root / "archives"
        self.store = picture_store(request.cache)
        self.decode = self.store.rgb if request.map else read_rgb

    def run(self) -> None:
        """Take all steps.

        Raises:
            MTKDError: an archive cannot be had or used, a picture is missing, changed or damaged, the disk is full.
        """
        request, sets = self.request, self.request.dataset.sets.values()
        with _alone(self.root):
            self.manifest = self._read_manifest()
            log.info("%s in %s. %s.", request.name, self.root, request.dataset.licence)
            for pictures in sets:
                self._unpacked(pictures.archive, pictures.folder, pictures.pictures)
                for scale in request.scales:
                    folder = f"{pictures.lr_folder}/X{scale}"
                    if request.lr == "download":
                        self._unpacked(pictures.lr_archives[f"x{scale}"], folder, pictures.pictures)
                    else:
                        self._made(pictures.folder, folder, scale, pictures.pictures)
            if not request.keep_archives:
                self._delete_archives()
            if request.map:
                for scale in request.scales:
                    for pictures in sets:
                        lr = self.root / pictures.lr_folder / f"X{scale}"
                        pairs = find_pairs(self.root / pictures.folder, lr, scale)
                        PairedImages(pairs, scale, self.store).prepare(_progress())
                log.info("The memory map in %s holds all of it.", self.store.root)
            log.info("Ready: train with data=%s data.root=%s", request.name, self.root)

    def _unpacked(self, archive: Archive, folder: str, count: int) -> None:
        def fill(into: Path) -> None:
            path = self.archives / Path(urlsplit(archive.url).path).name
            if archive.bytes is not None:
                here = sum(file.stat().st_size for file in (*self.archives.glob(f"{path.name}*"), *into.iterdir()))
                need_space(self.root, 2 * archive.bytes - here, f"{archive.url} with the pictures of it")
            sha256 = fetch(archive.url, path, sha256=archive.sha256)
            self.manifest["archives"][archive.url] = {"sha256": sha256, "bytes": path.stat().st_size}
            self._write_manifest()
            log.info("%s: unpacking %s.", folder, path.name)
            unpack(path, archive.inside or folder, into, count)

        self._provide(folder, count, archive.url, fill)

    def _made(self, hr: str, folder: str, scale: int, count: int) -> None:
        def fill(into: Path) -> None:
            def make(picture: Path) -> None:
                target = into / f"{picture.stem}x{scale}.png"
                if not target.exists():
                    whole = self.decode(picture)
                    height, width = (side - side % scale for side in whole.shape[:2])
                    write_png(target, downscale(whole[:height, :width], scale))

            log.info("%s: making it of %s.", folder, hr)
            _each(make, list_pictures(self.root / hr))

        self._provide(folder, count, f"made of {hr}, bicubic x{scale}", fill)

    def _provide(self, folder: str, count: int, origin: str, fill: Callable[[Path], None]) -> None:
        """See to it that a folder is there, complete and recorded; `fill` goes on with a folder begun before."""
        path, folders = self.root / folder, self.manifest["folders"]
        if path.is_dir() and "pictures" in folders.get(folder, {}):
            self._verify(folder)
            log.info("%s: %d pictures, as recorded.", folder, count)
            return
        if not path.is_dir():
            if folders.get(folder, {}).get("from") != origin:
                shutil.rmtree(_partial(path), ignore_errors=True)
            folders[folder] = {"from": origin}
            self._write_manifest()
            with _filling(path) as unfinished:
                fill(unfinished)
        log.info("%s: checking that each picture can be decoded.", folder)
        found = folders.setdefault(folder, {"from": "found there"})
        found["pictures"] = self._inspect(path, count)
        self._write_manifest()

    def _inspect(self, path: Path, count: int) -> dict[str, Any]:
        def record(picture: Path) -> dict[str, Any]:
            height, width, _ = self.decode(picture).shape
            return {"sha256": self.store.digest(picture), "width": width, "height": height}

        pictures = list_pictures(path)
        if len(pictures) != count:
            raise MTKDError(f"{path} holds {len(pictures)} pictures where {count} should be: remove it {AGAIN}")
        try:
            records = _each(record, pictures)
        except MTKDError as error:
            raise MTKDError(f"{error}. If a picture came damaged, remove {path} and {self.archives} {AGAIN}") from error
        return {_name(picture, path): found for picture, found in zip(pictures, records, strict=True)}

    def _verify(self, folder: str) -> None:
        """Compare with the manifest; a picture is hashed again only if its size or time has changed."""
        path, recorded = self.root / folder, self.manifest["folders"][folder]["pictures"]
        there = {_name(picture, path): picture for picture in list_pictures(path)}
        wrong = {
            "missing": [name for name in recorded if name not in there],
            "new": [name for name in there if name not in recorded],
            "changed": [
                name
                for name, picture in there.items()
                if name in recorded and self.store.digest(picture) != recorded[name]["sha256"]
            ],
        }
        if any(wrong.values()):
            found = "; ".join(f"{len(names)} {what} ({first(names)})" for what, names in wrong.items() if names)
            raise MTKDError(
                f"{path} is not as {self.root / 'manifest.json'} records it: {found}. Remove {path} {AGAIN}"
            )

    def _delete_archives(self) -> None:
        for url in self.manifest["archives"]:
            (self.archives / Path(urlsplit(url).path).name).unlink(missing_ok=True)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.root / "manifest.json"
        manifest: dict[str, Any] = {"licences": {}, "tool": {}, "archives": {}, "folders": {}}
        try:
            if path.exists():
                manifest = json.loads(path.read_text())
            manifest["licences"][self.request.name] = self.request.dataset.licence
            manifest["tool"] = provenance()
            return {key: manifest[key] for key in ("licences", "tool", "archives", "folders")}
        except (ValueError, KeyError, TypeError) as error:
            raise MTKDError(f"{path} cannot be read ({error!r}): remove it and run again, it is made anew") from error

    def _write_manifest(self) -> None:
        write_json(self.root / "manifest.json", self.manifest)


def _name(picture: Path, folder: Path) -> str:
    return picture.relative_to(folder).as_posix()


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """Give a hidden folder, with what an interrupted run left in it; name it `folder` when it is complete."""
    unfinished = _partial(folder)
    unfinished.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_run in unfinished.glob(".*.tmp"):
        left_by_a_killed_run.unlink()
    yield unfinished
    unfinished.rename(folder)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the root."""
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(root / ".lock", f"Another run is preparing {root}; waiting for it."))
        except OSError as error:
            message = f"{root} cannot be written ({error.strerror}): choose another folder with root=..."
            raise MTKDError(message) from error
        yield


def _each(do: Callable[[Path], Result], items: list[Path]) -> list[Result]:
    """Do it on all cores."""
    results, progress = [], _progress()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(do, items):
            results.append(result)
            progress(len(results), len(items))
    return results


def _progress() -> Callable[[int, int], None]:
    due = time.monotonic() + REPORT

    def say(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + REPORT
            log.info("  %d of %d pictures", done, total)

    return say
